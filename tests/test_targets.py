import json
import pickle
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from data_helpers import real_data
from PIL import Image
from torch import nn

from lightning_recon.errors import InputError
from lightning_recon.targets import ConvNet, LeNet, TorchvisionClassifier

CLASSIFIERS = ["resnet18", "resnet50", "resnet101", "vgg16", "densenet121", "vit_b_16"]

SMALL = {
    "LeNet": lambda **kwargs: LeNet(**kwargs),
    "ConvNet": lambda **kwargs: ConvNet(width=4, **kwargs),
    "squeezenet1_1": lambda **kwargs: TorchvisionClassifier("squeezenet1_1", **kwargs),
}
every_small = pytest.mark.parametrize("make", SMALL.values(), ids=SMALL.keys())


def on_meta(name, **kwargs):
    """The model's shapes without its numbers: takes no time and no memory."""
    with torch.device("meta"):
        return TorchvisionClassifier(name, **kwargs)


def same_tensors(first, second):
    first, second = first.state_dict(), second.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


# classifiers by name


@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize("num_classes", [1000, 7])
def test_classifier_by_name_gives_logits(name, num_classes):
    model = on_meta(name, num_classes=num_classes)
    assert model.name == name
    assert model.num_classes == num_classes
    images = torch.zeros(2, 3, 224, 224, device="meta")
    assert model.eval()(images).shape == (2, num_classes)
    assert model.train()(images).shape == (2, num_classes)


def test_classifier_is_the_one_of_that_name():
    """Numbers of parameters as published with the models, in millions."""
    published = [11.7, 25.6, 44.5, 138.4, 8.0, 86.6]
    for name, millions in zip(CLASSIFIERS, published, strict=True):
        count = sum(parameter.numel() for parameter in on_meta(name).parameters())
        assert round(count / 1e6, 1) == millions, name


@pytest.mark.parametrize(("name", "size"), [("googlenet", 224), ("inception_v3", 299)])
def test_auxiliary_heads_are_left_out(name, size):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = on_meta(name, num_classes=5)
    for training in (True, False):
        logits = model.train(training)(torch.zeros(2, 3, size, size, device="meta"))
        assert isinstance(logits, torch.Tensor)
        assert logits.shape == (2, 5)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("resnet19", ["resnet18", "resnet50"]),
        ("ResNet18", ["resnet18"]),
        ("vgg", ["vgg16"]),
        ("nothing", ["resnet18", "vit_b_16"]),
        ("", ["resnet18"]),
        ("fcn_resnet50", ["resnet50"]),
        ("raft_small", ["resnet18"]),
    ],
)
def test_unknown_name_is_answered_with_near_ones(name, near):
    with pytest.raises(InputError) as error:
        TorchvisionClassifier(name)
    message = str(error.value)
    assert "\n" not in message
    assert repr(name) in message
    assert all(other in message for other in near)


def test_near_names_are_few():
    with pytest.raises(InputError) as error:
        TorchvisionClassifier("resnet19")
    assert "vgg" not in str(error.value)


def test_images_are_normalised_on_request():
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    raw, normalised = (
        TorchvisionClassifier("squeezenet1_1", num_classes=10, normalize=normalize).eval()
        for normalize in (None, True)
    )
    assert (raw.normalize, normalised.normalize) == (False, True)
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    with torch.no_grad():
        torch.testing.assert_close(raw(images), raw.model(images))
        torch.testing.assert_close(normalised(images), raw((images - mean) / std))
        assert not torch.allclose(normalised(images), raw(images), rtol=0.1)


def test_normalisation_is_no_parameter():
    """The client would send it, or a checkpoint would have to hold it."""
    model = on_meta("resnet18")
    assert {name for name, _ in model.named_buffers()} >= {"mean", "std"}
    assert all(name.startswith("model.") for name, _ in model.named_parameters())
    assert all(name.startswith("model.") for name in model.state_dict())


@pytest.mark.parametrize("num_classes", [1, 0, -3])
def test_one_class_is_no_classification(num_classes):
    for target in (LeNet, ConvNet, TorchvisionClassifier):
        with pytest.raises(InputError, match=f"^{target.__name__}: num_classes"):
            target(num_classes=num_classes)


# the small networks


@pytest.mark.parametrize("image_size", [28, 29, 30, 31, 32, 33, 64])
@pytest.mark.parametrize("in_channels", [1, 3])
def test_lenet_takes_its_image_size(image_size, in_channels):
    model = LeNet(num_classes=4, image_size=image_size, in_channels=in_channels)
    assert model(torch.zeros(2, in_channels, image_size, image_size)).shape == (2, 4)


