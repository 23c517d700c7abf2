"""What the last convolution saw of an image, read from its gradient, and the image from that."""

import pytest
import torch
from attack_helpers import bind
from torch import nn

import lightning_recon.attacks.matching.last_maps as last_maps
from lightning_recon.attacks import GaussNewtonInversion
from lightning_recon.attacks.matching.equations import Equations
from lightning_recon.attacks.matching.from_maps import read_last_maps
from lightning_recon.clients import FedSGD
from lightning_recon.defenses import GaussianNoise, TopK
from lightning_recon.functional.image_quality import psnr
from lightning_recon.targets import ModuleTarget
from lightning_recon.targets.base import seeded
from lightning_recon.updates import PrivateBatch

SIZE = 16


class Shortcut(nn.Module):
    """Adds what it sees to what its layer makes of it."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return x + self.layer(x)


def network(channels=20, last=None):
    """Three blocks without kinks; the third convolution's output has 4x4 places."""
    with seeded(0):
        blocks = []
        for before, after in ((3, 6), (6, 12), (12, channels)):
            blocks += [nn.Conv2d(before, after, 3, padding=1), nn.SiLU(), nn.AvgPool2d(2)]
        if last is not None:
            blocks[6:] = last()
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(10)]
        module = nn.Sequential(*blocks, *head)
        module(torch.rand(1, 3, SIZE, SIZE))
    return ModuleTarget(module, 10)


def natural(number, seed=0):
    coarse = torch.rand(number, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, SIZE, mode="bicubic").clamp(0, 1)


def observed(target, number=1, **settings):
    """An attack, what it observes of a client, and the client's images."""
    attack = bind(
        GaussNewtonInversion(target, FedSGD(mode="eval"), **settings), natural(40), number
    )
    images = natural(number, seed=7)
    labels = torch.arange(number)
    batch = PrivateBatch(images, labels, torch.ones_like(images[:, :1]) > 0, labels)
    return attack, attack.federation.play(batch, 0), images


def seen(target, number=1, **settings):
    """What is read of the maps, and the network's own."""
    attack, observation, images = observed(target, number, **settings)
    evidence = attack.reader.evidence(observation, observation.labels, {})
    equations = Equations(evidence, images.double())
    found = read_last_maps(equations, torch.rand_like(images))
    if found is None:
        return None, None
    payload = equations.network(images.double())
    with torch.no_grad():
        return found, found.cut.seen(payload, images.double())


class TestReadMaps:
    def test_maps_are_read_as_far_as_rounding_leaves_them(self):
        found, truth = seen(network())
        errors = (found.maps - truth).flatten() @ found.axes / found.errors
        assert (found.maps - truth).norm() < 0.01 * truth.norm()
        assert 0.3 < errors.square().mean().sqrt() < 3

    def test_the_span_alone_tells_them_up_to_a_factor(self):
        target = network(48)
        found, truth = seen(target)
        _, observation, _ = observed(target)
        direction = found.cut.direction(observation.update[found.cut.convolution.weight])
        assert (direction * truth).sum().abs() > 0.98 * truth.norm()

    @pytest.mark.parametrize(
        "target",
        [
            network(15),  # fewer channels than places
            network(last=lambda: [nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.SiLU()]),
            network(last=lambda: [nn.Conv2d(12, 20, 2, stride=2), nn.SiLU()]),
            network(last=lambda: [nn.SiLU()]),  # 64 places behind 12 channels
            ModuleTarget(nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, 10)), 10),
        ],
        ids=["channels", "depthwise", "apart", "places", "linear"],
    )
    def test_where_the_span_does_not_tell_nothing_is_read(self, target):
        assert seen(target) == (None, None)

    def test_what_a_shortcut_passes_by_is_not_cut(self):
        last = [nn.AvgPool2d(2), nn.Conv2d(12, 20, 1), Shortcut(nn.Conv2d(20, 20, 3, padding=1))]
        assert seen(network(last=lambda: [*last, nn.SiLU()])) == (None, None)

    def test_short_memory_is_no_reason_to_end(self, monkeypatch):
        def short(*_):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

        monkeypatch.setattr(last_maps, "jacobian", short)
        assert seen(network()) == (None, None)

    def test_batches_and_changed_updates_are_not_read(self):
        assert seen(network(), 2) == (None, None)
        assert seen(network(), defenses=[TopK(0.9)]) == (None, None)
        assert seen(network(), defenses=[GaussianNoise(1e-3)], adaptive=True) == (None, None)


class TestAttack:
    def test_an_image_is_read_from_the_maps(self):
        attack, observation, images = observed(network())
        with attack.computing():
            found = attack.reconstruct(observation)
        assert found.notes["maps"] == 1
        assert psnr(found.images, images).min() > 50  # without them 32
