"""Malicious servers against rounds of several clients, and what they must not find."""

import pytest
import torch
import torch.nn.functional as F

from lightning_recon.attacks import (
    ExactInversion,
    Fishing,
    Loki,
    ModelInconsistency,
    RobbingTheFed,
    ScaleMIA,
    Seer,
)
from lightning_recon.attacks.features.linear_stack import run_features
from lightning_recon.attacks.seer import shifted_bright, slopes
from lightning_recon.audit.scores import exact_pairs
from lightning_recon.clients import Aggregate, FedAvg, FedSGD
from lightning_recon.errors import InputError
from lightning_recon.observation import Mark
from lightning_recon.targets import MLP, LeNet, ROGLeNet
from lightning_recon.updates import DataSpec, PrivateBatch

SIZE, CLASSES = 8, 10
SHAPE = (3, SIZE, SIZE)


def pictures(number, seed=0):
    """Smooth images of 8 bits and of all brightnesses."""
    generator = torch.Generator().manual_seed(seed)
    light = 0.5 + 0.6 * (torch.rand(number, 1, 1, 1, generator=generator) - 0.5)
    rough = 0.2 * torch.randn(number, 3, 3, 3, generator=generator)
    images = light + F.interpolate(rough, SHAPE[1:], mode="bilinear")
    return (255 * images.clamp(0, 1)).round() / 255


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
            maps = version.kernels(images).view(2, 3, 5, SIZE, SIZE)
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


def rog_lenet(**settings):
    return ROGLeNet(CLASSES, SIZE, **{"num_features": 512, "bias": True, **settings})


class TestScaleMIA:
    def test_latent_vectors_come_back_through_a_sum(self):
        batch = batch_of(16)
        attack = ScaleMIA(rog_lenet(), Aggregate(FedSGD(), 4), kernel_size=1, decoder_steps=0)
        seen, found = attacked(attack, batch)
        with torch.no_grad():
            true = run_features(attack.target, attack.stack, batch.images)
        latent, score = attack.read_latent(seen)
        error = torch.cdist(true, latent).amin(1) / true.norm(dim=1)
        assert int((error < 1e-3).sum()) >= 11
        assert 11 <= len(found.images) <= 16
        assert (score.diff() >= 0).all()
        nearest = torch.cdist(batch.images.flatten(1), found.images.flatten(1))
        grey = (batch.images - pictures(200, 1).mean(0)).flatten(1).norm(dim=1)
        assert nearest.amin(1).median() < 0.6 * grey.median()

    def test_a_vector_of_two_samples_falls_out_of_its_bin(self):
        attack = ScaleMIA(rog_lenet(num_features=8), kernel_size=1, decoder_steps=0)
        seen, found = attacked(attack, batch_of(16))
        latent, score = attack.read_latent(seen)
        with torch.no_grad():
            true = run_features(attack.target, attack.stack, batch_of(16).images)
        is_one = torch.cdist(latent, true).amin(1) < 1e-3 * latent.norm(dim=1)
        assert score[~is_one].sum() > 0
        assert not score[is_one].any()
        assert len(found.images) == len(latent)

    def test_convolutions_stay_as_they_are(self):
        attack = ScaleMIA(rog_lenet(), kernel_size=1, decoder_steps=0)
        seen, _ = attacked(attack, batch_of(4))
        sent, own = seen.payload.state_dict(), attack.target.state_dict()
        changed = {name for name in own if not torch.equal(own[name], sent[name])}
        assert changed == {"hidden.weight", "hidden.bias", "classifier.weight"}

    def test_nothing_sent_is_nothing_found(self):
        attack = ScaleMIA(rog_lenet(), kernel_size=1, decoder_steps=0)
        attacked(attack, batch_of(4))
        noise = attack.federation.play_noise(torch.zeros(4, dtype=torch.int64), 0)
        assert len(attack.reconstruct(noise).images) == 0

    @pytest.mark.parametrize(
        ("target", "words"),
        [
            (lenet, "one linear layer"),
            (lambda: rog_lenet(bias=False), "no bias"),
        ],
    )
    def test_a_target_without_room_for_bins(self, target, words):
        with pytest.raises(InputError, match=words):
            attacked(ScaleMIA(target()), batch_of(4))

    def test_settings_and_public_images(self):
        with pytest.raises(InputError, match="odd"):
            ScaleMIA(rog_lenet(), kernel_size=4)
        with pytest.raises(InputError, match="num_public"):
            ScaleMIA(rog_lenet()).bind(DataSpec(SHAPE, CLASSES, 4), pictures(3))


