"""The mechanism of LDPAttack, against oracles and against what must not happen."""

from functools import partial

import numpy as np
import pytest
import torch
from attack_helpers import bind
from scipy import stats

from lightning_recon.attacks import LDPAttack
from lightning_recon.attacks.ldp_mismatch import Observed, mismatch
from lightning_recon.attacks.ldp_payload import (
    NUM_ACTIVE_BIAS_INPUTS,
    image_statistics,
    laplace_thresholds,
)
from lightning_recon.audit.matching import match
from lightning_recon.clients import FedAvg
from lightning_recon.defenses import ClipL2, GaussianNoise
from lightning_recon.errors import InputError
from lightning_recon.functional.image_quality import psnr
from lightning_recon.observation import Observation
from lightning_recon.targets import ConvNet, TorchvisionClassifier
from lightning_recon.updates import PrivateBatch

CLIP, STD = 10.0, 0.005


def make_attack(public, *, std=STD, clip=CLIP, batch_size=8, target=None, **kwargs):
    defenses = ([ClipL2(clip)] if clip else []) + ([GaussianNoise(std)] if std else [])
    settings = {"num_bins": 512, "iterations": 60, "optimizer": partial(torch.optim.Adam, lr=0.02)}
    attack = LDPAttack(
        target or ConvNet(num_classes=20, width=8),
        defenses=defenses,
        num_samples=batch_size,
        **(settings | kwargs),
    )
    dtype = next(attack.target.parameters()).dtype
    bind(attack, public.to(dtype), batch_size)
    return attack


def rows_of(attack, images):
    with torch.no_grad():
        return attack.federation.payload._select_rows(images)[1]


def scores(reconstruction, images):
    """PSNR of each image that was matched, and which are."""
    row = match(reconstruction.images.float(), images).row
    found = row >= 0
    return psnr(reconstruction.images.float()[row[found]], images[found]), found


@pytest.fixture
def public(sample_data):
    return sample_data.public_images()


class TestPayload:
    def test_thresholds_are_laplace_quantiles(self):
        expected = stats.laplace.ppf((np.arange(64) + 0.5) / 64, loc=0.3, scale=0.1)
        assert np.allclose(laplace_thresholds(0.3, 0.1, 64).numpy(), expected)

    def test_statistics_against_loops(self):
        image = torch.rand(1, 3, 5, 7, dtype=torch.float64)
        found = image_statistics(image)[0]
        for channel in range(3):
            values = image[0, channel].numpy()
            vertical = np.mean(
                [abs(values[i + 1, j] - values[i, j]) for i in range(4) for j in range(7)]
            )
            horizontal = np.mean(
                [abs(values[i, j + 1] - values[i, j]) for i in range(5) for j in range(6)]
            )
            assert found[channel].item() == pytest.approx(values.mean())
            assert found[3 + channel].item() == pytest.approx(values.var())
            assert found[6 + channel].item() == pytest.approx(vertical + horizontal)

    def test_a_sample_reaches_the_highest_threshold_it_passes(self, public, batch):
        attack = make_attack(public)
        thresholds = laplace_thresholds(attack.location, attack.scale, attack.num_bins)
        brightness = batch.images.double().mean((1, 2, 3))
        expected = torch.searchsorted(thresholds, brightness) - 1
        assert torch.equal(rows_of(attack, batch.images), expected)

    def test_the_gradient_of_a_row_is_its_image(self, public, batch):
        attack = make_attack(public, std=0, clip=0)
        update = attack.federation.play(batch, 0).update
        gain = update["thresholds.weight"][:, :NUM_ACTIVE_BIAS_INPUTS].mean(1)
        weight = update["rows.weight"].view(attack.num_bins, 2, 3, 32, 32)
        rows = rows_of(attack, batch.images)
        assert len(rows.unique()) == len(rows), "the test needs a batch without a collision"
        for image, row in zip(batch.images, rows, strict=True):
            assert torch.allclose(weight[row, 0] / gain[row], image, atol=1e-5)
        others = torch.ones(attack.num_bins, dtype=torch.bool)
        others[rows] = False
        assert weight[others].abs().max() == 0
        assert gain[others].abs().max() == 0

    def test_bfloat16_of_the_model_does_not_reach_the_rows(self, public, batch):
        attack = make_attack(public, std=0, clip=0)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            update = attack.federation.play(batch, 0).update
        gain = update["thresholds.weight"][:, :NUM_ACTIVE_BIAS_INPUTS].mean(1)
        weight = update["rows.weight"].view(attack.num_bins, 2, 3, 32, 32)
        for image, row in zip(batch.images, rows_of(attack, batch.images), strict=True):
            assert torch.allclose(weight[row, 0] / gain[row], image, atol=1e-5)

    def test_zero_channels_and_idle_inputs_have_no_gradient(self, public, batch):
        update = make_attack(public, std=0).federation.play(batch, 0).update
        assert update["rows.weight"].view(512, 2, -1)[:, 1].abs().max() == 0
        assert update["thresholds.weight"][:, NUM_ACTIVE_BIAS_INPUTS:].abs().max() == 0

    def test_every_sample_has_a_gain_near_one_whatever_its_label(self, public, batch):
        attack = make_attack(public, std=0, clip=0)
        rows = rows_of(attack, batch.images)
        for labels in (torch.zeros(8).long(), torch.ones(8).long(), torch.arange(8)):
            update = attack.federation.play(batch._replace(labels=labels), 0).update
            gain = update["thresholds.weight"][rows, 0] * 8 / attack.gain
            assert ((gain.abs() > 0.8) & (gain.abs() < 1.2)).all()
            assert torch.equal(gain < 0, labels % 2 == 0)  # its sign tells the label's half

    def test_the_model_keeps_its_output(self, public, batch):
        attack = make_attack(public)
        attack.target.eval()
        with torch.no_grad():
            shift = attack.federation.payload(batch.images) - attack.target(batch.images)
        assert 0 < shift.abs().max() < 0.05

    def test_the_structure_ignores_autocast(self, public, batch):
        attack = make_attack(public, std=0)
        plain = attack.federation.play(batch, 0).update["rows.weight"]
        with torch.autocast("cpu", torch.bfloat16):
            mixed = attack.federation.play(batch, 0).update["rows.weight"]
        # the model's logits are rounded, and with them the gains: no row moves, no image changes
        assert torch.equal(plain.abs().sum(1) > 0, mixed.abs().sum(1) > 0)
        ratio = mixed.norm(dim=1) / plain.norm(dim=1)
        assert (ratio[ratio.isfinite()] - 1).abs().max() < 0.05