def test_lenet_is_the_published_one():
    model = LeNet(num_classes=100)
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert [module.stride for module in convolutions] == [(2, 2), (2, 2), (1, 1), (1, 1)]
    assert {module.kernel_size for module in convolutions} == {(5, 5)}
    assert {module.out_channels for module in convolutions} == {12}
    assert sum(isinstance(module, nn.Sigmoid) for module in model.modules()) == 4
    assert model.classifier.in_features == 768
    numbers = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    assert numbers.abs().max() <= 0.5
    assert numbers.std().item() == pytest.approx(1 / 12**0.5, rel=0.02)  # uniform on [-.5, .5]


@pytest.mark.parametrize("image_size", [32, 47, 64])
def test_convnet_takes_any_larger_image(image_size):
    model = ConvNet(num_classes=4, width=2)
    assert model(torch.zeros(2, 3, image_size, image_size)).shape == (2, 4)
    assert model.classifier.in_features == 8
    assert sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == 3


# random weights


@every_small
def test_weights_depend_on_the_seed_alone(make):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = make(seed=5)
    assert torch.equal(torch.get_rng_state(), state), "the global state is disturbed"
    torch.manual_seed(2)
    torch.rand(3)
    assert same_tensors(make(seed=5), first)
    assert not same_tensors(make(seed=6), first)
    assert same_tensors(make(), make(seed=0))


# weights from a file


def plain(state):
    return state


def under_a_key(state):
    return {"epoch": 3, "state_dict": state}


def of_data_parallel(state):
    return {f"module.{name}": tensor for name, tensor in state.items()}


FORMATS = {
    "plain": plain,
    "under a key": under_a_key,
    "data parallel": of_data_parallel,
    "both": lambda state: under_a_key(of_data_parallel(state)),
}


def own_state(model):
    """What a file of weights holds: torchvision's names where it is torchvision's model."""
    return (model.model if isinstance(model, TorchvisionClassifier) else model).state_dict()


@every_small
@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS.keys())
def test_weights_round_trip(tmp_path, make, form):
    trained = make(seed=5)
    torch.save(form(own_state(trained)), tmp_path / "weights.pth")
    loaded = make(seed=6, weights=str(tmp_path / "weights.pth"))
    assert same_tensors(loaded, trained)
    state = torch.get_rng_state()
    make(weights=str(tmp_path / "weights.pth"))
    assert torch.equal(torch.get_rng_state(), state)


def test_weights_are_taken_to_expect_normalised_images(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(own_state(TorchvisionClassifier("squeezenet1_1")), path)
    for given, used in ((None, True), (True, True), (False, False)):
        model = TorchvisionClassifier("squeezenet1_1", weights=str(path), normalize=given)
        assert model.normalize is used


def test_published_names_of_densenet(tmp_path):
    """The file that torchvision publishes has dots where its modules' names have none."""
    trained = TorchvisionClassifier("densenet121", num_classes=2, seed=5)
    state = {
        name.replace("norm1.", "norm.1.")
        .replace("norm2.", "norm.2.")
        .replace("conv1.", "conv.1.")
        .replace("conv2.", "conv.2."): tensor
        for name, tensor in own_state(trained).items()
        if "num_batches_tracked" not in name
    }
    torch.save(state, tmp_path / "densenet121.pth")
    loaded = TorchvisionClassifier(
        "densenet121", num_classes=2, seed=6, weights=str(tmp_path / "densenet121.pth")
    )
    assert same_tensors(loaded, trained)


def save_garbage(path):
    path.write_bytes(b"these are no weights\n" * 100)


def save_broken(path):
    torch.save(LeNet().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-2000])


def save_whole_model(path):
    torch.save(LeNet(), path)


def saved(content):
    return lambda path: torch.save(content, path)


def fails(save, reason):
    return pytest.param(save)


NO_MAPPING = "what is no mapping of tensors ends in an AttributeError"


