"""Any module as a target, under its own names; outputs that are no logits are refused."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
import torchvision
from contract_rows import random_batch
from torch import nn

from lightning_recon import targets
from lightning_recon.attacks import InvertingGradients, LinearLayerInversion, RobbingTheFed
from lightning_recon.clients import DPSGD, Aggregate, FedAvg, FedSGD
from lightning_recon.errors import InputError
from lightning_recon.functional.stateless import sent_buffers
from lightning_recon.targets import ModuleTarget
from lightning_recon.updates import DataSpec, PrivateBatch


class Net(nn.Module):
    """Batch norm, a parameter of its own, and dropout that asks for the mode."""

    def __init__(self, num_classes: int = 5, channels: int = 3):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 4, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(4)
        self.scale = nn.Parameter(torch.rand(4, 1, 1))
        self.fc = nn.Linear(4 * 4 * 4, num_classes)
        self.seen = []

    def forward(self, images):
        self.seen.append(self.training)
        features = F.relu(self.bn1(self.conv1(images))) * self.scale
        features = F.adaptive_avg_pool2d(features, 4).flatten(1)
        return self.fc(F.dropout(features, 0.5, training=self.training))


class Changed(Net):
    """Gives something else than logits."""

    def __init__(self, change, num_classes=5):
        super().__init__(num_classes)
        self.change = change

    def forward(self, images):
        return self.change(self, super().forward(images))


class Output:
    """As some libraries wrap what they give."""

    def __init__(self, logits):
        self.logits = logits


def line(error):
    text = str(error.value)
    assert text.isprintable()
    assert len(text) < 500
    return text


# --- what the target is ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (Net, (3, 32, 32)),
        (partial(Net, channels=1), (1, 28, 28)),
        (Net, (3, 64, 48)),
        (partial(torchvision.models.shufflenet_v2_x0_5, num_classes=5), (3, 64, 64)),
        (partial(torchvision.models.squeezenet1_1, num_classes=5), (3, 64, 48)),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), (3, 2, 2)),
    ],
    ids=["batch norm", "grey", "64x48", "torchvision", "torchvision 64x48", "sequential"],
)
def test_a_module_is_attacked_under_its_own_names(make, shape):
    net = make()
    expected = copy.deepcopy(net)
    attack = InvertingGradients(ModuleTarget(net, 5), iterations=2)
    attack.bind(DataSpec(shape, 5, 2), torch.empty(0, *shape))
    batch = PrivateBatch(torch.rand(2, *shape), torch.tensor([1, 4]), *random_batch(2)[2:])
    observation = attack.federation.play(batch, 0)
    assert list(observation.update) == [name for name, _ in net.named_parameters()]
    with attack.computing():
        found = attack.reconstruct(observation)
    assert found.images.shape == (2, *shape)
    assert all(parameter.requires_grad for parameter in net.parameters()), "yours stays as it is"
    for name, tensor in expected.state_dict().items():
        assert torch.equal(net.state_dict()[name], tensor)


def test_one_of_timm():
    timm = pytest.importorskip("timm")
    target = ModuleTarget(lambda: timm.create_model("resnet10t", num_classes=5), 5)
    target.check_input((3, 64, 64))
    assert "conv1.0.weight" in dict(target.named_parameters())


def test_gradient_is_that_of_the_module():
    """Of its own loop, bit by bit, whatever stands between."""
    net = Net().eval()
    batch = random_batch(3)
    loss = F.cross_entropy(net((batch.images - 0.5) / 0.25), batch.labels)
    gradients = torch.autograd.grad(loss, net.parameters())
    target = ModuleTarget(net, 5, mean=0.5, std=(0.25, 0.25, 0.25))
    update = FedSGD(mode="eval")(target, batch, seed=0)
    for (name, _), gradient in zip(net.named_parameters(), gradients, strict=True):
        assert torch.equal(update[name], gradient)


@pytest.mark.parametrize("kind", [copy.deepcopy, lambda target: target.double()])
def test_module_and_target_stay_one(kind):
    target = kind(ModuleTarget(Net, 5, std=0.5))
    images = torch.rand(2, 3, 8, 8).to(target.fc.weight)
    with torch.no_grad():
        target.eval()(images)
        target.train()(images)
        assert target._module.seen == [False, True]
        target.set_submodule("fc", nn.Identity())
        target.scale.zero_()
        assert torch.equal(target.eval()(images), images.new_zeros(2, 64))


def test_all_defended_targets_take_it():
    for defended in (targets.Dropout(ModuleTarget(Net, 5)), ModuleTarget(Net, 5)):
        target = targets.VariationalBottleneck(defended, 4)
        target.check_input((3, 8, 8))
        assert FedSGD()(target, random_batch(2), seed=0)


@pytest.mark.parametrize("client", [DPSGD(1.0), FedAvg(0.1, epochs=2), Aggregate(FedSGD(), 2)])
def test_all_protocols_run_it(client):
    target = ModuleTarget(Net, 5)
    update, buffers = client.run(target, random_batch(4), seed=0)
    assert list(update) == [name for name, _ in Net().named_parameters()]
    assert set(sent_buffers(target)) <= set(buffers)
    assert target.state_dict().keys() == Net().state_dict().keys()


def test_weights_depend_on_the_seed_alone():
    first, same, other = (ModuleTarget(Net, 5, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.fc.weight, same.fc.weight)
    assert not torch.equal(first.fc.weight, other.fc.weight)


def test_weights_come_from_a_file(tmp_path):
    net = Net()
    torch.save({"model": net.state_dict()}, tmp_path / "net.pt")
    target = ModuleTarget(Net, 5, weights=str(tmp_path / "net.pt"))
    assert torch.equal(target.fc.weight, net.fc.weight)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_wrappers_are_taken_off(wrap):
    assert "conv1.weight" in dict(ModuleTarget(wrap(Net()), 5).named_parameters())


def test_what_is_not_trained_is_not_sent():
    net = Net()
    net.conv1.requires_grad_(False)
    target = ModuleTarget(net, 5)
    update = FedSGD()(target, random_batch(2), seed=0)
    assert list(update) == ["scale", "bn1.weight", "bn1.bias", "fc.weight", "fc.bias"]
    assert target.state_dict().keys() == net.state_dict().keys()
    every = ModuleTarget(net.requires_grad_(False), 5)
    assert len(list(every.parameters())) == len(list(net.parameters()))


# --- what does not fit -------------------------------------------------------------------------


class NamedName(Net):
    def __init__(self):
        super().__init__()
        self.name = nn.Linear(2, 2)


def broken():
    raise ValueError("of no\nuse")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"module": lambda: 3}, "gave a int"),
        ({"module": broken}, "of no use"),
        ({"module": partial(Net, nonsense=3)}, "nonsense"),
        ({"module": nn.Flatten}, "no parameters"),
        ({"module": nn.LazyLinear(5)}, "lazy layers"),
        ({"module": NamedName}, "named name"),
        ({"num_classes": 1}, "num_classes"),
        ({"std": 0.0}, "above 0"),
        ({"mean": [0.1, 0.2, 0.3], "std": [1.0, 1.0]}, "3 numbers and std 2"),
        ({"mean": float("nan")}, "must hold numbers"),
        ({"weights": "nowhere.pt"}, "no weights file"),
    ],
)
def test_what_cannot_be_made_is_told_in_one_line(settings, words):
    with pytest.raises(InputError) as error:
        ModuleTarget(**{"module": Net, "num_classes": 5, **settings})
    assert words in line(error)


def test_normalisation_of_other_channels_is_refused():
    target = ModuleTarget(partial(Net, channels=1), 5, mean=(0.5, 0.5, 0.5))
    with pytest.raises(InputError, match="3 channels, but the images have 1"):
        target.check_input((1, 28, 28))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda net, logits: (logits, logits), "gives a tuple, not a tensor"),
        (lambda net, logits: [logits], "gives a list"),
        (lambda net, logits: {"logits": logits}, "gives a dict"),
        (lambda net, logits: Output(logits), "gives a Output"),
        (lambda net, logits: logits[:, :3], "gives 2x3 for a batch of 2, not 2x5"),
        (lambda net, logits: logits.repeat(1, 2), "set num_classes to 10"),
        (lambda net, logits: logits[:, :, None, None], "flatten its output"),
        (lambda net, logits: logits[:, 0], "gives 2 for"),
        (lambda net, logits: logits.mean(), "gives a number for"),
        (lambda net, logits: logits.mean(0, keepdim=True), "gives 1x5 for"),
    ],
)
def test_what_are_no_logits_is_refused(change, words):
    with pytest.raises(InputError) as error:
        ModuleTarget(Changed(change), 5).check_input((3, 8, 8))
    assert words in line(error)


class TwoInputs(Net):
    def forward(self, images, lengths):
        return super().forward(images)


class OfAnotherSize(Net):
    def forward(self, images):
        return super().forward({8: images}[images.shape[-1]])


@pytest.mark.parametrize(("kind", "words"), [(TwoInputs, "lengths"), (OfAnotherSize, "9")])
def test_what_takes_no_images_is_told_in_one_line(kind, words):
    with pytest.raises(InputError, match="does not take images of 3x9x9") as error:
        ModuleTarget(kind, 5).check_input((3, 9, 9))
    assert words in line(error)


def test_a_second_output_of_training_is_refused():
    """An auxiliary head, which shows in the client's mode alone."""
    target = ModuleTarget(Changed(lambda net, x: (x, x) if net.training else x), 5)
    spec = DataSpec((3, 8, 8), 5, 2)
    InvertingGradients(target, client=FedSGD(mode="eval")).bind(spec)
    with pytest.raises(InputError, match="in the client's mode gives a tuple"):
        InvertingGradients(target).bind(spec)


