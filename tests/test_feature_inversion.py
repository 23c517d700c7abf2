"""Features from the gradients of linear layers, and images from features."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import nn

from lightning_recon.attacks.feature_inversion import FeatureInversionAttack
from lightning_recon.attacks.features.linear_decoder import fit_linear_decoder
from lightning_recon.attacks.features.linear_layers import (
    Reading,
    noise_of,
    obfuscate,
    output_residuals,
    read_entries,
    solve_inputs,
    solve_residuals,
)
from lightning_recon.attacks.features.linear_stack import find_stack, run_features
from lightning_recon.attacks.features.network_decoder import NetworkDecoder, fit_network_decoder
from lightning_recon.attacks.features.relus import learn_foresight, updated_chances
from lightning_recon.clients import Aggregate, FedAvg, FedSGD, MixUp
from lightning_recon.data import SampleImagesDataModule
from lightning_recon.defenses import (
    QSGD,
    ClipL2,
    GaussianNoise,
    Piecewise,
    RandomK,
    SignSGD,
    TopK,
)
from lightning_recon.errors import InputError
from lightning_recon.functional.image_quality import psnr
from lightning_recon.priors import TotalVariation
from lightning_recon.targets import VGG7, ResNet9, ROGLeNet, Target

pytestmark = pytest.mark.usefixtures("one_thread")


class Deep(Target):
    """Three linear layers with biases behind a convolution."""

    def __init__(self, num_classes=20):
        super().__init__(num_classes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.features = nn.Sequential(nn.Conv2d(3, 8, 5, 2, 2), nn.ReLU())
            self.head = nn.Sequential(
                nn.Flatten(),
                nn.Linear(8 * 16 * 16, 256),
                nn.ReLU(),
                nn.Linear(256, 128),
                nn.ReLU(),
                nn.Linear(128, num_classes),
            )

    def forward(self, images):
        return self.head(self.features(images))


def make(batch_size=4, num_public=64, **arguments):
    arguments = {
        "target": ROGLeNet(num_classes=20, image_size=32),
        "iterations": 3,
        "num_rehearsals": 4,
        "kernel_size": 3,
        "decoder_steps": 0,
        "optimizer": partial(torch.optim.Adam, lr=0.003),
        **arguments,
    }
    attack = FeatureInversionAttack(**arguments)
    attack.data = SampleImagesDataModule(
        batch_size=batch_size, num_clients=1, image_size=32, num_public=num_public
    )
    attack.bind(attack.data.spec, attack.data.public_images())
    return attack


def feature_errors(attack, batch):
    """Relative error of each sample's features; samples of one label in any order."""
    start, evidence = attack.initialize(attack.federation.play(batch, 0))
    with torch.no_grad():
        truth = run_features(
            attack.federation.payload, evidence.stack, batch.images, evidence.parameters
        )
    distance = torch.cdist(evidence.features, truth) / truth.norm(dim=1)
    differ = evidence.update.labels[:, None] != batch.labels.sort().values[None]
    if torch.equal(evidence.update.labels, batch.labels):
        differ = batch.labels[:, None] != batch.labels
        distance = distance + 1e3 * differ
    rows, columns = linear_sum_assignment(distance.numpy())
    return distance[rows, columns], start


def linear_problem(num_samples=6, num_outputs=200, num_inputs=300, seed=0):
    generator = torch.Generator().manual_seed(seed)
    residuals = torch.randn(num_samples, num_outputs, generator=generator)
    inputs = torch.randn(num_samples, num_inputs, generator=generator).relu()
    return residuals, inputs, residuals.T @ inputs, generator


READINGS = {
    "rounded": Reading("rounded", 6.0),
    "kept": Reading("kept", 4.0),
    "random": Reading("kept", math.inf),
    "signs": Reading("signs", 1.0),
    "noise": Reading("exact", 2.0),
}


