"""Gauss-Newton inversion, and what a linearised attacker could get."""

import json
import math
import re

import pytest
import torch
from attack_helpers import bind
from torch import nn

import lightning_recon.attacks.gauss_newton_inversion as gauss_newton_inversion
import lightning_recon.attacks.matching.linear_model as module
from lightning_recon.__main__ import main
from lightning_recon.attacks import (
    AnnealedInversion,
    GaussNewtonInversion,
    InvertingGradients,
)
from lightning_recon.attacks.features.spectrum import Spectrum
from lightning_recon.attacks.matching.grid import whole
from lightning_recon.attacks.matching.per_image import PerImage
from lightning_recon.attacks.matching.probable import probable_step
from lightning_recon.attacks.matching.white_model import WhiteModel
from lightning_recon.audit.auditor import Auditor
from lightning_recon.audit.local_estimate import local_estimate, van_trees_mse
from lightning_recon.audit.results import read_results
from lightning_recon.clients import FedAvg, FedSGD
from lightning_recon.data import SampleImagesDataModule
from lightning_recon.defenses import QSGD, GaussianNoise, LaplaceNoise, TopK
from lightning_recon.errors import InputError
from lightning_recon.functional.damped_least_squares import (
    Damped,
    Factors,
    backsubstituted,
    conjugate_gradients,
    gram,
    jacobian,
    products,
)
from lightning_recon.functional.image_quality import psnr
from lightning_recon.functional.labels.separated import separated
from lightning_recon.observation import Reconstruction
from lightning_recon.privacy.accounting import rero_sampled
from lightning_recon.targets import LeNet, ModuleTarget, TinyViT
from lightning_recon.updates import PrivateBatch

SIZE = 8


def natural(number, seed=0, size=SIZE):
    """Smooth random images."""
    coarse = torch.rand(number, 3, 3, 3, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 1)


def batch_of(images, first_label=0):
    labels = torch.arange(first_label, first_label + len(images)) % 10
    return PrivateBatch(images, labels, torch.ones_like(images[:, :1]) > 0, labels)


def directions_of(spectrum):
    """The directions of images, one a row."""
    return spectrum.moved(torch.eye(spectrum.mean.numel()).double()).flatten(1)


def lenet():
    return LeNet(10, SIZE)


def attacked(number=1, seed=7, target=None, images=None, **settings):
    """What an attack makes of a client's images, and these."""
    attack = bind(GaussNewtonInversion(target or lenet(), **settings), natural(40), number)
    images = natural(number, seed) if images is None else images
    observation = attack.federation.play(batch_of(images), 0)
    with attack.computing():
        return attack.reconstruct(observation), images


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        return x.sigmoid()

    @staticmethod
    def backward(context, slope):
        return slope


