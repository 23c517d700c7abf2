import inspect
import socket
import warnings

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torchvision
from scipy.linalg import sqrtm
from torch import nn
from torchmetrics import Metric
from torchmetrics.functional.image import dists as library_dists
from torchmetrics.functional.image.lpips import _LPIPS
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from lightning_recon import metrics
from lightning_recon.errors import InputError
from lightning_recon.functional import image_quality
from lightning_recon.functional.registration import registered_psnr
from lightning_recon.metrics import (
    DISTS,
    LPIPS,
    MSE,
    PSNR,
    SSIM,
    ComplexWaveletSSIM,
    FrechetDistance,
    IdentificationRate,
    ImageIdentifiabilityPrecision,
    KernelDistance,
    LabelAccuracy,
    MultiScaleSSIM,
    PenultimateFeatures,
    PerImageMetric,
    RegisteredPSNR,
    TagJaccard,
)
from lightning_recon.targets import LeNet, TorchvisionClassifier

IMAGE_METRICS = {
    MSE: image_quality.mse,
    PSNR: image_quality.psnr,
    RegisteredPSNR: registered_psnr,
    SSIM: image_quality.ssim,
    MultiScaleSSIM: image_quality.ms_ssim,
    ComplexWaveletSSIM: image_quality.cw_ssim,
}
WITH_MASKS = [metric for metric in IMAGE_METRICS if metric is not MultiScaleSSIM]
ARCHITECTURES = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}


def images(count=10, size=32, channels=3, seed=0):
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(seed))


def pairs(count=10, size=32):
    target = images(count, size)
    return (target + 0.2 * images(count, size, seed=1) - 0.1).clamp(0, 1), target


def block_masks(count=10, size=32):
    masks = torch.zeros(count, 1, size, size, dtype=torch.bool)
    for i, mask in enumerate(masks):
        mask[:, 5 : 15 + i, 8:28] = True
    return masks


def public_metrics():
    members = [getattr(metrics, name) for name in metrics.__all__]
    return [m for m in members if issubclass(m, Metric) and m is not PerImageMetric]


def test_the_table_lists_every_metric_and_its_better_direction():
    rows = [line.split() for line in metrics.__doc__.splitlines()]
    for metric in public_metrics():
        (row,) = [row for row in rows if row and row[0] == metric.__name__]
        assert metric.higher_is_better == ("high" in row), metric
        assert ("low" in row) != ("high" in row)
        assert inspect.getdoc(metric)
    assert len(public_metrics()) == 14


# means over images


@pytest.mark.parametrize("metric", IMAGE_METRICS)
def test_the_module_is_the_mean_of_the_function(metric):
    preds, target = pairs()
    module = metric()
    for part in (slice(0, 1), slice(1, 7), slice(7, 10)):
        module.update(preds[part], target[part])
    expected = IMAGE_METRICS[metric](preds, target)
    torch.testing.assert_close(module.per_image(), expected)
    assert module.compute().item() == pytest.approx(np.mean(expected.double().numpy()), rel=1e-6)
    module.reset()
    assert len(module.per_image()) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchmetrics: compute before update
        assert module.compute().isnan()


@pytest.mark.parametrize("metric", WITH_MASKS)
def test_masks_restrict_the_score_to_the_subject(metric):
    (preds, target), masks = pairs(), block_masks()
    module = metric()
    module.update(preds, target, masks)
    torch.testing.assert_close(module.per_image(), IMAGE_METRICS[metric](preds, target, masks))
    assert (module.per_image() != IMAGE_METRICS[metric](preds, target)).all()


def test_arguments_reach_the_function():
    preds, target = pairs()
    for module, expected in (
        (PSNR(cap=15.0), image_quality.psnr(preds, target, cap=15.0)),
        (RegisteredPSNR(2, True, 22.0), registered_psnr(preds, target, None, 2, True, 22.0)),
    ):
        module.update(preds, target)
        torch.testing.assert_close(module.per_image(), expected)
        assert not torch.equal(expected, IMAGE_METRICS[type(module)](preds, target))


def test_the_mean_does_not_depend_on_the_order():
    preds, target = pairs()
    results = set()
    for seed in range(20):
        order = torch.randperm(10, generator=torch.Generator().manual_seed(seed))
        module = PSNR()
        for part in order.split(3):
            module.update(preds[part], target[part])
        results.add(module.compute().item())
    assert len(results) == 1