def seer(client=None, **settings):
    """Trained for rounds of eight, on a small network."""
    settings = {"num_samples": 8, "steps": 400, "learning_rate": 5e-3, **settings}
    return Seer(rog_lenet(num_features=64), client, kernel_size=1, decoder_steps=0, **settings)


def rounds_of_one_bright(threshold, number):
    """Batches of eight, one of whose images is brighter than a threshold by some margin."""
    light = pictures(400, 5)
    brightness = light.mean((1, 2, 3))
    bright = light[brightness > threshold + 0.02][:number]
    dark = light[brightness < threshold - 0.02]
    for place, one in enumerate(bright):
        images = torch.cat([dark[7 * place : 7 * place + 7], one[None]])
        yield PrivateBatch(images, torch.arange(8), torch.ones(8), torch.arange(8))


class TestSeer:
    @pytest.mark.parametrize("clients", [1, 4])
    def test_the_bright_sample_of_a_sum_comes_back(self, clients):
        attack = seer(Aggregate(FedSGD(), clients))
        attack.bind(DataSpec(SHAPE, CLASSES, 8), pictures(400, 1))
        hits = 0
        for batch in rounds_of_one_bright(attack.threshold, 10):
            seen = attack.federation.play(batch, 0)
            with torch.no_grad():
                true = run_features(attack.target, attack.stack, batch.images)
            apart = (attack.read_latent(seen) - true).norm(dim=1)
            hits += int(apart.argmin()) == 7 and bool(apart[7] < 0.3 * apart[:7].min())
        assert hits >= 6  # of 10; by chance 1 / 8 is nearest

    def test_a_direction_of_an_untrained_head_mixes_them(self):
        attack = seer(steps=20)
        attack.bind(DataSpec(SHAPE, CLASSES, 8), pictures(400, 1))
        hits = 0
        for batch in rounds_of_one_bright(attack.threshold, 10):
            with torch.no_grad():
                true = run_features(attack.target, attack.stack, batch.images)
            apart = (attack.read_latent(attack.federation.play(batch, 0)) - true).norm(dim=1)
            hits += int(apart.argmin()) == 7 and bool(apart[7] < 0.3 * apart[:7].min())
        assert hits <= 1

    def test_nothing_sent_is_nothing_found(self):
        attack = seer(steps=50)
        attacked(attack, batch_of(8))
        noise = attack.federation.play_noise(torch.zeros(8, dtype=torch.int64), 0)
        assert len(attack.reconstruct(noise).images) == 0

    @pytest.mark.parametrize("sharpness", [3.0, float("inf")])
    def test_slopes_are_the_gradient_by_the_first_outputs(self, sharpness):
        attack = seer(steps=20)
        attack.bind(DataSpec(SHAPE, CLASSES, 8), pictures(40, 1))
        stack, head = attack.stack, attack._secret[0].head
        with torch.no_grad():
            features = run_features(attack.target, stack, pictures(5))
        labels = torch.arange(5)
        first = F.linear(features, head[stack.weights[0]], head[stack.biases[0]])
        first.requires_grad_()
        passed = first.relu() if sharpness == float("inf") else F.softplus(first, sharpness)
        logits = F.linear(passed, head[stack.weights[1]], head[stack.biases[1]])
        wanted = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), first)[0]
        torch.testing.assert_close(slopes(stack, head, features, labels, sharpness), wanted)

    def test_shifted_images_are_bright_and_images(self):
        images = pictures(50)
        threshold = float(images.mean((1, 2, 3)).quantile(0.9))
        bright = shifted_bright(images, threshold, 0)
        assert float(bright.min()) >= 0
        assert float(bright.max()) <= 1
        assert (bright.mean((1, 2, 3)) > threshold - 1e-3).all()

    def test_settings_targets_and_public_images(self):
        for settings in ({"steps": 0}, {"learning_rate": 0.0}, {"num_samples": 1}):
            with pytest.raises(InputError, match=next(iter(settings))):
                seer(**settings)
        with pytest.raises(InputError, match="num_public"):
            seer().bind(DataSpec(SHAPE, CLASSES, 8), pictures(7))
        with pytest.raises(InputError, match="one linear layer"):
            attacked(Seer(lenet()), batch_of(8))


def below(attack, seen):
    """What was observed of the layers below the last one, as one vector."""
    return torch.cat(
        [part.flatten() for name, part in seen.update.items() if name not in attack.last]
    )


def share_of(batch, places):
    return PrivateBatch(*(part[places] for part in batch))


