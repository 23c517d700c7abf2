"""What convolutions saw, from the spans of their gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_recon.attacks.features.patch_spans import read_maps, unexplained
from lightning_recon.functional.stateless import watched


def network(width=40, padding=1):
    """Return a chain that ends in a convolution of ``width`` channels and 6x6 places."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, width, 3, padding=padding, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(width * (4 + 2 * padding) ** 2, 4),
    )


def gradient(net, images):
    labels = torch.arange(len(images)) % 4
    net(images)
    parts = torch.autograd.grad(F.cross_entropy(net(images), labels), list(net.parameters()))
    return dict(zip((name for name, _ in net.named_parameters()), parts, strict=True))


def distances(net, update, images):
    """Return by name how much of what convolutions see is not in what was read."""
    seen = read_maps(net, update, torch.rand_like(images), len(images))
    with watched([net.get_submodule(one.name) for one in seen]) as maps, torch.no_grad():
        net(images)
    return {one.name: unexplained(maps[net.get_submodule(one.name)].double(), one) for one in seen}


def images(number=1):
    return torch.rand(number, 3, 12, 12, generator=torch.Generator().manual_seed(1))


class TestReadMaps:
    def test_a_span_of_all_patches(self):
        net = network(width=80)
        found = distances(net, gradient(net, images()), images())
        assert found.keys() == {"3"}
        assert found["3"].max() < 1e-10

    def test_a_span_of_some_patches(self):
        net = network(width=80)
        with torch.no_grad():  # most channels are shut: fewer rows than the 36 places
            net[3].weight[30:] = -net[3].weight[30:].abs()
        update = gradient(net, images())
        assert 0 < int((update["3.weight"].flatten(1).norm(dim=1) > 0).sum()) < 36
        found = distances(net, update, images())
        assert found.keys() == {"3"}
        assert found["3"].max() < 1e-8

    def test_two_images(self):
        net = network(width=160, padding=0)  # 16 places of each
        found = distances(net, gradient(net, images(2)), images(2))
        assert found["3"].max() < 1e-10

    def test_batch_norm_of_the_batch(self):
        torch.manual_seed(0)
        net = network(width=80)
        net.insert(4, nn.BatchNorm2d(80))
        net.insert(1, nn.BatchNorm2d(16))
        update = gradient(net.train(), images())
        found = distances(net, update, images())
        assert found.keys() == {"4"}
        assert found["4"].max() < 1e-10

    @pytest.mark.parametrize("size", [1e-3, 1.0])
    def test_noise_hides_them(self, size):
        net = network(width=80)
        update = {
            name: part + size * part.std() * torch.randn(part.shape)
            for name, part in gradient(net, images()).items()
        }
        assert read_maps(net, update, images(), 1) == []

    def test_fewer_channels_than_half_the_places(self):
        net = network(width=16)
        assert read_maps(net, gradient(net, images()), images(), 1) == []

    def test_the_network_stays_as_it_was(self):
        net = network(width=80).eval()
        before = {name: part.clone() for name, part in net.state_dict().items()}
        read_maps(net, gradient(net, images()), images(), 1)
        assert all(torch.equal(part, before[name]) for name, part in net.state_dict().items())
        assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in net)
        assert not net.training