class Once(nn.Module):
    """Cannot be differentiated twice."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3 * SIZE**2, 20)

    def forward(self, x):
        return self.linear(_Once.apply(x.flatten(1)))


class TestExact:
    @pytest.mark.parametrize("number", [1, 2])
    def test_a_smooth_network_is_read_to_the_rounding_of_the_update(self, number):
        found, images = attacked(number)
        assert psnr(found.images, images).min() > 80
        assert found.notes["unknowns"] == found.notes["rank"] == images.numel()
        assert found.notes["equations"] == sum(p.numel() for p in lenet().parameters())

    def test_products_alone_come_near(self):
        found, images = attacked(2, max_unknowns=0, iterations=6)
        assert psnr(found.images, images).min() > 50
        assert "rank" not in found.notes

    def test_of_many_unknowns_a_jacobian_is_made_at_the_end(self, monkeypatch):
        monkeypatch.setattr(gauss_newton_inversion, "_STAGED", 0)
        monkeypatch.setattr(PerImage, "of", lambda *_: None)  # as where images mix
        found, images = attacked(2, iterations=8)
        assert psnr(found.images, images).min() > 80
        assert found.notes["rank"] == images.numel()

    def test_known_local_steps_are_simulated(self):
        found, images = attacked(client=FedAvg(0.05, epochs=3))
        assert psnr(found.images, images).min() > 60

    def test_a_rate_that_is_not_known_is_fitted(self):
        known = ["labels", "num_samples"]
        found, images = attacked(client=FedAvg(0.05), known=known)
        assert psnr(found.images, images).min() > 60

    def test_labels_are_inferred(self):
        found, images = attacked(2, known=["num_samples", "client"])
        assert sorted(found.labels.tolist()) == [0, 1]
        order = torch.cdist(images.flatten(1), found.images.flatten(1)).argmin(1)
        assert psnr(found.images[order], images).min() > 80

    def test_the_restart_of_least_objective_is_returned(self):
        found, images = attacked(num_restarts=2)
        assert psnr(found.images, images).min() > 80

    def test_a_dependent_direction_is_counted(self):
        """Pixels beside each other are averaged before the network sees them."""
        target = nn.Sequential(nn.AvgPool2d((1, 2)), nn.Flatten(), nn.Linear(96, 10))
        found, _ = attacked(target=ModuleTarget(target, 10))
        assert found.notes["rank"] == 96

    def test_noise_that_is_not_granted_shows(self):
        with pytest.warns(UserWarning, match="of the update stays unexplained"):
            found, _ = attacked(defenses=[GaussianNoise(0.05)], iterations=6)
        assert found.notes["unexplained"] > 1e-3
        assert "unexplained" not in attacked()[0].notes

    def test_of_an_update_of_zeros_the_mean_image_is_left(self):
        attack = bind(GaussNewtonInversion(lenet(), iterations=14), natural(40))
        observation = attack.federation.play_noise(torch.tensor([3]), 0)
        with pytest.warns(UserWarning, match="all numbers of the update are 0.*mean of public"):
            found = attack.reconstruct(observation)
        mean = attack.spectrum.mean[None].float()
        assert found.notes["rank"] == found.notes["equations"] == 0
        assert psnr(found.images, mean.clamp(0, 1)).min() > 30


def small():
    """A network without kinks that narrows."""
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.Sigmoid(), nn.Conv2d(8, 8, 3, 2, 1), nn.Sigmoid()),
        *(nn.Conv2d(8, 8, 3, padding=1), nn.Sigmoid(), nn.Flatten(), nn.Linear(128, 10)),
    )
    for parameter in network.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5)
    return ModuleTarget(network, 10)


class TestTakenApart:
    """Batches whose images the last layer takes apart."""

    @pytest.fixture(autouse=True)
    def _large(self, monkeypatch):
        monkeypatch.setattr(gauss_newton_inversion, "_STAGED", 0)

    def test_the_features_of_every_image_are_read(self):
        generator = torch.Generator().manual_seed(1)
        features = torch.rand(4, 60, generator=generator, dtype=torch.float64)
        layer = nn.Linear(60, 6).double()
        labels = torch.tensor([2, 0, 2, 5])
        loss = nn.functional.cross_entropy(layer(features), labels)
        slopes = torch.autograd.grad(loss, (layer.weight, layer.bias))
        with torch.no_grad():
            found = separated(layer.weight, layer.bias, *slopes, labels, 0)
            other = separated(layer.weight, layer.bias, *slopes, (labels + 1) % 6, 0)
            many = separated(layer.weight, layer.bias, *slopes, torch.arange(6), 0)
        order = torch.cdist(features, found.features).argmin(1)
        assert sorted(order.tolist()) == [0, 1, 2, 3]
        assert (found.features[order] - features).abs().max() < 1e-6
        assert labels[order].tolist() == labels.tolist()
        assert other is None
        assert many is None

    @pytest.mark.parametrize("levels", [0, 256])
    def test_a_batch_is_read_by_its_images(self, levels):
        coarse = (255 * natural(2, 7)).round() / 255
        found, images = attacked(2, target=small(), levels=levels, images=coarse)
        error = (found.images - images).abs().max()
        assert error < 1e-3
        assert (error < 1e-6) == (levels > 0)
        assert found.notes.get("pixels_by_levels", 0) == (images.numel() if levels else 0)

    def test_of_images_between_levels_none_is_moved(self):
        found, images = attacked(2, target=small(), levels=16)
        assert psnr(found.images, images).min() > 60
        assert "pixels_by_levels" not in found.notes

    def test_images_that_mix_are_not_taken_apart(self):
        target = ModuleTarget(nn.Sequential(nn.BatchNorm2d(3), small()), 10)
        attack = bind(GaussNewtonInversion(target, FedSGD(mode="train")), natural(40), 2)
        observation = attack.federation.play(batch_of(natural(2, 7)), 0)
        with attack.computing():
            attack.initialize(observation)
        assert attack._apart is None

    def test_the_spread_of_the_images_is_fitted(self):
        attack = bind(GaussNewtonInversion(small(), levels=0), natural(40), 2)
        observation = attack.federation.play(batch_of(0.4 + 0.2 * natural(2, 7)), 0)
        with attack.computing():
            attack.reconstruct(observation)
        usual = attack.spectrum.variances.sqrt()
        assert (attack._apart._std < 0.6 * usual).double().mean() > 0.8

    def test_a_batch_too_large_for_memory_is_met_by_products(self, monkeypatch):
        def full(*_):
            raise RuntimeError("not enough memory: you tried to allocate 9 bytes")

        monkeypatch.setattr(PerImage, "_jacobian", full)
        with pytest.warns(match="memory does not suffice"):
            found, images = attacked(2, target=small(), max_unknowns=3000, iterations=3)
        assert psnr(found.images, images).min() > 20

    @pytest.mark.parametrize("has_shortcut", [False, True])
    def test_inner_numbers_tell_what_all_equations_above_them_do(self, has_shortcut):
        torch.manual_seed(0)
        inner = torch.randn(2, 30, 4).double() @ torch.randn(2, 4, 20).double()
        inner += has_shortcut * torch.randn(2, 30, 20).double()
        jacobians = [*torch.cat([inner, torch.randn(2, 30, 5).double()], dim=2)]
        covariance = torch.tensor([[2.0, 1.0], [1.0, 3.0]]).double()
        above = torch.arange(15) < 10  # behind 10 features
        latents, lacking = torch.randn(2, 30).double(), torch.randn(35).double()
        found = []
        for width in (4, 30):
            model = WhiteModel(jacobians, covariance, above, width)
            wanted = model.white(lacking) - model.forward(latents)
            eye = torch.eye(len(wanted)).double()
            found.append(model.backward(torch.linalg.solve(model.hessian + eye, wanted)))
            found.append(model.variances())
        assert torch.allclose(found[0], found[2], atol=1e-6)
        assert torch.allclose(found[1], found[3], atol=1e-6)

    def test_pixels_that_nothing_tells_stay(self):
        values, number = whole(torch.tensor([1.1, 2.4], dtype=torch.float64), torch.eye(2).double())
        assert (values.tolist(), number) == ([1.1, 2.4], 0)

    def test_sure_pixels_move_the_others(self):
        spread = torch.tensor([[0.01, 0.095], [0.095, 1.0]]).double()
        values, number = whole(torch.tensor([1.1, 3.0]).double(), spread)
        assert number == 2
        assert values.tolist() == [1.0, 2.0]


def kinked():
    """Return a small network of ReLUs and a max-pool."""
    torch.manual_seed(0)
    return ModuleTarget(
        nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 16, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(256, 10),
        ),
        10,
    )


class TestKinks:
    def test_soft_kinks_at_first_bring_nearer(self):
        hard, images = attacked(target=kinked(), soft_iterations=0, iterations=12)
        soft, _ = attacked(target=kinked(), iterations=14)
        assert psnr(soft.images, images).mean() > psnr(hard.images, images).mean() + 3
        assert psnr(soft.images, images).mean() > 25

    def test_an_annealed_start_is_refined(self):
        """Of several images the start follows the order of the labels that are assumed."""
        target, images = kinked(), natural(2, 7)
        cycles = {"soft_values": False, "num_restarts": 3, "num_cycles": 4}
        attack = bind(AnnealedInversion(target, iterations=150, **cycles), natural(40), 2)
        batch = batch_of(images)._replace(labels=torch.tensor([6, 2]))
        observation = attack.federation.play(batch, 0)
        with attack.computing():
            first = attack.reconstruct(observation)
        second = bind(
            GaussNewtonInversion(target, annealed_iterations=150, iterations=14), natural(40), 2
        )
        observation = second.federation.play(batch, 0)
        with second.computing():
            start, _ = second.initialize(observation)
            found = second.reconstruct(observation)
        order = first.labels.argsort()
        assert start[[1, 0]].equal(first.images[order])  # labels 2 and 6
        assert found.labels.tolist() == [6, 2]
        assert psnr(found.images, images).mean() > psnr(start, images).mean() + 1

    def test_without_kinks_nothing_is_annealed(self, monkeypatch):
        monkeypatch.setattr(AnnealedInversion, "reconstruct", None)
        found, images = attacked(annealed_iterations=10)
        assert psnr(found.images, images).min() > 80

    def test_many_unknowns_need_no_jacobian(self, monkeypatch):
        monkeypatch.setattr("lightning_recon.attacks.gauss_newton_inversion._FEW", 0)
        monkeypatch.setattr("lightning_recon.attacks.matching.probable.jacobian", None)
        found, images = attacked(target=kinked(), iterations=14)
        assert psnr(found.images, images).mean() > 25

    def test_a_step_by_products_is_that_of_the_jacobian(self):
        attack = bind(GaussNewtonInversion(lenet()), natural(40))
        observation = attack.federation.play(batch_of(natural(1, 7)), 0)
        with attack.computing():
            start, equations = attack.initialize(observation)
            images = start.double()
            with torch.no_grad(), equations.inexact(0.0, images):
                both = [
                    probable_step(images, equations, attack.spectrum, 48, is_explicit)
                    for is_explicit in (True, False)
                ]
        torch.testing.assert_close(*both, rtol=0, atol=0.02)
        assert (both[0] - images).abs().max() > 0.05

    @pytest.mark.parametrize(("defenses", "least"), [([], 60), ([QSGD(16)], 25)])
    def test_layers_of_rounding_do_not_drown_the_others(self, defenses, least):
        """The bias of an attention's keys has no gradient but rounding."""
        target = TinyViT(10, SIZE, width=24, depth=1, num_heads=2)
        found, images = attacked(
            target=target, defenses=defenses, adaptive=bool(defenses), iterations=16
        )
        assert psnr(found.images, images).min() > least