def test_forward_gives_the_batch_and_keeps_the_whole():
    preds, target = pairs()
    module = PSNR()
    values = [module(preds[part], target[part]) for part in (slice(0, 4), slice(4, 10))]
    expected = image_quality.psnr(preds, target)
    torch.testing.assert_close(
        torch.stack(values), torch.stack([expected[:4].mean(), expected[4:].mean()])
    )
    torch.testing.assert_close(module.compute(), expected.mean())


def test_values_can_be_kept_in_double_precision():
    preds, target = (z.double() for z in pairs())
    module = SSIM().set_dtype(torch.float64)
    module.update(preds, target)
    assert torch.equal(module.per_image(), image_quality.ssim(preds, target))
    assert module.compute().dtype == torch.float64


def test_a_failed_image_shows():
    preds, target = pairs()
    preds[3] = torch.nan
    module = MSE()
    module.update(preds, target)
    assert module.per_image().isnan().sum() == 1
    assert module.compute().isnan()


# LPIPS and DISTS


@pytest.fixture(scope="module")
def weight_files(tmp_path_factory):
    """Random weights of the backbones' real architectures; a small head stands for the real one."""
    folder = tmp_path_factory.mktemp("weights")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        for net, name in ARCHITECTURES.items():
            with torch.device("meta"):
                features = torchvision.models.get_model(name, weights=None).features
            state = {}
            for key, tensor in features.state_dict().items():
                # such that all channels are alive and no layer fades
                std = (2.0 / tensor[0].numel()) ** 0.5 if tensor.ndim > 1 else 0.05
                state[f"features.{key}"] = torch.randn(tensor.shape) * std
            state["classifier.6.weight"] = torch.zeros(2, 2)
            torch.save(state, folder / f"{net}.pth")
    return {net: str(folder / f"{net}.pth") for net in ARCHITECTURES}


def with_weights(features, file):
    """Fill torchvision's features, spread over a library's slices, from a file of ours."""
    state = torch.load(file, weights_only=True)
    names = {key.removeprefix("features."): key for key in state}
    for name, parameter in features.named_parameters():
        layer = name.split(".", 2)[2] if name.startswith("slices.") else name.split(".", 1)[1]
        with torch.no_grad():
            parameter.copy_(state[names[layer]])
    return features


@pytest.mark.parametrize("net", ARCHITECTURES)
@pytest.mark.parametrize("size", [32, 50])
def test_lpips_agrees_with_torchmetrics(net, size, weight_files):
    preds, target = pairs(3, size)
    reference = _LPIPS(net=net, pnet_rand=True)
    with_weights(reference.net, weight_files[net])
    expected = reference(preds, target, normalize=True).flatten()
    module = LPIPS(net, weight_files[net])
    module.update(preds, target)
    torch.testing.assert_close(module.per_image(), expected, rtol=1e-4, atol=1e-6)
    assert (expected > 0.001).all()
    module.reset()
    module.update(target, target)
    assert module.compute() == 0


def test_lpips_agrees_with_a_plain_computation(weight_files):
    """AlexNet written out, layer by layer, in numpy from the first to the last step but conv2d."""
    state = torch.load(weight_files["alex"], weights_only=True)
    heads = metrics.perceptual._published("lpips_models/alex.pth")
    preds, target = pairs(2, 64)

    def convolved(x, layer, **how):
        weight, bias = (state[f"features.{layer}.{kind}"] for kind in ("weight", "bias"))
        return nn.functional.conv2d(x, weight, bias, **how).clamp(min=0)

    def activations(x):
        shift = torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)
        scale = torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1)
        x = convolved((2 * x - 1 - shift) / scale, 0, stride=4, padding=2)
        result = [x]
        for layer, pools, padding in ((3, True, 2), (6, True, 1), (8, False, 1), (10, False, 1)):
            x = nn.functional.max_pool2d(x, 3, 2) if pools else x
            x = convolved(x, layer, padding=padding)
            result.append(x)
        return result

    expected = np.zeros(2)
    for layer, (x, y) in enumerate(zip(activations(preds), activations(target), strict=True)):
        x, y = x.double().numpy(), y.double().numpy()
        x, y = (z / np.sqrt((z**2).sum(axis=1, keepdims=True) + 1e-8) for z in (x, y))
        weight = heads[f"lin{layer}.model.1.weight"].double().numpy()
        expected += (weight * (x - y) ** 2).sum(axis=1).mean(axis=(1, 2))
    module = LPIPS("alex", weight_files["alex"])
    module.update(preds, target)
    assert module.per_image().tolist() == pytest.approx(expected.tolist(), rel=1e-4)