class TestDecoding:
    def test_without_noise_the_images_come_back(self, public, batch):
        values, found = scores(
            make_attack(public, std=0).reconstruct(
                make_attack(public, std=0).federation.play(batch, 0)
            ),
            batch.images,
        )
        assert found.all()
        assert values.min() > 60

    def test_one_step_of_fedavg_is_a_gradient(self, public, batch):
        attack = make_attack(public, client=FedAvg(0.1))
        values, found = scores(attack.reconstruct(attack.federation.play(batch, 0)), batch.images)
        assert found.all()
        assert values.min() > 25

    def test_noise_level_is_read_from_the_zero_gradients(self, public, batch):
        attack = make_attack(public, std=0.013)
        _, evidence = attack.initialize(attack.federation.play(batch, 0))
        assert evidence.notes["noise_std_estimate"] == pytest.approx(0.013, rel=0.01)

    def test_statistics_are_those_of_the_images(self, public, batch):
        attack = make_attack(public)
        _, evidence = attack.initialize(attack.federation.play(batch, 0))
        rows, _ = match(evidence.rows.clamp(0, 1), batch.images), None
        truth = image_statistics(batch.images)[rows.row >= 0]
        found = evidence.statistics[rows.row[rows.row >= 0]]
        deviation = (found - truth).abs() / evidence.statistics_std
        assert deviation.median() < 3
        assert (found - truth).abs().max() < 0.05

    def test_optimisation_improves_on_the_filtered_rows(self, public, batch):
        attack = make_attack(public, iterations=150)
        observation = attack.federation.play(batch, 0)
        start, _ = attack.initialize(observation)
        row = match(start, batch.images).row
        before = psnr(start[row], batch.images).mean()
        after, _ = scores(attack.reconstruct(observation), batch.images)
        assert after.mean() > before + 1

    def test_float32_and_float64_agree(self, public, batch):
        values = []
        for dtype in (torch.float32, torch.float64):
            attack = make_attack(public, target=ConvNet(num_classes=20, width=8).to(dtype))
            found, is_found = scores(
                attack.reconstruct(attack.federation.play(batch, 0)), batch.images
            )
            assert is_found.all()
            values.append(found.mean().item())
        assert values[0] == pytest.approx(values[1], abs=0.1)

    @pytest.mark.parametrize("label", [2, 3], ids=["same half", "other half"])
    def test_a_collision_is_counted_and_not_returned(self, public, batch, label):
        images, labels = batch.images.clone(), batch.labels.clone()
        images[1] = images[0].roll(1, dims=0)  # other colours, the same brightness
        labels[0], labels[1] = 2, label
        attack = make_attack(public)
        rows = rows_of(attack, images)
        assert rows[0] == rows[1]
        assert len(rows.unique()) == 7
        reconstruction = attack.reconstruct(
            attack.federation.play(batch._replace(images=images, labels=labels), 0)
        )
        assert len(reconstruction.images) == 6
        assert reconstruction.notes["samples_not_recovered"] == 2
        _, found = scores(reconstruction, images)
        assert found.tolist() == [False, False] + [True] * 6

    def test_a_smaller_batch_than_the_payload_was_made_for(self, public, batch):
        attack = make_attack(public)
        small = PrivateBatch(*(field[:3] for field in batch))
        reconstruction = attack.reconstruct(attack.federation.play(small, 0))
        values, found = scores(reconstruction, small.images)
        assert found.all()
        assert values.min() > 19

    def test_compress_gives_images_of_full_size(self, public, batch):
        attack = make_attack(public, compress=True)
        reconstruction = attack.reconstruct(attack.federation.play(batch, 0))
        assert reconstruction.images.shape[1:] == (3, 32, 32)
        values, found = scores(reconstruction, batch.images)
        assert found.sum() >= 6
        floor = psnr(public.mean(0).expand_as(batch.images), batch.images).mean()
        assert values.mean() > floor + 3

    def test_psnr_does_not_depend_on_the_target(self, public, batch):
        values = []
        for target in (ConvNet(num_classes=20, width=8), TorchvisionClassifier(num_classes=20)):
            attack = make_attack(public, target=target)
            found, _ = scores(attack.reconstruct(attack.federation.play(batch, 0)), batch.images)
            values.append(found.mean().item())
        assert values[0] == pytest.approx(values[1], abs=0.5)