@pytest.mark.parametrize(
    "save",
    [
        lambda path: None,
        lambda path: path.mkdir(),
        lambda path: path.write_bytes(b""),
        save_garbage,
        save_broken,
        saved({"state_dict": {}}),
        saved({"weight": torch.zeros(3)}),
        saved(LeNet(num_classes=7).state_dict()),
        saved(LeNet(image_size=64).state_dict()),
        saved(ConvNet().state_dict()),
        saved({**LeNet().state_dict(), "extra": torch.zeros(2)}),
        fails(save_whole_model, "torch's message has colours in its first line"),
        fails(saved(torch.zeros(3)), NO_MAPPING),
        fails(saved([torch.zeros(3)]), NO_MAPPING),
        fails(saved({0: torch.zeros(3)}), NO_MAPPING),
        fails(saved({"state_dict": 3}), NO_MAPPING),
    ],
    ids=[
        "missing",
        "folder",
        "empty file",
        "garbage",
        "broken off",
        "no tensors",
        "one tensor",
        "other classes",
        "other image size",
        "other model",
        "one too many",
        "whole model",
        "tensor",
        "list",
        "numbers for names",
        "number for tensors",
    ],
)
def test_wrong_weights_are_named_in_one_line(tmp_path, save):
    path = tmp_path / "weights.pth"
    save(path)
    with pytest.raises(InputError) as error:
        LeNet(weights=str(path))
    message = str(error.value)
    assert str(path) in message
    assert message.isprintable()
    assert len(message) < 600


def test_shapes_that_do_not_fit_are_named(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(LeNet(num_classes=7).state_dict(), path)
    with pytest.raises(InputError, match=r"do not fit the model.*classifier"):
        LeNet(num_classes=10, weights=str(path))


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize(
    "save", [torch.save, partial(pickle.dump, protocol=2)], ids=["torch", "pickle"]
)
def test_weights_file_runs_no_code(tmp_path, save):
    path, proof = tmp_path / "weights.pth", tmp_path / "proof"
    with open(path, "wb") as file:
        save({"weight": Bomb(proof)}, file)
    with pytest.raises(InputError, match="no readable weights file"):
        LeNet(weights=str(path))
    assert not proof.exists()


def test_trained_squeezenet_classifies():
    weights = str(real_data("weights/squeezenet1_0.pth"))
    index = json.loads(real_data("imagenet-sample-class-index.json").read_text())
    paths = sorted(real_data("imagenet-sample").glob("*/*"))[::45]
    images, labels = [], []
    for path in paths:
        pixels = np.array(Image.open(path).convert("RGB").crop((16, 16, 240, 240)))
        images.append(torch.from_numpy(pixels).permute(2, 0, 1) / 255)
        labels.append(index[path.parent.name][0])
    model = TorchvisionClassifier("squeezenet1_0", weights=weights).eval()
    with torch.no_grad():
        best = model(torch.stack(images)).topk(5).indices
    hits = best == torch.tensor(labels)[:, None]
    assert len(paths) == 20
    assert hits[:, 0].sum() >= 10, "published: 58 % top-1; without normalisation about a quarter"
    assert hits.any(1).sum() >= 14


# images that pass through


@pytest.mark.parametrize(
    ("name", "size", "takes"),
    [
        ("vit_b_16", 224, True),
        ("vit_b_16", 32, False),
        ("vit_b_16", 225, False),
        ("resnet18", 32, True),
        ("vgg16", 32, True),
        ("vgg16", 16, False),
        ("densenet121", 16, False),
        ("inception_v3", 32, False),
    ],
)
def test_check_input_of_classifiers(name, size, takes):
    model = on_meta(name)
    if takes:
        model.check_input((3, size, size))
        return
    with pytest.raises(InputError) as error:
        model.check_input((3, size, size))
    message = str(error.value)
    assert "\n" not in message
    assert name in message
    assert f"3x{size}x{size}" in message
    assert "images of another size" in message


def test_check_input_of_channels():
    for model in (LeNet(), ConvNet(), on_meta("resnet18")):
        with pytest.raises(InputError, match="1x32x32"):
            model.check_input((1, 32, 32))


@pytest.mark.parametrize("size", [8, 28, 40, 224])
def test_check_input_of_lenet_of_another_size(size):
    model = LeNet(image_size=32)
    model.check_input((3, 32, 32))
    with pytest.raises(
        InputError, match=f"LeNet does not take images of 3x{size}x{size}: "
    ) as error:
        model.check_input((3, size, size))
    assert "\n" not in str(error.value)


def test_check_input_of_height_and_width():
    ConvNet().check_input((3, 32, 48))
    with pytest.raises(InputError, match="3x32x48"):
        LeNet(image_size=32).check_input((3, 32, 48))


def test_check_input_takes_the_models_own_precision():
    LeNet().double().check_input((3, 32, 32))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("size", [32, 2])
def test_check_input_does_not_change_the_model(training, size):
    model = ConvNet(width=4).train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    try:
        model.check_input((3, size, size))
    except InputError:
        assert size == 2
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(module.training == training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_check_input_keeps_the_modes_of_single_layers():
    model = ConvNet(width=4)
    model.features[1].eval()
    model.check_input((3, 32, 32))
    assert model.training
    assert not model.features[1].training