class TestLinearLayers:
    def test_least_squares(self):
        residuals, inputs, gradient, _ = linear_problem()
        moments = inputs.mean(0), inputs.var(0) + 0.1
        found = solve_inputs(residuals, gradient, Reading("exact", 0.0), *moments)
        expected = torch.linalg.lstsq(residuals.T.double(), gradient.double()).solution.float()
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
        back = solve_residuals(gradient, Reading("exact", 0.0), inputs, residuals)
        torch.testing.assert_close(back, residuals, rtol=1e-3, atol=1e-3)

    @pytest.mark.parametrize("name", READINGS)
    def test_each_obfuscation_is_undone_better_than_by_least_squares(self, name):
        residuals, inputs, gradient, generator = linear_problem(num_outputs=40)
        reading = READINGS[name]
        dropped = gradient * (torch.rand(gradient.shape, generator=generator) < 0.2)
        observed = obfuscate(gradient, reading, dropped, generator)
        moments = torch.full((300,), 0.4), torch.full((300,), 0.34)
        found = solve_inputs(residuals, observed, reading, *moments)
        plain = torch.linalg.lstsq(residuals.T, observed).solution
        scale = inputs.norm() / plain.norm() if name == "signs" else 1.0
        error = float((found - inputs).norm() / inputs.norm())
        assert error < 0.97 * float((scale * plain - inputs).norm() / inputs.norm())

    def test_noise_is_the_posterior_mean(self):
        residuals, _, gradient, generator = linear_problem(num_outputs=8)
        observed = gradient + 2.0 * torch.randn(gradient.shape, generator=generator)
        mean, variance = torch.full((300,), 0.4), torch.linspace(0.1, 1, 300)
        found = solve_inputs(residuals, observed, Reading("exact", 2.0), mean, variance)
        place = 77
        normal = residuals @ residuals.T / 4 + torch.eye(6) / variance[place]
        right = residuals @ observed[:, place] / 4 + mean[place] / variance[place]
        expected = torch.linalg.solve(normal, right)
        torch.testing.assert_close(found[:, place], expected, rtol=1e-3, atol=1e-4)

    def test_the_noise_is_measured(self):
        residuals, inputs, gradient, generator = linear_problem()
        noisy = gradient + 0.3 * torch.randn(gradient.shape, generator=generator)
        variance = inputs.var(0)
        sizes = []
        for observed in (gradient, noisy):
            plain = Reading("exact", 0.0)
            found = solve_inputs(residuals, observed, plain, variance, variance)
            sizes.append(noise_of(residuals, observed, found, variance))
        assert sizes[0] == 0
        assert sizes[1] == pytest.approx(0.3, rel=0.02)

    @pytest.mark.parametrize(
        ("defense", "kind"),
        [
            (QSGD(16), "rounded"),
            (QSGD(2), "rounded"),
            (TopK(0.9), "kept"),
            (RandomK(0.9), "kept"),
            (SignSGD(), "signs"),
            (SignSGD(scaled=True), "signs"),
            (GaussianNoise(0.1), "exact"),
            (None, "exact"),
        ],
    )
    def test_the_obfuscation_is_told_from_the_entries(self, defense, kind):
        _, _, gradient, generator = linear_problem()
        gradient[:5], gradient[:, :20] = 0, 0
        if kind == "signs":
            gradient = gradient[5:, 20:]
        update = {"weight": gradient.clone()}
        if defense is not None:
            update = defense(update, generator=generator)
        reading = read_entries(update["weight"])
        assert reading.kind == kind
        if isinstance(defense, TopK):
            kept = update["weight"].abs()
            assert reading.size == pytest.approx(float(kept[kept > 0].min()))
        if isinstance(defense, RandomK):
            assert math.isinf(reading.size)
        if isinstance(defense, QSGD):
            step = float(gradient.abs().max()) / defense.num_steps
            assert reading.size == pytest.approx(step, rel=1e-4)

    def test_top_k_that_drops_whole_rows_and_columns_is_seen(self):
        generator = torch.Generator().manual_seed(0)
        rows = torch.full((200, 1), 1e-4)
        rows[:8] = 1.0  # those of the labels
        size = torch.where(torch.arange(300) < 40, 1.0, 0.1)
        whole = rows * size * (1 + 0.2 * torch.rand(200, 300, generator=generator))
        update = TopK(0.995)({"weight": whole.clone()}, generator=generator)["weight"]
        live = update[update.any(1)][:, update.any(0)]
        assert 0.9 < (live != 0).float().mean() < 1
        reading = read_entries(update)
        assert reading.kind == "kept"
        assert reading.size == pytest.approx(float(update[update != 0].abs().min()))

    def test_zeros_of_relus_are_not_dropped_entries(self):
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(8, 300, generator=generator).relu()
        residuals = torch.randn(8, 200, generator=generator)
        residuals = residuals * (torch.rand(8, 200, generator=generator) < 0.7)
        gradient = residuals.T @ inputs
        live = gradient[gradient.any(1)][:, gradient.any(0)]
        assert 0.9 < (live != 0).float().mean() < 1
        assert read_entries(gradient) == Reading("exact", 0.0)

    def test_rounding_has_no_bias(self):
        _, _, gradient, generator = linear_problem(num_inputs=20)
        drawn = [obfuscate(gradient, READINGS["rounded"], gradient, generator) for _ in range(400)]
        assert torch.stack(drawn).remainder(6.0).abs().max() == 0
        assert (torch.stack(drawn).mean(0) - gradient).abs().mean() < 0.15

    def test_output_residuals_are_the_gradient(self):
        logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).requires_grad_()
        labels = torch.tensor([0, 3, 3, 6, 1])
        (expected,) = torch.autograd.grad(F.cross_entropy(logits, labels), logits)
        torch.testing.assert_close(output_residuals(logits.detach(), labels), expected)

    def test_shapes_are_checked(self):
        with pytest.raises(InputError, match="do not fit"):
            solve_inputs(
                torch.ones(2, 3), torch.ones(4, 5), Reading("exact", 0.0), *torch.ones(2, 5)
            )