class TestInput:
    def test_too_few_equations_are_told_in_one_line(self):
        target = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(12, 2))
        with pytest.warns(UserWarning, match="192 unknowns in 26 equations; the mean and"):
            attacked(target=ModuleTarget(target, 2), iterations=2)

    def test_short_memory_falls_to_products_and_says_so(self, monkeypatch):
        def short(*_):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

        monkeypatch.setattr(module, "jacobian", short)
        with pytest.warns(UserWarning, match=r"the memory does not suffice .* products alone"):
            found, images = attacked(2, iterations=4)
        assert psnr(found.images, images).min() > 20

    def test_a_network_that_cannot_be_differentiated_twice_is_refused(self):
        with pytest.raises(InputError, match=r"cannot be differentiated by the images.*choose"):
            attacked(target=ModuleTarget(Once(), 20))

    @pytest.mark.parametrize(
        "wrong",
        [
            *({"num_restarts": 0}, {"max_unknowns": -1}, {"annealed_iterations": -1}),
            *({"levels": -1}, {"levels": 1}),
        ],
    )
    def test_numbers_out_of_range_are_refused(self, wrong):
        (name,) = wrong
        with pytest.raises(InputError, match=f"{name} must be (0 or )?at least"):
            GaussNewtonInversion(lenet(), **wrong)


