"""The mechanism of SpectralLDPAttack, against oracles and against what must not happen."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import scipy.fft
import torch
import torch.nn.functional as F
import yaml
from attack_helpers import bind
from torch.func import functional_call

from lightning_recon.attacks import LDPAttack, SpectralLDPAttack
from lightning_recon.attacks.spectral.code import (
    SpectralCode,
    frequencies,
    model_power,
    ring_average,
    water_fill,
)
from lightning_recon.audit.matching import match
from lightning_recon.clients import FedAvg
from lightning_recon.commands.lightning import main
from lightning_recon.defenses import ClipL2, GaussianNoise
from lightning_recon.errors import InputError
from lightning_recon.functional.image_quality import psnr
from lightning_recon.priors import FFDNet, TotalVariation
from lightning_recon.rowsparse import RowSparse
from lightning_recon.targets import ConvNet

CLIP, STD = 10.0, 0.02
CONF = Path(__file__).parent / "conf/spectral_tiny.yaml"


def make_attack(public, *, std=STD, batch_size=8, dtype=torch.float32, **kwargs):
    settings = {"num_bins": 128, "shrinkage_steps": 0, "num_samples": batch_size} | kwargs
    settings.setdefault("defenses", [ClipL2(CLIP), *([GaussianNoise(std)] if std else [])])
    target = settings.pop("target", ConvNet(num_classes=20, width=8))
    attack = SpectralLDPAttack(target.to(dtype), **settings)
    bind(attack, public.to(dtype), batch_size)
    return attack


def mean_psnr(images, truth):
    """Mean PSNR over all true images; one without a reconstruction counts with grey."""
    row = match(images.float(), truth).row
    shown = torch.full_like(truth, 0.5)
    shown[row >= 0] = images.float()[row[row >= 0]]
    return float(psnr(shown, truth).mean())


@pytest.fixture
def public(sample_data):
    return sample_data.public_images()


def make_code(public, noise=1e-3, energy=4.0):
    images = public.double()
    return SpectralCode(images, tuple(images.shape[1:]), noise, energy)


def test_columns_that_tell_a_code_from_noise(public):
    code = make_code(public)
    code.power.flatten()[code.order] = 1 / code.filter.square()
    assert code.num_telling == code.num_columns, "all alike: every one tells as much"
    code.power.flatten()[code.order[3:]] = 0
    assert code.num_telling == 3


class TestCode:
    def test_transform_is_the_dct(self, public):
        code = make_code(public)
        axes = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])
        colours = np.einsum("oc,bchw->bohw", axes, public.double().numpy())
        expected = scipy.fft.dctn(colours, axes=(2, 3), norm="ortho")
        found = code.transform(public.double())
        assert np.allclose(found.numpy(), expected)
        assert torch.allclose(code.inverse(found), public.double())

    @pytest.mark.parametrize("energy", [1e-3, 0.1, 10.0, 1e4])
    def test_water_fill_is_optimal(self, energy):
        random = torch.Generator().manual_seed(0)
        power = torch.rand(50, generator=random, dtype=torch.float64).pow(4) + 1e-6
        noise = 0.03
        sent = water_fill(power, noise, energy)
        assert float(sent.sum()) == pytest.approx(energy)
        assert (sent >= 0).all()
        # the derivative of the error is the same for all that is sent, and smaller elsewhere
        derivative = power * noise / (sent + noise).square()
        level = derivative[sent > 0]
        assert torch.allclose(level, level[0].expand_as(level))
        assert (derivative[sent == 0] <= level[0] * (1 + 1e-9)).all()
        if energy == 1e4:
            assert (sent > 0).all()
        if energy == 1e-3:
            assert (sent == 0).any()

    def test_ring_average_against_a_loop(self):
        power = torch.rand(3, 6, 9, dtype=torch.float64)
        averaged = ring_average(power)
        radius = frequencies(6, 9)
        assert radius[3, 4] == 5
        assert torch.equal(averaged[:, 0, 0], power[:, 0, 0])  # the mean is a ring of its own
        first = [(0, 1), (1, 0), (1, 1)]  # frequencies from 1/2 to 3/2
        expected = sum(power[:, row, column] for row, column in first) / 3
        for row, column in first:
            assert torch.allclose(averaged[:, row, column], expected)
        assert torch.allclose(averaged.sum((1, 2)), power.sum((1, 2)))

    def test_all_codes_have_norm_one_and_what_is_not_sent_has_no_column(self, public, batch):
        code = make_code(public, noise=0.05)
        sent, log_norm = code.encode(batch.images.double())
        assert torch.allclose(sent.norm(dim=1), torch.ones(8, dtype=torch.float64))
        assert torch.allclose(sent * log_norm.exp()[:, None], code.filtered(batch.images.double()))
        assert code.num_columns < 3 * 32 * 32
        assert (code.filter > 0).all()

    def test_without_noise_the_image_comes_back(self, public, batch):
        code = make_code(public, noise=1e-12)
        images = batch.images.double()
        sent, log_norm = code.encode(images)
        amplitude = torch.linspace(-2, 2, 8, dtype=torch.float64)
        found = code.decode(amplitude[:, None] * sent, amplitude, log_norm, 0.0)
        assert torch.allclose(found, images, atol=1e-6)

    def test_decoder_is_the_posterior_mean(self):
        """Against the normal equations of the whole Gaussian model, written out."""
        random = torch.Generator().manual_seed(0)
        public = torch.rand(12, 3, 4, 5, generator=random, dtype=torch.float64)
        noise, amplitude = 0.02, torch.tensor([1.7], dtype=torch.float64)
        code = SpectralCode(public, (3, 4, 5), noise, 3.0)
        identity = torch.eye(60, dtype=torch.float64).view(60, 3, 4, 5)
        matrix = (code.filtered(identity + code.mean)).T * amplitude  # columns by pixel
        basis = code.transform(identity).flatten(1).T
        covariance = basis.T @ torch.diag(code.power.flatten()) @ basis
        received = torch.randn(1, code.num_columns, generator=random, dtype=torch.float64)
        inner = matrix @ covariance @ matrix.T + noise * torch.eye(len(matrix))
        expected = covariance @ matrix.T @ torch.linalg.solve(inner, received[0])
        found = code.decode(received, amplitude, torch.zeros(1), noise) - code.mean
        assert torch.allclose(found.flatten(), expected)

    def test_corrected_mean_is_the_decoded_image(self, public, batch):
        code = make_code(public)
        sent, log_norm = code.encode(batch.images.double())
        channel = (sent, torch.ones(8, dtype=torch.float64), log_norm, 0.01)
        mean = code.mean.expand(8, -1, -1, -1)
        assert torch.allclose(code.correct(mean, *channel), code.decode(*channel))
        truth = batch.images.double()
        assert torch.allclose(code.correct(truth, *channel), truth)

    def test_stored_spectrum_without_public_images(self, batch):
        code = SpectralCode(torch.zeros(0, 3, 32, 32), (3, 32, 32), 1e-4, 10.0)
        sent, log_norm = code.encode(batch.images)
        noisy = 10**0.5 * sent + 0.01 * torch.randn(
            sent.shape, generator=torch.Generator().manual_seed(0)
        )
        found = code.decode(noisy, torch.full((8,), 10**0.5), log_norm, 1e-4)
        assert mean_psnr(found, batch.images) > 30


class TestPayload:
    @pytest.mark.parametrize("settings", [{}, {"logit_scale": 1.0}])
    def test_logits_are_the_targets_scaled(self, public, batch, settings):
        attack = make_attack(public, **settings)
        payload = attack.federation.payload.eval()
        expected = settings.get("logit_scale", 1e-3) * attack.target.eval()(batch.images)
        assert torch.equal(payload(batch.images), expected)

    def test_gradient_is_the_code_in_one_row(self, public, batch):
        attack = make_attack(public, dtype=torch.float64)
        batch = batch._replace(images=batch.images.double())
        payload = attack.federation.payload
        update = attack.client(payload, batch, seed=0)
        code, log_norm = payload.code.encode(batch.images)
        row = payload.choose_rows(log_norm)
        sent = F.pad(payload.scale * code, (1, 0), value=payload.sign_size)
        assert torch.allclose(sent.square().sum(1), torch.full((8,), attack.budget.energy).double())
        whole = torch.cat([update["head"], update["rows"].to_dense()], dim=1)
        assert (whole.abs().sum(1) > 0).nonzero().flatten().tolist() == sorted(row.tolist())
        gain = 8 * whole[row] / (attack.gain * sent)
        assert torch.allclose(gain, gain[:, :1].expand_as(gain))
        # an untrained target is not sure: about +1 or -1, by the half of the label
        assert torch.allclose(gain[:, 0].abs(), torch.ones(8).double(), atol=0.2)
        assert torch.equal(gain[:, 0].sign(), (batch.labels % 2 * 2.0 - 1).double())

    def test_the_budget_is_the_rows(self, public, batch):
        attack = make_attack(public, std=0)
        update = attack.federation.play(batch, 0).update
        total = sum(float(tensor.square().sum()) for tensor in update.values())
        rows = float(update["head"].square().sum() + update["rows"].square().sum())
        assert total == pytest.approx(CLIP**2, rel=1e-4)
        assert rows / total > 0.999

    @pytest.mark.parametrize("spread", [0.0, 0.05, 1.0, 100.0])
    def test_no_two_samples_share_a_row(self, public, spread):
        payload = make_attack(public).federation.payload
        for seed in range(20):
            random = torch.Generator().manual_seed(seed)
            log_norm = payload.code.log_norm_mean + spread * torch.randn(30, generator=random)
            row = payload.choose_rows(log_norm)
            assert len(row.unique()) == 30
            assert row.min() >= 0
            assert row.max() < payload.num_bins
            # order of norms = order of rows
            assert torch.equal(row[log_norm.argsort(stable=True)], row.sort().values)

    def test_a_free_row_is_kept(self, public):
        payload = make_attack(public).federation.payload
        wanted = torch.tensor([100, 5, 5, 60, 6, 127, 127])
        middle = payload.row_log_norm(wanted)
        # at the ends a row's middle is its threshold
        assert torch.equal(payload.choose_rows(middle[:1]), wanted[:1])
        row = payload.choose_rows(torch.where(wanted == 127, middle + 1, middle))
        assert row.tolist() == [100, 5, 6, 60, 7, 126, 127]

    def test_row_tells_the_norm(self, public, batch):
        payload = make_attack(public, num_bins=4096).federation.payload
        _, log_norm = payload.code.encode(batch.images)
        found = payload.row_log_norm(torch.bucketize(log_norm, payload.thresholds))
        assert (found - log_norm).abs().max() < 0.02

    def test_too_few_rows(self, public):
        with pytest.raises(InputError, match="at least 32 rows"):
            _ = make_attack(public, num_bins=31).federation.payload


class TestAttack:
    @pytest.mark.parametrize("std", [0.0, 0.005, 0.05])
    def test_every_sample_is_found(self, public, batch, std):
        attack = make_attack(public, std=std)
        observation = attack.federation.play(batch, 0)
        images, evidence = attack.initialize(observation)
        assert len(images) == 8
        assert evidence.noise_std == pytest.approx(std, rel=0.02)
        assert mean_psnr(images, batch.images) > {0.0: 45, 0.005: 30, 0.05: 18}[std]
        assert not observation.update["rows"].is_dense

    def test_signs_and_amplitudes(self, public, batch):
        attack = make_attack(public, std=0.005)
        _, evidence = attack.initialize(attack.federation.play(batch, 0))
        expected = attack.federation.payload.scale
        assert torch.allclose(evidence.amplitude.abs(), torch.full((8,), expected), rtol=0.1)
        assert int((evidence.amplitude > 0).sum()) == int((batch.labels % 2).sum())

    def test_3_db_above_the_faithful_attack(self, public, batch):
        spectral = make_attack(public, std=STD, num_bins=512)
        faithful = LDPAttack(
            ConvNet(num_classes=20, width=8),
            defenses=[ClipL2(CLIP), GaussianNoise(STD)],
            num_bins=512,
            num_samples=8,
            iterations=60,
            optimizer=partial(torch.optim.Adam, lr=0.02),
        )
        bind(faithful, public)
        scores = [
            mean_psnr(attack.reconstruct(attack.federation.play(batch, 0)).images, batch.images)
            for attack in (spectral, faithful)
        ]
        assert scores[0] > scores[1] + 3

    def test_noise_alone_hits_no_row(self, public):
        attack = make_attack(public, false_positive_rate=1e-3)
        reconstruction = attack.reconstruct(
            attack.federation.play_noise(torch.zeros(8, dtype=torch.int64), 0)
        )
        assert len(reconstruction.images) == 0
        assert reconstruction.notes["rows_hit"] == 0

    def test_false_positive_rate(self, public):
        attack = make_attack(public, false_positive_rate=0.3)
        hits = [
            attack.initialize(
                attack.federation.play_noise(torch.zeros(8, dtype=torch.int64), client)
            )[1].notes["rows_hit"]
            > 0
            for client in range(200)
        ]
        # 0.26 of the runs are hit by one of 128 independent rows at this rate
        assert 0.15 < sum(hits) / 200 < 0.37

    def test_rows_of_two_samples_are_not_returned(self, public, batch):
        attack = make_attack(public, std=0.002)
        payload = attack.federation.payload
        wanted = torch.tensor([3, 9, 9, 20, 31, 45, 60, 77])
        payload.choose_rows = lambda log_norm: wanted
        reconstruction = attack.reconstruct(attack.federation.play(batch, 0))
        assert reconstruction.notes["rows_hit"] == 7
        assert reconstruction.notes["rows_colliding"] == 1
        assert len(reconstruction.images) == 6

    def test_a_dense_update_is_read_alike(self, public, batch):
        attack = make_attack(public)
        observation = attack.federation.play(batch, 0)
        sparse = attack.reconstruct(observation).images
        dense = {name: tensor.to_dense() for name, tensor in observation.update.items()}
        assert not any(isinstance(tensor, RowSparse) for tensor in dense.values())
        again = attack.reconstruct(observation._replace(update=dense)).images
        assert torch.equal(sparse, again)

    def test_shrinkage_learned_on_public_images_helps(self, public, sample_data):
        gains = []
        for client in range(2):
            batch = sample_data.client(client)
            # subjects before black, as the public images
            mask = torch.zeros(1, 1, 32, 32)
            mask[..., 8:24, 6:26] = 1
            batch = batch._replace(images=batch.images * mask)
            scores = [
                mean_psnr(attack.initialize(attack.federation.play(batch, 0))[0], batch.images)
                for attack in (
                    make_attack(public * mask, std=0.05, shrinkage_steps=steps)
                    for steps in (0, 100)
                )
            ]
            gains.append(scores[1] - scores[0])
        assert min(gains) > 2

    def test_optimisation_lowers_the_objective(self, public, batch):
        attack = make_attack(
            public,
            priors=[TotalVariation(1.0)],
            iterations=20,
            optimizer=partial(torch.optim.Adam, lr=1e-3),
        )
        observation = attack.federation.play(batch, 0)
        start, evidence = attack.initialize(observation)
        before = sum(attack.objective(start, evidence).values())
        reconstruction = attack.reconstruct(observation)
        assert (reconstruction.score < before).all()

    def test_objective_is_the_likelihood(self, public, batch):
        attack = make_attack(public, std=0.05)
        _, evidence = attack.initialize(attack.federation.play(batch, 0))
        _, log_norm = attack.code.encode(batch.images)
        # in the order of the rows, by norm
        truth = batch.images[log_norm.argsort()]
        found = evidence.log_norm.argsort()
        evidence = evidence._replace(
            received=evidence.received[found],
            amplitude=evidence.amplitude[found],
            log_norm=log_norm.sort().values,
        )
        misfit = attack.objective(truth, evidence)["observation"]
        expected = evidence.received.shape[1] / (2 * truth[0].numel())  # chi-squared's mean
        assert torch.allclose(misfit, torch.full((8,), expected), rtol=0.25)

    def test_without_priors_nothing_moves(self, public, batch):
        attack = make_attack(public, iterations=3)
        observation = attack.federation.play(batch, 0)
        start, _ = attack.initialize(observation)
        assert torch.equal(attack.reconstruct(observation).images, start)

    def test_code_is_made_for_the_defenses(self, public):
        attack = make_attack(public, std=0.03)
        assert (attack.clip_norm, attack.noise_std) == (CLIP, 0.03)
        attack = make_attack(public, std=0.03, clip_norm=2.0, noise_std=0.5)
        assert (attack.clip_norm, attack.noise_std) == (2.0, 0.5)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"num_bins": 1}, "num_bins"),
            ({"gain": 0.0}, "gain"),
            ({"shrinkage_steps": -1}, "shrinkage_steps"),
            ({"false_positive_rate": 1.0}, "false_positive_rate"),
            ({"clip_norm": 0.0}, "clip_norm"),
            ({"noise_std": -1.0}, "noise_std"),
            ({"gain": float("nan")}, "gain"),
            ({"clip_norm": float("inf")}, "clip_norm"),
        ],
    )
    def test_bad_arguments(self, public, arguments, message):
        with pytest.raises(InputError, match=message):
            make_attack(public, **arguments)

    @pytest.mark.parametrize("steps", [0, 60])
    def test_grey_images(self, public, batch, steps):
        grey = batch._replace(images=batch.images.mean(1, keepdim=True))
        attack = make_attack(
            public.mean(1, keepdim=True),
            std=0.005,
            shrinkage_steps=steps,
            target=ConvNet(num_classes=20, width=8, in_channels=1),
        )
        images, _ = attack.initialize(attack.federation.play(grey, 0))
        assert images.shape == (8, 1, 32, 32)
        assert mean_psnr(images, grey.images) > 30

    def test_a_grey_image_is_a_third_of_its_luminance(self):
        assert torch.allclose(3 * model_power(1, 8, 9)[0], model_power(3, 8, 9)[0])

    def test_other_channels(self):
        with pytest.raises(InputError, match="3 channels or 1, not 2"):
            make_attack(torch.zeros(2, 2, 8, 8), target=ConvNet(num_classes=20, in_channels=2))

    def test_one_step_of_fedavg_is_a_gradient(self, public, batch):
        attack = make_attack(public, std=0.005, client=FedAvg(0.1))
        observation = attack.federation.play(batch, 0)
        assert not observation.update["rows"].is_dense
        images, _ = attack.initialize(observation)
        assert mean_psnr(images, batch.images) > 30

    @pytest.mark.parametrize(
        "client", [FedAvg(0.1, epochs=2), FedAvg(0.1, minibatch_size=4), FedAvg(1, weight_decay=1)]
    )
    def test_several_steps_of_fedavg_are_not_for_the_faithful_attack(self, client):
        with pytest.raises(InputError, match="FedAvg of epochs 1, without minibatch_size and wei"):
            LDPAttack(ConvNet(num_classes=20, width=8), client=client)


def test_a_stacked_gradient_is_the_sum_of_the_samples(public, batch):
    """Rows are chosen per batch; given the rows, the update is linear in the samples."""
    attack = make_attack(public, dtype=torch.float64)
    payload = attack.federation.payload.eval()
    images = batch.images.double()
    parameters = {"head": payload.head.detach().requires_grad_()}

    def gradient(part):
        logits = functional_call(payload, parameters, (images[part],))
        loss = F.cross_entropy(logits, batch.labels[part], reduction="sum")
        return torch.autograd.grad(loss, parameters["head"])[0]

    whole = gradient(slice(None))
    _, log_norm = payload.code.encode(images)
    row = payload.choose_rows(log_norm)
    for sample in range(8):
        alone = gradient(slice(sample, sample + 1))
        own = (alone.abs().sum(1) > 0).nonzero().item()
        assert torch.allclose(whole[row[sample]], alone[own])


@pytest.mark.parametrize("subcommand", ["fit", "test"])
def test_command_line(subcommand, tmp_path):
    arguments = [subcommand, "--config", str(CONF), "--trainer.default_root_dir", str(tmp_path)]
    assert main([*arguments, "--audit.null_controls", "false"]) == 0
    (path,) = tmp_path.rglob("results.json")
    results = json.loads(path.read_text())
    assert results["num_images"] == 8
    assert results["num_reconstructions"] == 8
    assert results["metrics"]["psnr"]["mean"] > results["null"]["mean_image"]["psnr"] + 6


def test_command_line_with_a_denoiser(tmp_path):
    """A network trained elsewhere, by path, as the prior of the refinement."""
    torch.manual_seed(0)
    torch.save(FFDNet(num_layers=3, num_features=4).state_dict(), tmp_path / "weights.pth")
    network = {"class_path": "FFDNet", "init_args": {"weights": str(tmp_path / "weights.pth")}}
    prior = {
        "class_path": "DenoiserPrior",
        "init_args": {"denoiser": network, "noise_std": 0.05, "weight": 2.0},
    }
    arguments = ["fit", "--config", str(CONF), "--trainer.default_root_dir", str(tmp_path)]
    arguments += ["--model.init_args.priors", json.dumps([prior])]
    assert main([*arguments, "--audit.null_controls", "false"]) == 0
    (path,) = tmp_path.rglob("results.json")
    results = json.loads(path.read_text())
    assert results["num_reconstructions"] == 8
    assert results["metrics"]["psnr"]["mean"] > results["null"]["mean_image"]["psnr"] + 6
    (written,) = tmp_path.rglob("config.yaml")
    (found,) = yaml.safe_load(written.read_text())["model"]["init_args"]["priors"]
    assert found["class_path"].endswith("DenoiserPrior")
    assert found["init_args"]["denoiser"]["init_args"]["weights"] == str(tmp_path / "weights.pth")