class TestStack:
    @pytest.mark.parametrize(
        ("target", "depth", "shape"),
        [
            (ROGLeNet(20, 32), 2, (64, 8, 8)),
            (VGG7(20, 32, width=4), 1, (16, 4, 4)),
            (ResNet9(20, width=4), 1, (32, 1, 1)),
            (Deep(), 3, (8, 16, 16)),
        ],
    )
    def test_the_layers_are_found(self, target, depth, shape):
        images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        stack = find_stack(target, images)
        assert len(stack.weights) == depth
        assert stack.map_shape == shape
        features = run_features(target, stack, images)
        assert features.shape == (2, math.prod(shape))
        seen, outputs = stack.forward(dict(target.named_parameters()), features)
        assert torch.equal(seen[0], features)
        torch.testing.assert_close(outputs[-1], target(images))

    def test_a_network_without_a_linear_end_is_refused(self):
        target = nn.Sequential(nn.Conv2d(3, 5, 4), nn.Flatten())
        with pytest.raises(InputError, match="does not end in a linear layer"):
            find_stack(target, torch.rand(1, 3, 4, 4))


class TestDecoder:
    def test_a_linear_code_is_undone(self):
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(24, 3, 16, 16, generator=generator)
        mixing = torch.randn(48, 48, generator=generator)
        maps = torch.einsum("oc,bchw->bohw", mixing, F.pixel_unshuffle(images, 4))
        decoder = fit_linear_decoder(maps[:20], images[:20], 1, generator)
        decoded = decoder.decode(maps[20:], 16, 16)
        assert psnr(decoded, images[20:]).min() > 40

    def test_noise_alone_is_decoded_to_the_mean(self):
        generator = torch.Generator().manual_seed(0)
        images = 0.3 + 0.1 * torch.rand(24, 3, 16, 16, generator=generator)
        maps = torch.randn(24, 8, 1, 1, generator=generator)
        decoder = fit_linear_decoder(maps, images, 5, generator)
        decoded = decoder.decode(maps, 16, 16)
        assert (decoded - 0.35).abs().mean() < 0.02