class TestNoise:
    def test_the_attack_gets_what_is_estimated(self):
        """Over clients, in mean squared error, within 1 dB."""
        errors, estimates = [], []
        for seed in range(6):
            attack = GaussNewtonInversion(
                lenet(), defenses=[GaussianNoise(0.01)], adaptive=True, iterations=10
            )
            bind(attack, natural(40))
            batch = batch_of(natural(1, 50 + seed), seed)
            observation = attack.federation.play(batch, seed)
            found = attack.reconstruct(observation)
            errors.append(float((found.images - batch.images).square().mean()))
            estimates.append(float(local_estimate(observation, batch, attack.spectrum).mse))
        assert abs(10 * math.log10(sum(errors) / sum(estimates))) < 1

    @pytest.mark.parametrize("defense", [QSGD(16), TopK(0.5)])
    def test_what_is_known_of_a_defense_helps(self, defense):
        knowing, images = attacked(defenses=[defense], adaptive=True, iterations=10)
        naive, _ = attacked(defenses=[defense], iterations=10)
        whole = sum(parameter.numel() for parameter in lenet().parameters())
        assert knowing.notes["equations"] == naive.notes["equations"] == whole
        assert psnr(knowing.images, images).mean() > psnr(naive.images, images).mean() + 1

    @pytest.mark.parametrize("defense", [QSGD(5), GaussianNoise(0.2), LaplaceNoise(0.1)])
    def test_variances_are_those_of_the_defense(self, defense):
        update = {"a": torch.linspace(-1, 1, 23)}
        draws = []
        for seed in range(1000):
            generator = torch.Generator().manual_seed(seed)
            draws.append(defense({"a": update["a"].clone()}, generator=generator)["a"])
        found = torch.stack(draws)
        (told,) = defense.variance(update, {"a": found[0]}).values()
        torch.testing.assert_close(found.var(0), told.float(), rtol=0.25, atol=1e-6)
        assert TopK(0.5).variance(update, update) is None


