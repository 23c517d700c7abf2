import numpy as np
import pytest
import torch
import torchvision
from scipy.linalg import sqrtm
from test_metric_modules import Colours, images, pairs
from torch import nn
from torchmetrics.functional.image import dists as library_dists
from torchmetrics.functional.image.lpips import _LPIPS
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from lightning_recon import metrics
from lightning_recon.errors import InputError
from lightning_recon.metrics import (
    DISTS,
    LPIPS,
    FrechetDistance,
    KernelDistance,
    PenultimateFeatures,
    TagJaccard,
)
from lightning_recon.targets import LeNet, TorchvisionClassifier

ARCHITECTURES = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}


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