class TestNetworkDecoder:
    def decoders(self, num_images, num_steps):
        """Decoders of squares on grey, seen through maps of which the noise depends on the map."""
        generator = torch.Generator().manual_seed(0)
        corners = torch.rand(2, num_images + 16, 1, 1, 1, generator=generator)
        places = torch.linspace(0, 1, 32)
        inside = (places > corners[0]) & (places[:, None] > corners[1])
        images = torch.where(inside, 0.8, 0.2).expand(-1, 3, -1, -1)
        maps = F.pixel_unshuffle(images, 4)
        maps = maps + 1.5 * maps * torch.randn(maps.shape, generator=generator)
        linear = fit_linear_decoder(maps[16:], images[16:], 3, generator)
        before = torch.random.get_rng_state()
        network = fit_network_decoder(linear, maps[16:], images[16:], num_steps, seed=0)
        assert torch.equal(before, torch.random.get_rng_state())
        return linear, network, maps[:16], images[:16]

    def test_it_beats_the_linear_decoder_on_images_that_it_never_saw(self):
        linear, network, maps, images = self.decoders(48, 200)
        error = [F.mse_loss(one.decode(maps, 32, 32), images) for one in (linear, network)]
        assert error[1] < 0.8 * error[0]

    def test_the_linear_decoder_stays_where_the_network_learned_nothing_of_use(self):
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(8, 3, 8, 8, generator=generator)
        maps = torch.randn(8, 4, 2, 2, generator=generator)
        linear = fit_linear_decoder(maps, images, 1, generator)
        assert fit_network_decoder(linear, maps, images, 300, seed=0) is linear

    def test_it_begins_as_the_linear_decoder(self):
        generator = torch.Generator().manual_seed(0)
        maps = torch.randn(4, 6, 8, 8, generator=generator)
        linear = fit_linear_decoder(maps, torch.rand(4, 3, 16, 16), 3, generator)
        network = NetworkDecoder(linear)
        assert torch.equal(network.decode(maps, 16, 16), linear.decode(maps, 16, 16))


class TestRelus:
    def test_outputs_are_foreseen_without_bias_and_with_their_error(self):
        generator = torch.Generator().manual_seed(0)
        true = torch.randn(5000, 3, generator=generator) * torch.tensor([1.0, 2.0, 0.5]) + 0.3
        blurred = 0.5 * true - 1 + 0.2 * torch.randn(5000, 3, generator=generator)
        foresight = learn_foresight(blurred, true)
        foreseen = foresight.outputs(blurred)
        torch.testing.assert_close(foreseen.mean(0), true.mean(0))
        torch.testing.assert_close(foresight.error, (foreseen - true).std(0), rtol=0.05, atol=0)
        # a ReLU of which the probability is p is open in p of the cases
        chance = foresight.probability(blurred)
        for low in (0.1, 0.4, 0.7):
            cases = (chance > low) & (chance < low + 0.2)
            assert abs(float((true > 0)[cases].float().mean()) - low - 0.1) < 0.05

    @pytest.mark.parametrize("size", [1.0, 3.0])
    def test_two_looks_know_more_than_either(self, size):
        generator = torch.Generator().manual_seed(0)
        output = torch.randn(4, 4000, generator=generator)
        whole = torch.randn(4, 4000, generator=generator)
        is_open = output > 0
        chance = torch.special.ndtr(
            (output + 0.2 * torch.randn(4, 4000, generator=generator)) / 0.2
        )
        noise = torch.randn(4, 4000, generator=generator)
        passed = size * (whole * is_open + 0.3 * noise)
        updated = updated_chances(chance, whole, passed)
        wrong = [float(((one > 0.5) != is_open).float().mean()) for one in (chance, updated)]
        by_passing = ((passed / size - whole).abs() < (passed / size).abs()) != is_open
        assert wrong[1] < 0.5 * min(wrong[0], float(by_passing.float().mean()))