class Linear:
    """A network of zeros: its gradient is a linear function of the image."""

    def __init__(self, noise, number=1):
        net = nn.Linear(3 * SIZE**2, 10)
        nn.init.zeros_(net.weight)
        nn.init.zeros_(net.bias)
        target = ModuleTarget(nn.Sequential(nn.Flatten(), net), 10)
        attack = GaussNewtonInversion(
            target, defenses=[GaussianNoise(noise)], adaptive=True, iterations=8
        )
        self.attack = bind(attack, natural(40), number)

    def play(self, images, client):
        batch = batch_of(images, client)
        return batch, self.attack.federation.play(batch, client)


class TestLocalEstimate:
    def test_it_is_the_formula(self):
        """K from the pixels' covariance and an explicit Jacobian, in another basis."""
        channel = Linear(0.05)
        batch, observation = channel.play(natural(1, 3), 0)
        spectrum = channel.attack.spectrum
        found = local_estimate(observation, batch, spectrum)
        basis = directions_of(spectrum)
        precision = basis.T @ (basis / spectrum.variances[:, None])
        slope = torch.full((10,), 0.1, dtype=torch.float64)
        slope[batch.labels] -= 1
        pixels = basis.shape[1]
        jac = torch.kron(slope[:, None], torch.eye(pixels, dtype=torch.float64))
        gain = torch.linalg.solve(jac.T @ jac / 0.05**2 + precision, jac.T / 0.05**2)
        offset = (batch.images[0].double() - spectrum.mean).flatten()
        left = offset - gain @ (jac @ offset)
        mse = (left.square().sum() + 0.05**2 * gain.square().sum()) / pixels
        assert float(found.mse) == pytest.approx(float(mse), rel=1e-4)
        assert float(found.prior_mse) == pytest.approx(float(offset.square().mean()), rel=1e-6)
        assert 0 < found.num_told < pixels

    def test_its_error_with_the_noise_that_was_drawn_is_the_attack(self):
        channel = Linear(0.1)
        batch, observation = channel.play(natural(1, 100), 0)
        found = local_estimate(observation, batch, channel.attack.spectrum)
        images = channel.attack.reconstruct(observation).images
        attack = float((images - batch.images).square().mean())
        assert float(found.drawn_mse) == pytest.approx(attack, rel=0.05)
        assert float(found.mse) < 0.8 * attack

    def test_the_attack_on_a_linear_channel_agrees(self):
        errors, estimates = [], []
        channel = Linear(0.1)
        for client in range(12):
            batch, observation = channel.play(natural(1, 100 + client), client)
            found = channel.attack.reconstruct(observation)
            errors.append(float((found.images - batch.images).square().mean()))
            one = local_estimate(observation, batch, channel.attack.spectrum)
            estimates.append(float(one.mse))
        assert abs(10 * math.log10(sum(errors) / sum(estimates))) < 1

    def test_van_trees_is_the_estimate_in_the_mean_over_the_prior(self):
        channel = Linear(0.1)
        spectrum = channel.attack.spectrum
        generator = torch.Generator().manual_seed(0)
        latents = torch.randn(20, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)
        images = spectrum.decode(latents).float()
        found = []
        for client in range(20):
            batch, observation = channel.play(images[client : client + 1], 0)
            found.append(local_estimate(observation, batch, spectrum))
        mean = sum(float(one.mse) for one in found) / len(found)
        assert van_trees_mse(found, spectrum) == pytest.approx(mean, rel=0.1)

    def test_products_alone_say_the_same(self):
        attack = bind(
            GaussNewtonInversion(lenet(), defenses=[GaussianNoise(0.02)], adaptive=True),
            natural(40),
            2,
        )
        batch = batch_of(natural(2, 3))
        observation = attack.federation.play(batch, 0)
        whole = local_estimate(observation, batch, attack.spectrum)
        found = local_estimate(observation, batch, attack.spectrum, max_unknowns=0)
        torch.testing.assert_close(found.mse, whole.mse, rtol=0.15, atol=0)
        torch.testing.assert_close(found.prior_mse, whole.prior_mse)
        assert found.num_told == pytest.approx(whole.num_told, rel=0.1)
        assert found.information is found.drawn_mse is None
        assert van_trees_mse([whole, found], attack.spectrum) is None

    def test_an_exact_update_leaves_nothing_open(self):
        attack = bind(GaussNewtonInversion(lenet()), natural(40))
        batch = batch_of(natural(1, 3))
        found = local_estimate(attack.federation.play(batch, 0), batch, attack.spectrum)
        assert float(found.mse) < 1e-8
        assert found.num_told == pytest.approx(batch.images.numel(), rel=1e-3)
        assert found.num_unknowns == batch.images.numel()