class TestFishing:
    @pytest.mark.parametrize("client", [FedSGD, lambda: Aggregate(FedSGD(), 4)])
    def test_one_sample_of_a_class_is_all_that_is_left_of_a_batch(self, client):
        batch = batch_of(32)._replace(labels=torch.tensor([3] + 31 * [5]))
        attack = Fishing(lenet(), client=client(), target_class=3, iterations=2)
        seen, found = attacked(attack, batch)
        alone = Fishing(lenet(), target_class=3, iterations=2)
        single, _ = attacked(alone, share_of(batch, slice(1)))
        torch.testing.assert_close(32 * below(attack, seen), below(alone, single))
        assert found.labels.tolist() == [3]
        assert found.images.shape == (1, *SHAPE)

    def test_an_honest_layer_mixes_them(self):
        batch = batch_of(32)._replace(labels=torch.tensor([3] + 31 * [5]))
        attack = Fishing(lenet(), target_class=5, iterations=2)  # the class of all others
        seen, _ = attacked(attack, batch)
        single = attack.federation.play(share_of(batch, slice(1, 2)), 0)
        one, all_of_them = below(attack, single), below(attack, seen)
        assert not torch.allclose(one * all_of_them.norm() / one.norm(), all_of_them, rtol=0.01)

    def test_of_one_class_the_furthest_along_a_row_outweighs_the_others(self):
        shares = []
        for seed in range(6):
            batch = batch_of(16, seed)._replace(labels=torch.full((16,), 2))
            attack = Fishing(lenet(), fish="feature", target_class=2, iterations=1)
            seen, _ = attacked(attack, batch)
            with torch.no_grad():
                doubt = 1 - seen.payload.double()(batch.images.double()).softmax(1)[:, 2]
            shares.append(float(doubt.max() / doubt.sum()))
        assert sum(share > 0.8 for share in shares) >= 3  # by chance a sample has 1 / 16

    def test_the_single_image_comes_back(self):
        batch = batch_of(16)._replace(labels=torch.tensor([3] + 15 * [5]))
        attack = Fishing(lenet(), target_class=3, iterations=150)
        _, found = attacked(attack, batch)
        error = (batch.images - found.images).square().mean((1, 2, 3))
        assert int(error.argmin()) == 0
        assert error[0] < 0.5 * error[1:].min()

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"target_class": CLASSES}, "target_class"),
            ({"fish": "both"}, "class or feature"),
            ({"num_samples": 1}, "num_samples"),
        ],
    )
    def test_settings_out_of_range(self, settings, words):
        with pytest.raises(InputError, match=words):
            Fishing(lenet(), **settings)

    def test_a_last_layer_without_a_bias(self):
        with pytest.raises(InputError, match="no bias"):
            attacked(Fishing(rog_lenet(bias=False)), batch_of(4))


def mlp(**settings):
    return MLP(CLASSES, SIZE, (200,), first_std=0.5, **settings)


class TestModelInconsistency:
    @pytest.mark.parametrize("place", [0, 4])
    def test_one_client_of_a_round_is_read_as_if_alone(self, place):
        batch = batch_of(40)
        attack = ModelInconsistency(mlp(), Aggregate(FedSGD(), 5), place=place)
        seen, found = attacked(attack, batch)
        own = batch.images.chunk(5)[place]
        others = torch.cat([part for at, part in enumerate(batch.images.chunk(5)) if at != place])
        assert found.marks.count(Mark.CERTIFIED) == num_exact(found.images, own) == 8
        assert num_exact(found.images, others) == 0
        alone = ModelInconsistency(mlp())
        single, _ = attacked(alone, share_of(batch, slice(8 * place, 8 * place + 8)))
        for name in ("model.layers.1.weight", "model.layers.1.bias"):
            torch.testing.assert_close(5 * seen.update[name], single.update[name])

    def test_an_honest_sum_mixes_them(self):
        batch = batch_of(40)
        _, found = attacked(ExactInversion(mlp(), Aggregate(FedSGD(), 5), sparsity=False), batch)
        assert num_exact(found.images, batch.images[:8]) < 8

    def test_nothing_sent_is_nothing_found(self):
        attack = ModelInconsistency(mlp(), Aggregate(FedSGD(), 2))
        attacked(attack, batch_of(8))
        noise = attack.federation.play_noise(torch.zeros(8, dtype=torch.int64), 0)
        assert len(attack.reconstruct(noise).images) == 0

    def test_what_cannot_be_silenced(self):
        with pytest.raises(InputError, match="no ReLU"):
            attacked(ModelInconsistency(mlp(activation="sigmoid")), batch_of(4))
        with pytest.raises(InputError, match="place"):
            ModelInconsistency(mlp(), Aggregate(FedSGD(), 2), place=2)
