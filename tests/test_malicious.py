"""Malicious servers against rounds of several clients, and what they must not find."""

import pytest
import torch

from lightning_recon.attacks import Loki, RobbingTheFed
from lightning_recon.audit.scores import exact_pairs
from lightning_recon.clients import Aggregate, FedAvg, FedSGD
from lightning_recon.errors import InputError
from lightning_recon.targets import LeNet
from lightning_recon.updates import DataSpec, PrivateBatch

SIZE, CLASSES = 8, 10
SHAPE = (3, SIZE, SIZE)


def pictures(number, seed=0):
    """Images of 8 bits and of all brightnesses."""
    generator = torch.Generator().manual_seed(seed)
    light = 0.5 + 0.6 * (torch.rand(number, 1, 1, 1, generator=generator) - 0.5)
    images = (light + 0.2 * torch.randn(number, *SHAPE, generator=generator)).clamp(0, 1)
    return (255 * images).round() / 255


def batch_of(number, seed=0):
    labels = torch.arange(number) % CLASSES
    return PrivateBatch(pictures(number, seed), labels, torch.ones(number), torch.arange(number))


def attacked(attack, batch):
    """What the server sees of a round, and what it makes of it."""
    attack.bind(DataSpec(SHAPE, CLASSES, len(batch.images)), pictures(200, 1))
    seen = attack.federation.play(batch, 0)
    return seen, attack.reconstruct(seen)


def num_exact(found, images):
    return int(exact_pairs(found.double(), images.double()).any(0).sum())


def lenet():
    return LeNet(CLASSES, SIZE)


class TestLoki:
    @pytest.mark.parametrize(
        "client",
        [FedSGD, lambda: FedAvg(0.01, epochs=2, minibatch_size=2)],
        ids=["gradient", "local steps"],
    )
    def test_every_image_is_found_with_its_client(self, client):
        batch = batch_of(24)
        attack = Loki(lenet(), Aggregate(client(), 6), num_bins=64)
        seen, found = attacked(attack, batch)
        for place, images in enumerate(batch.images.chunk(6)):
            own = attack.read_client(seen, place)[0].images
            others = torch.cat([batch.images[: 4 * place], batch.images[4 * place + 4 :]])
            assert num_exact(own, images) >= 2
            assert num_exact(own, others) == 0
        assert num_exact(found.images, batch.images) >= 20
        assert len(found.images) <= 24

    def test_bins_of_one_model_for_all_hold_several_images(self):
        batch = batch_of(24)
        _, found = attacked(RobbingTheFed(lenet(), Aggregate(FedSGD(), 6), num_bins=16), batch)
        _, apart = attacked(Loki(lenet(), Aggregate(FedSGD(), 6)), batch)
        assert num_exact(apart.images, batch.images) >= num_exact(found.images, batch.images) + 8

    def test_other_clients_kernels_are_zero(self):
        attack = Loki(lenet(), Aggregate(FedSGD(), 3))
        seen, _ = attacked(attack, batch_of(6))
        sent = [seen.payload.for_client(place) for place in range(3)]
        images = pictures(2)
        for place, version in enumerate(sent):
            maps = version.kernels(images).view(2, 3, 4, SIZE, SIZE)
            torch.testing.assert_close(maps[:, place, :3], images)
            assert not maps[:, [other for other in range(3) if other != place]].any()
            assert [name for name, _ in version.named_parameters()] == list(seen.update)

    def test_a_client_that_sends_nothing_shows_nothing(self):
        attack = Loki(lenet(), Aggregate(FedSGD(), 3))
        attacked(attack, batch_of(6))
        noise = attack.federation.play_noise(torch.zeros(6, dtype=torch.int64), 0)
        assert len(attack.reconstruct(noise).images) == 0

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"num_bins": 1}, "num_bins"),
            ({"scaling": 0.0}, "scaling"),
            ({"gain": -1.0}, "gain"),
        ],
    )
    def test_settings_out_of_range(self, settings, words):
        with pytest.raises(InputError, match=words):
            Loki(lenet(), **settings)

    def test_too_few_public_images_and_too_many_rows(self):
        with pytest.raises(InputError, match="public images"):
            Loki(lenet()).bind(DataSpec(SHAPE, CLASSES, 4), pictures(1))
        wide = Loki(lenet(), Aggregate(FedSGD(), 2**10), num_bins=2**11)
        with pytest.raises(InputError, match="num_bins times clients"):
            wide.bind(DataSpec(SHAPE, CLASSES, 2**10), pictures(4))