class OneByOne(Net):
    """Batch norm on a map of one pixel."""

    def forward(self, images):
        return self.fc(
            self.bn1(self.conv1(images).mean((2, 3), keepdim=True)).repeat(1, 16, 1, 1).flatten(1)
        )


SPEC = DataSpec((3, 8, 8), 5, 1)


@pytest.mark.parametrize(
    ("client", "batch_size", "is_refused"),
    [
        (FedSGD(), 1, True),
        (FedSGD(), 2, False),
        (FedSGD(mode="eval"), 1, False),
        (FedAvg(0.1, minibatch_size=2), 5, True),
        (FedAvg(0.1, minibatch_size=2), 4, False),
        (FedAvg(0.1, minibatch_size=1), 4, True),
        (FedAvg(0.1), 4, False),
        (Aggregate(FedSGD(), 4), 4, True),
        (Aggregate(FedSGD(), 2), 4, False),
        (DPSGD(1.0), 1, False),
    ],
)
@pytest.mark.parametrize("kind", [LinearLayerInversion, RobbingTheFed])
def test_batch_norm_of_a_single_image(kind, client, batch_size, is_refused):
    attack = kind(ModuleTarget(OneByOne, 5), client=client)
    spec = SPEC._replace(max_batch_size=batch_size)
    if not is_refused:
        attack.bind(spec)
        return
    with pytest.raises(InputError) as error:
        attack.bind(spec)
    text = line(error)
    assert "a single image of 3x8x8" in text
    assert "set the client's mode to eval, or take larger images or batches" in text


def test_the_check_changes_nothing():
    target = ModuleTarget(Net, 5)
    before = copy.deepcopy(target.state_dict())
    state = torch.get_rng_state()
    InvertingGradients(target).bind(SPEC)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())