@pytest.mark.parametrize("size", [32, 45])
def test_dists_agrees_with_torchmetrics(size, weight_files, monkeypatch):
    def local_vgg16(**_):
        with torch.device("meta"):
            model = torchvision.models.vgg16(weights=None)
        model.features.to_empty(device="cpu")
        state = torch.load(weight_files["vgg"], weights_only=True)
        head = "classifier.6.weight"
        model.load_state_dict({k: v for k, v in state.items() if k != head}, strict=False)
        return model

    monkeypatch.setattr(library_dists, "vgg16", local_vgg16)
    target = images(3, size)
    preds = target.flip(0) ** 2
    expected = library_dists.DISTSNetwork()(preds, target)
    module = DISTS(weight_files["vgg"])
    module.update(preds, target)
    torch.testing.assert_close(module.per_image(), expected, rtol=1e-4, atol=1e-5)
    assert (expected > 0.03).all()
    module.reset()
    module.update(target, target)
    assert module.compute().abs() < 1e-5


def test_gray_images_have_three_equal_channels(weight_files):
    preds, target = (z[:, :1] for z in pairs(2))
    for module in (LPIPS("alex", weight_files["alex"]), DISTS(weight_files["vgg"])):
        module.update(preds, target)
        module.update(preds.expand(-1, 3, -1, -1), target.expand(-1, 3, -1, -1))
        gray, colour = module.per_image().split(2)
        assert torch.equal(gray, colour)
        assert (gray > 0).all()
        with pytest.raises(ValueError, match="1 or 3"):
            module.update(preds.expand(-1, 2, -1, -1), target.expand(-1, 2, -1, -1))


@pytest.mark.parametrize("net", ARCHITECTURES)
def test_the_least_side_is_the_least(net, weight_files):
    module = LPIPS(net, weight_files[net])
    least = metrics.perceptual._LEAST_SIDE[net]
    module.update(*pairs(1, least))
    assert module.compute().isfinite()
    with pytest.raises(InputError, match=f"at least {least} pixels"):
        module.update(*pairs(1, least - 1))
    with pytest.raises(RuntimeError, match=r"size|small"):  # and the network itself would fail
        module.backbone(images(1, least - 1))


@pytest.mark.parametrize(
    ("make", "file"),
    [
        (lambda path: LPIPS("alex", path), "alexnet-owt-7be5be79.pth"),
        (lambda path: LPIPS("vgg", path), "vgg16-397923af.pth"),
        (lambda path: LPIPS("squeeze", path), "squeezenet1_1-b8a52dc0.pth"),
        (DISTS, "vgg16-397923af.pth"),
    ],
)
def test_missing_weights_are_named_with_their_source(make, file, tmp_path):
    missing = str(tmp_path / "nothing.pth")
    with pytest.raises(InputError) as caught:
        make(missing)
    message = str(caught.value)
    assert missing in message
    assert file in message
    assert "\n" not in message


def test_weights_of_another_network_are_refused(weight_files):
    with pytest.raises(InputError, match="do not fit"):
        LPIPS("alex", weight_files["vgg"])
    with pytest.raises(InputError, match="no net 'resnet'"):
        LPIPS("resnet", weight_files["vgg"])


def test_networks_never_train(weight_files):
    classifier = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(3 * 32 * 32, 10))
    modules = [LPIPS("alex", weight_files["alex"]), TagJaccard(classifier, num_tags=2)]
    for module in modules:
        module.train()
        module.update(*pairs())
        module.update(*pairs())
        first, second = module.per_image().split(10)
        assert torch.equal(first, second)
        assert not any(parameter.requires_grad for parameter in module.parameters())
    # the user's own network is left as it was
    assert classifier.training
    assert all(parameter.requires_grad for parameter in classifier.parameters())


# FID and KID


class Colours(nn.Module):
    """Twelve features: the means of four quarters in each channel."""

    num_features = 12

    def forward(self, x):
        return nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)