CONFIG = """
model:
  class_path: GaussNewtonInversion
  init_args:
    target: {class_path: LeNet, init_args: {num_classes: 20, image_size: 8}}
    defenses: [{class_path: GaussianNoise, init_args: {noise_std: 0.01}}]
data:
  class_path: SampleImagesDataModule
  init_args: {batch_size: 2, num_clients: 3, image_size: 8, num_public: 8}
"""


RUN = """
trainer: {accelerator: cpu, logger: false, enable_progress_bar: false}
audit: {null_controls: false, num_candidates: 0, num_pictured_clients: 0}
"""


class TestRun:
    def test_the_estimate_stands_between_control_and_attack(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "run.yaml").write_text(CONFIG + RUN)
        few = ["--model.init_args.iterations", "2", "--audit.num_estimated_clients", "2"]
        words = ["test", "--config", "run.yaml", *few]
        monkeypatch.setattr("sys.argv", ["cli.py", *words])
        assert main(words) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert re.search(r"estimate mean image .* dB, by the mean squared error of 4 images", said)
        folder = next(tmp_path.rglob("results.json")).parent
        found = read_results(folder / "results.json")
        assert found.local_estimate.num_images == 4
        assert found.local_estimate.psnr > found.local_estimate.psnr_mean_image
        notes = [note for note in found.notes if "estimate_told" in note]
        assert [note["estimate_unknowns"] for note in notes] == [384, 384]
        page = (folder / "report.html").read_text()
        assert "What a linearised attacker would get" in page
        header = (folder / "clients.csv").read_text().splitlines()[0]
        assert "mse_local_estimate" in header.split(",")

    def test_a_network_that_has_none_is_told_and_the_run_goes_on(self):
        data = SampleImagesDataModule(
            root="", batch_size=1, num_clients=1, image_size=SIZE, num_public=8
        )
        data.setup()
        attack = InvertingGradients(ModuleTarget(Once(), 20), iterations=1)
        attack.bind(data.spec, data.public_images())
        auditor = Auditor(data, null_controls=False, num_candidates=0, num_estimated_clients=1)
        nothing = Reconstruction(torch.empty(0, 3, SIZE, SIZE), None, torch.empty(0), {})
        with pytest.warns(UserWarning, match="client 0 has no local estimate: the update of"):
            record, _ = auditor.audit(attack, 0, nothing, 0.0)
        assert "mse_local_estimate" not in record.rows[0]