class TestFalsePositives:
    def test_noise_alone_hits_rows_at_the_stated_rate(self, public):
        attack = make_attack(public[..., :8, :8], num_bins=64, false_positive_rate=0.2)
        shapes = {name: p.shape for name, p in attack.federation.payload.named_parameters()}
        trials = 300
        hits = 0
        for trial in range(trials):
            generator = torch.Generator().manual_seed(trial)
            update = {
                name: torch.randn(shape, generator=generator) for name, shape in shapes.items()
            }
            observation = Observation(attack.federation.payload, update, "fedsgd", None, 8, 0)
            hits += attack.initialize(observation)[1].notes["rows_hit"] > 0
        # two-sided test with Bonferroni's correction: 1 - (1 - .2/64)^64 = .181
        low, high = stats.binom.ppf([1e-4, 1 - 1e-4], trials, 1 - (1 - 0.2 / 64) ** 64)
        assert low <= hits <= high

    def test_a_noise_only_update_gives_nothing(self, public):
        attack = make_attack(public)
        reconstruction = attack.reconstruct(
            attack.federation.play_noise(torch.zeros(8, dtype=torch.int64), 0)
        )
        assert len(reconstruction.images) == 0

    def test_an_update_that_drowns_in_noise_gives_nothing(self, public, batch):
        attack = make_attack(public, std=1000.0)
        reconstruction = attack.reconstruct(attack.federation.play(batch, 0))
        assert len(reconstruction.images) == 0
        assert reconstruction.notes["samples_not_recovered"] == 8