def test_a_second_look_at_the_images_mends_what_an_obfuscated_gradient_tells(monkeypatch):
    module = "lightning_recon.attacks.features.decoding"
    errors = {}
    for num_looks in (0, 4):
        monkeypatch.setattr(f"{module}._NUM_LOOKS", num_looks)
        attack = make(8, defenses=[QSGD(4)])
        errors[num_looks] = feature_errors(attack, attack.data.client(0))[0]
    assert errors[4].mean() < 0.97 * errors[0].mean()


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize(
    "make_target", [partial(ROGLeNet, 20, 32), partial(VGG7, 20, 32, width=4), Deep]
)
def test_features_of_an_exact_update_are_exact(make_target, batch_size):
    attack = make(batch_size, target=make_target())
    errors, _ = feature_errors(attack, attack.data.client(0))
    assert errors.max() < 1e-3


def test_features_of_32_samples_with_repeated_labels():
    attack = make(32)
    batch = attack.data.client(0)
    assert len(batch.labels.unique()) < 20
    errors, _ = feature_errors(attack, batch)
    assert errors.median() < 1e-3
    assert (errors < 0.05).float().mean() > 0.9


def test_three_of_a_label():
    attack = make(8)
    batch = attack.data.client(0)._replace(labels=torch.tensor([3, 3, 3, 5, 5, 7, 8, 9]))
    errors, _ = feature_errors(attack, batch)
    assert errors.max() < 1e-3


def test_local_steps():
    attack = make(client=FedAvg(0.003, epochs=5))
    errors, _ = feature_errors(attack, attack.data.client(0))
    assert errors.max() < 0.05
    unknown = make(client=FedAvg(0.003, epochs=5), known=("labels",))
    errors, _ = feature_errors(unknown, unknown.data.client(0))
    assert errors.max() < 0.15


@pytest.mark.parametrize(
    ("client", "limit"),
    [
        (FedAvg(0.003, 5, momentum=0.9), 0.03),
        (FedAvg(0.003, 5, weight_decay=0.1), 0.05),
        (Aggregate(FedAvg(0.003, 5, momentum=0.5, weight_decay=0.1), 2), 0.05),
        (FedAvg(0.003, 2, minibatch_size=3, shuffle=False), 0.05),
        (Aggregate(FedAvg(0.003, 5), 2), 0.05),
        (Aggregate(FedSGD(), 2), 1e-3),
    ],
    ids=[
        "momentum",
        "weight decay",
        "all of it",
        "uneven minibatches",
        "aggregate",
        "one step each",
    ],
)
def test_local_steps_of_other_clients(client, limit):
    attack = make(8, client=client)
    errors, _ = feature_errors(attack, attack.data.client(0))
    assert errors.max() < limit


def test_local_steps_of_a_client_that_mixes():
    attack = make(client=MixUp(FedAvg(0.003, 5), alpha=1e-3))  # weights of nearly 0 and 1
    errors, _ = feature_errors(attack, attack.data.client(0))
    assert errors.max() < 0.05


OBFUSCATIONS = {
    "rounded": ([QSGD(4)], 0.25),
    "largest": ([TopK(0.95)], 0.25),
    "signs": ([SignSGD()], 0.5),
    "clipped": ([ClipL2(0.01)], 0.1),
    "random": ([RandomK(0.9)], 0.25),
}


@pytest.mark.parametrize("name", OBFUSCATIONS)
def test_obfuscation(name):
    defenses, limit = OBFUSCATIONS[name]
    attack = make(defenses=defenses)
    batch = attack.data.client(0)
    errors, start = feature_errors(attack, batch)
    assert errors.median() < limit
    mean_image = attack.public.mean(0).expand_as(batch.images)
    assert psnr(start, batch.images).mean() > psnr(mean_image, batch.images).mean() + 2


def test_an_update_that_is_noise_gives_images_of_some_kind():
    # the size that these features seem to have is below 0
    attack = make(1, defenses=[Piecewise(epsilon=1000.0, clip_value=0.1)], seed=2)
    start, _ = attack.initialize(attack.federation.play(attack.data.client(0), 0))
    assert start.isfinite().all()