class TestCommand:
    def test_control_and_estimate_are_printed_and_written(self, tmp_path, capsys):
        (tmp_path / "run.yaml").write_text(CONFIG)
        words = ["estimate", "--config", str(tmp_path / "run.yaml")]
        assert main([*words, "--output", str(tmp_path / "found.json")]) == 0
        said = capsys.readouterr().out
        for part in ("mean image (null control)", "local estimate", "van Trees", "No bound"):
            assert part in said
        found = json.loads((tmp_path / "found.json").read_text())
        assert found["num_images"] == len(found["mse"]["images"]) == 6
        assert found["mse"]["mean"] < found["mean_image_mse"]
        assert "may say safe: no formal guarantee" in said
        assert found["privacy"]["rero_1000"] == 1

    def test_rero_of_subsampled_rounds_stands_beside_it(self, tmp_path, capsys):
        text = CONFIG.replace("{noise_std: 0.01}", "{noise_std: 1.0}").replace(
            "    defenses:",
            "    client: {class_path: DPSGD, init_args: {clip_norm: 1.0}}\n    defenses:",
        )
        (tmp_path / "run.yaml").write_text(text)
        words = ["estimate", "--config", str(tmp_path / "run.yaml"), "--num-clients", "1"]
        words += ["--output", str(tmp_path / "found.json")]
        assert main([*words, "--sampling-rate", "0.2", "--num-rounds", "10"]) == 0
        found = json.loads((tmp_path / "found.json").read_text())["privacy"]
        assert found["num_rounds"] == 10
        # two images share the mean: one record moves it by half of the clip
        assert found["rero_record_1000"] == pytest.approx(rero_sampled(2.0, 0.2, 10))
        assert (
            f"{found['rero_record_1000']:.3g} for one record that is drawn"
            in capsys.readouterr().out
        )

    @pytest.mark.parametrize(
        ("change", "more", "said"),
        [
            ({}, ["--num-clients", "4"], "has 3 clients, and --num-clients is 4"),
            ({}, ["--num-clients", "0"], "must be at least 1"),
            ({}, ["--sampling-rate", "0"], "must lie in"),
            ({}, ["--num-rounds", "0"], "must be at least 1"),
            ({"GaussNewtonInversion": "GaussNewton"}, [], "GaussNewton"),
        ],
    )
    def test_what_cannot_be_used_is_one_line(self, change, more, said, tmp_path, capsys):
        text = CONFIG
        for old, new in change.items():
            text = text.replace(old, new)
        (tmp_path / "run.yaml").write_text(text)
        assert main(["estimate", "--config", str(tmp_path / "run.yaml"), *more]) == 2
        error = capsys.readouterr().err
        assert len(error.strip().splitlines()) == 1
        assert re.search(said, error)


class TestLeastSquares:
    def test_jacobian_and_products_agree_with_autograd(self):
        matrix = torch.randn(7, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        images = torch.rand(2, 1, 3, 4, generator=torch.Generator().manual_seed(1)).double()
        basis = torch.linalg.qr(torch.randn(12, 12).double()).Q.view(12, 1, 3, 4)

        def residual(x):
            return (matrix @ x.flatten()).sin()

        whole = torch.func.jacrev(residual)(images).flatten(1)  # 7 x 24
        along = torch.cat(
            [whole[:, :12] @ basis.flatten(1).T, whole[:, 12:] @ basis.flatten(1).T], 1
        )
        rows = jacobian(residual, images, basis, 7)
        torch.testing.assert_close(rows, along.T)
        forward, backward = products(
            residual,
            images,
            lambda numbers: (numbers @ basis.flatten(1)).view_as(images),
            lambda moves: moves.flatten(1) @ basis.flatten(1).T,
        )
        numbers, equations = torch.rand(24).double(), torch.rand(7).double()
        torch.testing.assert_close(forward(numbers), along @ numbers)
        torch.testing.assert_close(backward(equations), along.T @ equations)
        whole = rows @ rows.T + torch.eye(24)
        solved = conjugate_gradients(
            lambda x: whole @ x, numbers, lambda x: x / whole.diagonal(), 100, tolerance=1e-12
        )
        torch.testing.assert_close(whole @ solved, numbers)

    def test_halves_of_a_product_and_factors_are_whole(self):
        rows = torch.randn(21, 30, generator=torch.Generator().manual_seed(0)).double()
        torch.testing.assert_close(gram(rows), rows @ rows.T)
        damped = Damped(gram(rows), torch.zeros(21).double())
        factors, wanted = Factors(damped), torch.rand(21).double()
        first = factors.at(1e-2)
        found = backsubstituted(first, wanted)
        torch.testing.assert_close(
            (rows @ rows.T + 1e-2 * damped.scale * torch.eye(21)) @ found, wanted
        )
        assert factors.at(1e-3) is first  # one serves for smaller dampings
        assert factors.at(2e-2) is not first
        assert factors.at(1e-6) is not first

    def test_the_basis_of_a_spectrum_is_orthonormal_and_its_variances_are_the_images(self):
        spectrum = Spectrum(natural(60).double())
        basis = directions_of(spectrum)
        torch.testing.assert_close(basis @ basis.T, torch.eye(len(basis)).double())
        latents = torch.randn(
            4000, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64
        )
        spread = spectrum.along(spectrum.decode(latents) - spectrum.mean).var(0)
        torch.testing.assert_close(spread, spectrum.variances, rtol=0.15, atol=0)