def test_the_frechet_distance_agrees_with_scipy_and_torchmetrics():
    preds, target = pairs(40)
    preds = preds[:30] * 0.8
    module, reference = FrechetDistance(Colours()), FrechetInceptionDistance(Colours())
    for part in range(0, 40, 7):
        module.update(preds[part : part + 7], target[part : part + 7])
        reference.update(target[part : part + 7], real=True)
        if part < 30:
            reference.update(preds[part : part + 7], real=False)
    x, y = (Colours()(z).double().numpy() for z in (preds, target))
    c, d = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(c + d - 2 * sqrtm(c @ d).real)
    assert module.compute().item() == pytest.approx(expected, rel=1e-6)
    assert module.compute().item() == pytest.approx(reference.compute().item(), rel=1e-4)


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance`")
def test_the_kernel_distance_agrees_with_torchmetrics():
    preds, target = pairs(40)
    preds = preds * 0.8
    module = KernelDistance(Colours())
    reference = KernelInceptionDistance(Colours(), subsets=1, subset_size=40)
    for part in range(0, 40, 7):
        module.update(preds[part : part + 7], target[part : part + 7])
        reference.update(target[part : part + 7], real=True)
        reference.update(preds[part : part + 7], real=False)
    assert module.compute().item() == pytest.approx(reference.compute()[0].item(), rel=1e-3)


@pytest.mark.parametrize("metric", [FrechetDistance, KernelDistance])
@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_distances_that_cannot_be_had(metric):
    module = metric(Colours())
    with pytest.raises(InputError, match="saw 0 and 0"):
        module.compute()
    module.update(*pairs(1))
    with pytest.raises(InputError, match="at least 2"):
        module.compute()
    with pytest.raises(InputError, match="num_features"):
        metric(nn.Flatten())
    with pytest.raises(InputError, match="num_features says 5"):
        metric(nn.Flatten(), num_features=5).update(*pairs(2))


def test_features_are_the_input_of_the_last_linear_layer():
    classifier = TorchvisionClassifier("resnet18", num_classes=10, normalize=True).eval()
    features = PenultimateFeatures(classifier)
    x = images(2, 64)
    whole = classifier.model
    h = whole.maxpool(whole.relu(whole.bn1(whole.conv1((x - classifier.mean) / classifier.std))))
    h = whole.layer4(whole.layer3(whole.layer2(whole.layer1(h)))).mean(dim=(2, 3))
    torch.testing.assert_close(features(x), h)
    assert features.num_features == 512
    assert FrechetDistance(features).num_features == 512
    assert not whole.fc._forward_pre_hooks


def test_features_of_resized_images():
    classifier, x = LeNet(num_classes=10).eval(), images(2, 64)
    features = PenultimateFeatures(classifier, image_size=32)
    small = nn.functional.interpolate(x, (32, 32), mode="bilinear", antialias=True)
    assert torch.equal(features(x), PenultimateFeatures(classifier)(small))
    assert features(x).shape == (2, features.num_features)
    with pytest.raises(InputError, match="no linear layer"):
        PenultimateFeatures(nn.Conv2d(3, 1, 1))


# identification, tags and labels


def test_identification_rate():
    candidates = images(200, 64)
    index = torch.tensor([7, 190, 33, 2])
    preds = candidates[index] + 0.1 * images(4, 64, seed=1)
    preds[2] = candidates[5]  # someone else
    preds[3] = 0.5
    pool = torch.cat([candidates, candidates[190:191]])  # one truth is there twice: a tie
    module = IdentificationRate()
    module.update(preds[:3], candidates, index[:3])
    module.update(preds[3:], candidates * 0 + 0.5, index[3:])  # all the same: a tie
    assert module.per_image().tolist() == [1, 1, 0, 0]
    assert module.compute() == 0.5
    module.update(preds[1:2], pool, index[1:2])
    assert module.per_image().tolist() == [1, 1, 0, 0, 0]


def test_chance_identifies_one_in_n():
    candidates, index = images(20, 8), torch.arange(20).repeat(50)
    module = IdentificationRate()
    module.update(images(1000, 8, seed=1), candidates, index)
    assert 0.02 < module.compute() < 0.09


def test_identification_within_masks():
    candidates, masks = images(50, 64), torch.zeros(2, 1, 64, 64, dtype=torch.bool)
    masks[..., 10:50, 10:50] = True
    preds = candidates[[3, 8]] * masks
    whole, subject = IdentificationRate(), IdentificationRate(size=16)
    black = torch.cat([candidates[:49], candidates[:1] * 0])
    whole.update(preds * 0.3, black, torch.tensor([3, 8]))
    subject.update(preds * 0.9, black, torch.tensor([3, 8]), masks)
    assert (whole.compute(), subject.compute()) == (0, 1)


def test_image_identifiability_among_the_same_class():
    candidates, labels = images(30), torch.arange(30) % 3
    index = torch.tensor([4, 9])
    preds = torch.stack([0.6 * candidates[5] + 0.4 * candidates[4], candidates[9]])
    among_all, in_class = ImageIdentifiabilityPrecision(), ImageIdentifiabilityPrecision()
    among_all.update(preds, candidates, index)
    in_class.update(preds, candidates, index, labels)
    assert among_all.per_image().tolist() == [0, 1]  # 5 is nearer than 4, and of another class
    assert in_class.per_image().tolist() == [1, 1]


def test_image_identifiability_by_features():
    candidates = images(100)
    preds = candidates[[8, 70, 20]].flip(3).roll(9, dims=2) + 0.02 * images(3, seed=1)
    index = torch.tensor([8, 70, 20])

    class Averages(nn.Module):
        def forward(self, x):
            return x.mean(dim=(2, 3))

    averages = candidates.mean(dim=(2, 3))
    distances = (preds.mean(dim=(2, 3))[:, None] - averages).double().norm(dim=2)
    expected = (distances.argmin(dim=1) == index).float()
    module = ImageIdentifiabilityPrecision(Averages())
    module.update(preds, candidates, index)
    assert torch.equal(module.per_image(), expected)
    exact = ImageIdentifiabilityPrecision(Averages())
    exact.update(candidates[index].flip(3), candidates, index)
    assert exact.compute() == 1
    pixels = ImageIdentifiabilityPrecision()
    pixels.update(candidates[index].flip(3), candidates, index)
    assert pixels.compute() < 1


def test_tag_jaccard_of_a_classifier():
    classifier = LeNet(num_classes=20)
    preds, target = pairs(6)
    module = TagJaccard(classifier, num_tags=4)
    module.update(preds, target)
    classifier.eval()
    expected = []
    for scores, true_scores in zip(classifier(preds), classifier(target), strict=True):
        tags, true_tags = (
            {k for k, _ in sorted(enumerate(s.tolist()), key=lambda pair: -pair[1])[:4]}
            for s in (scores, true_scores)
        )
        expected.append(len(tags & true_tags) / len(tags | true_tags))
    assert module.per_image().tolist() == pytest.approx(expected)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_label_accuracy_adds_up_over_batches():
    module = LabelAccuracy()
    assert module.compute().isnan()
    module.update(torch.tensor([3, 1, 1, 2]), torch.tensor([1, 3, 1, 5]))  # 3 of 4
    module.update(torch.tensor([7]), torch.tensor([9]))
    module.update(torch.tensor([], dtype=torch.int64), torch.tensor([9]))
    assert module.compute().item() == pytest.approx(3 / 6)


# two processes


def everything(own):
    """All metrics that need no file, with the arguments of an update with a share of ten images."""
    (all_preds, truths), masks = pairs(), block_masks()[own]
    preds, target, index = all_preds[own], truths[own], torch.arange(10)[own]
    preds = torch.where((index == 1)[:, None, None, None], 0.9 * truths[:1], preds)  # a miss
    torch.manual_seed(0)
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    return [
        *((metric(), (preds, target)) for metric in IMAGE_METRICS),
        *((metric(), (preds, target, masks)) for metric in WITH_MASKS),
        (TagJaccard(classifier), (preds, target)),
        (FrechetDistance(Colours()), (preds, target)),
        (KernelDistance(Colours()), (preds, target)),
        (IdentificationRate(), (preds, truths, index)),
        (ImageIdentifiabilityPrecision(), (preds, truths, index)),
        (LabelAccuracy(), (index // 3, index // 2)),
    ]


def _one_of_two(rank, port, shares, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    values, counts = [], []
    for module, arguments in everything(shares[rank]):
        if len(arguments[0]):
            module.update(*arguments)
        values.append(module.compute().double())
        if isinstance(module, PerImageMetric):
            with module.sync_context():
                counts.append(len(module.per_image()))
    torch.save((torch.stack(values), counts), folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("first", [3, 0], ids=["uneven", "nothing on one"])
def test_two_processes_give_the_figures_of_one(first, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shares = [slice(0, first), slice(first, 10)]
    mp.spawn(_one_of_two, args=(port, shares, tmp_path), nprocs=2)
    parts = [everything(own) for own in shares if own.stop > own.start]
    modules = [module for module, _ in parts[0]]
    for part in parts:  # the labels of a batch are one update each, as in the processes
        for module, (_, arguments) in zip(modules, part, strict=True):
            module.update(*arguments)
    expected = torch.stack([module.compute().double() for module in modules])
    is_exact = torch.tensor([not isinstance(module, FrechetDistance) for module in modules])
    for rank in (0, 1):
        values, counts = torch.load(tmp_path / f"{rank}.pt")
        assert torch.equal(values[is_exact], expected[is_exact])
        torch.testing.assert_close(values, expected, rtol=1e-9, atol=1e-12)
        assert counts == [10] * 14
    assert len(expected.unique()) > 10