@pytest.mark.parametrize("name", ["largest", "signs"])
def test_the_naive_attacker_does_worse(name):
    found = []
    for adaptive in (True, False):
        attack = make(defenses=OBFUSCATIONS[name][0], adaptive=adaptive)
        batch = attack.data.client(0)
        reconstruction = attack.reconstruct(attack.federation.play(batch, 0))
        found.append(float(psnr(reconstruction.images, batch.images).mean()))
    assert found[0] > found[1] + 2


def test_the_optimisation_improves_the_decoded_images():
    attack = make(
        iterations=30,
        priors=[TotalVariation(0.3)],
        optimizer=partial(torch.optim.Adam, lr=0.01),
    )
    batch = attack.data.client(0)
    observation = attack.federation.play(batch, 0)
    start, _ = attack.initialize(observation)
    found = attack.reconstruct(observation)
    assert psnr(found.images, batch.images).mean() > psnr(start, batch.images).mean() + 0.5
    assert found.curve[-1][1] < found.curve[0][1]
    assert found.labels.tolist() == batch.labels.tolist()


@pytest.mark.parametrize("client", [FedSGD(), FedAvg(0.01, 2)])
def test_pooled_features_are_helped_by_the_update(client):
    attack = make(target=ResNet9(20, width=4), client=client, matching_weight=1.0)
    batch = attack.data.client(0)
    start, evidence = attack.initialize(attack.federation.play(batch, 0))
    assert evidence.matching_weight > 0
    found = []
    for images in (start, batch.images):
        parts, _ = attack.differentiate(images.clone(), evidence)
        found.append({name: float(part.detach()) for name, part in parts.items()})
    assert 1e-3 < found[0]["matching"] < 1
    assert found[1]["matching"] < 1e-4 * found[0]["matching"]
    assert found[1]["features"] < 0.1 * found[0]["features"]


@pytest.mark.parametrize("defenses", [[], [QSGD(16)], [TopK(0.9)]])
def test_pooled_features_are_decoded_better_than_by_the_mean_image(defenses):
    attack = make(target=ResNet9(20, width=16), defenses=defenses)
    batch = attack.data.client(0)
    observation = attack.federation.play(batch, 0)
    start, evidence = attack.initialize(observation)
    assert not evidence.is_refined
    found = attack.reconstruct(observation).images
    assert torch.equal(found, start)
    mean_image = attack.public.mean(0).expand_as(batch.images)
    assert psnr(found, batch.images).mean() > psnr(mean_image, batch.images).mean() + 0.3


def test_labels_are_inferred():
    attack = make(known=("num_samples",))
    batch = attack.data.client(0)
    observation = attack.federation.play(batch, 0)
    assert observation.labels is None
    found = attack.reconstruct(observation)
    assert found.labels.tolist() == sorted(batch.labels.tolist())
    order = batch.labels.argsort()
    assert psnr(found.images, batch.images[order]).mean() > 20


def test_without_public_images():
    attack = make(num_public=0)
    batch = attack.data.client(0)
    _, start = feature_errors(attack, batch)
    grey = torch.full_like(batch.images, 0.5)
    assert psnr(start, batch.images).mean() > psnr(grey, batch.images).mean() + 4


@pytest.mark.parametrize("defenses", [[], [SignSGD()], [GaussianNoise(0.01)]])
@pytest.mark.parametrize("make_target", [partial(ROGLeNet, 20, 32), partial(ResNet9, 20, width=4)])
def test_an_update_without_a_leak(make_target, defenses):
    attack = make(target=make_target(), defenses=defenses)
    batch = attack.data.client(0)
    found = attack.reconstruct(attack.federation.play_noise(batch.labels, 0))
    assert bool(found.images.isfinite().all())
    assert bool(found.score.isfinite().all())
    assert psnr(found.images, batch.images).mean() < 16


@pytest.mark.parametrize(
    "arguments",
    [{"kernel_size": 2}, {"num_rehearsals": 0}, {"features_weight": -1.0}, {"matching_weight": -1}],
)
def test_arguments_are_checked(arguments):
    with pytest.raises(InputError, match="FeatureInversionAttack"):
        make(**arguments)