class TestHonesty:
    def test_the_observation_holds_no_truth(self, public, batch):
        observation = make_attack(public).federation.play(batch, 0)
        assert observation.labels is None
        truth = {tensor.data_ptr() for tensor in batch}
        shared = [name for name, tensor in observation.update.items() if tensor.data_ptr() in truth]
        assert shared == []
        assert not any(isinstance(field, PrivateBatch) for field in observation)

    def test_same_seed_same_bits_other_client_other_noise(self, public, batch):
        first, second = make_attack(public), make_attack(public)
        one = first.federation.play(batch, 0).update["rows.weight"]
        assert torch.equal(one, second.federation.play(batch, 0).update["rows.weight"])
        assert not torch.equal(one, second.federation.play(batch, 1).update["rows.weight"])
        assert not torch.equal(
            one, make_attack(public, seed=1).federation.play(batch, 0).update["rows.weight"]
        )

    def test_the_observed_update_is_clipped_before_the_noise(self, public, batch):
        update = make_attack(public, std=0).federation.play(batch, 0).update
        norm = torch.stack([tensor.double().norm() for tensor in update.values()]).norm()
        assert norm.item() == pytest.approx(CLIP, rel=1e-5)

    def test_the_model_takes_almost_nothing_of_the_budget(self, public, batch):
        update = make_attack(public, std=0).federation.play(batch, 0).update
        own = [tensor.norm() for name, tensor in update.items() if name.startswith("model.")]
        assert torch.stack(own).norm() < 0.01 * CLIP
        assert 0.15 * CLIP < update["statistics.weight"].norm() < 0.3 * CLIP  # share .05


class TestBadInput:
    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"false_positive_rate": 0.0}, "false_positive_rate must lie between 0 and 1"),
            ({"statistics_share": 1.5}, "statistics_share must lie between 0 and 1"),
            ({"num_bins": 1}, "num_bins must be at least 2"),
            ({"bin_scale": -1.0}, "bin_scale must be above 0"),
            ({"iterations": 0}, "iterations must be at least 1"),
        ],
    )
    def test_settings_out_of_range(self, settings, words):
        with pytest.raises(InputError, match=words):
            LDPAttack(ConvNet(width=8), **settings)

    def test_no_public_images_and_no_bins(self):
        with pytest.raises(InputError, match="set bin_location and bin_scale"):
            bind(LDPAttack(ConvNet(width=8)), torch.zeros(0, 3, 32, 32))

    def test_given_bins_need_no_public_images(self, batch):
        attack = LDPAttack(
            ConvNet(num_classes=20, width=8),
            defenses=[ClipL2(CLIP), GaussianNoise(0.005)],
            num_samples=8,
            num_bins=512,
            bin_location=0.45,
            bin_scale=0.12,
        )
        bind(attack, torch.zeros(0, 3, 32, 32))
        _, found = scores(attack.reconstruct(attack.federation.play(batch, 0)), batch.images)
        assert found.sum() >= 6

    def test_an_odd_size_cannot_be_pooled(self, public):
        with pytest.raises(InputError, match="even image size"):
            make_attack(public[..., :31, :31], compress=True)

    def test_a_broken_target_is_named(self, public, batch):
        target = ConvNet(num_classes=20, width=8)
        with torch.no_grad():
            target.classifier.weight.fill_(torch.nan)
        with pytest.raises(InputError, match="client 0 holds NaN or infinity in parameter"):
            make_attack(public, target=target).federation.play(batch, 0)


def test_the_gradient_is_that_of_the_mismatch():
    def described(image):
        mean, variance = image.mean((1, 2)), image.var((1, 2), correction=0)
        down, right = image.diff(dim=1).abs().mean((1, 2)), image.diff(dim=2).abs().mean((1, 2))
        return torch.cat([mean, variance, down + right])

    generator = torch.Generator().manual_seed(0)
    row, image, other = torch.rand(3, 3, 6, 5, generator=generator, dtype=torch.float64)
    observed = Observed(row, row.new_tensor(0.3), described(other), row.new_tensor(9 * [0.02]))
    leaf = image.clone().requires_grad_()
    difference = described(leaf) - observed.statistics
    parts = [
        ((leaf - row) / 0.3).square().mean(),
        (difference[:6] / 0.02).square().sum() / 90,
        0.7 * (difference[6:] / (observed.statistics[6:] + 0.02)).square().sum(),
    ]
    (expected,) = torch.autograd.grad(sum(parts), [leaf])
    found = mismatch(image, observed, tv_weight=0.7)
    torch.testing.assert_close(found.parts, torch.stack(parts).detach())
    torch.testing.assert_close(found.gradient, expected)


def test_no_client_holds_all_rows(public, batch):
    attack = make_attack(public)
    observation = attack.federation.play(batch, 0)
    rows = observation.update["rows.weight"]
    assert len(rows.rows) <= len(batch.images)
    _, evidence = attack.initialize(observation)
    assert not rows.is_dense
    assert evidence.notes["noise_std_estimate"] == pytest.approx(STD, rel=0.01)
