"""The classic optimisation attacks, and their priors against formulas."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from lightning_recon.attacks import (
    DLG,
    IDLG,
    GradientMatching,
    GradInversion,
    InvertingGradients,
    ModernInvertingGradients,
    MultiScale,
)
from lightning_recon.attacks.grad_inversion import group_mean
from lightning_recon.attacks.matching.batch_statistics import batch_statistics
from lightning_recon.attacks.schedules import step_decay, warm_cosine
from lightning_recon.clients import FedAvg, FedSGD
from lightning_recon.data import SampleImagesDataModule
from lightning_recon.errors import InputError
from lightning_recon.functional.image_quality import psnr
from lightning_recon.functional.registration import shift_images
from lightning_recon.priors import (
    AnisotropicTotalVariation,
    BatchNormStatistics,
    DeepFeatures,
    DoubleOpponentTotalVariation,
    SquaredNorm,
    TotalVariation,
)
from lightning_recon.targets import ConvNet, LeNet, ROGLeNet

ATTACKS = [DLG, IDLG, InvertingGradients, GradInversion, ModernInvertingGradients, MultiScale]


def make(kind, batch_size=1, image_size=16, **arguments):
    if "target" not in arguments:
        arguments["target"] = LeNet(num_classes=20, image_size=image_size)
    attack = kind(**{"iterations": 3, **arguments})
    attack.data = SampleImagesDataModule(
        batch_size=batch_size, num_clients=2, image_size=image_size
    )
    attack.bind(attack.data.spec, attack.data.public_images())
    return attack


def run(attack, client=0):
    batch = attack.data.client(client)
    return attack.reconstruct(attack.federation.play(batch, client)), batch


# --- every attack ------------------------------------------------------------------------------


@pytest.mark.parametrize("client", [FedSGD(), FedAvg(0.05, 2)], ids=["fedsgd", "fedavg"])
@pytest.mark.parametrize("kind", ATTACKS)
def test_the_objective_falls(kind, client):
    restarts = {"num_restarts": 2} if kind is GradInversion else {"num_restarts": 1}
    attack = make(kind, client=client, iterations=8, **restarts)
    found, batch = run(attack)
    first, score = found.curve[0][1], found.score[0]
    assert float(score) * restarts["num_restarts"] < 0.97 * first
    assert found.images.shape == batch.images.shape
    assert 0 <= float(found.images.min()) <= float(found.images.max()) <= 1
    assert found.labels.tolist() == batch.labels.tolist()


@pytest.mark.parametrize("kind", ATTACKS)
def test_a_defense_leaves_no_attack_without_a_result(kind):
    attack = make(kind, client=FedAvg(0.05, 2, momentum=0.5))
    observation = attack.federation.play_noise(torch.tensor([3]), 0)  # an update of zeros
    found = attack.reconstruct(observation)
    assert found.images.isfinite().all()


# --- DLG and iDLG ------------------------------------------------------------------------------


def dummy_of(images):
    """What stands for images where pixels are optimised in units of .25 around grey."""
    return (images - 0.5) / 0.25


@pytest.mark.parametrize("kind", [DLG, IDLG])
def test_leakage_is_deep(kind):
    attack = make(kind, image_size=8, iterations=50)
    found, batch = run(attack)
    assert psnr(found.images, batch.images).item() > 25
    assert found.labels.tolist() == batch.labels.tolist()
    assert float(found.score[0]) < 1e-5 * found.curve[0][1]


def test_dlg_returns_the_labels_of_its_dummies_and_not_a_template():
    attack = make(DLG, batch_size=2, num_restarts=3)
    observation = attack.federation.play(attack.data.client(0), 0)
    assert observation.labels is None
    start, evidence = attack.initialize(observation)
    assert start.shape == (6, 3 * 16 * 16 + 20)
    batch = attack.data.client(0)
    start[2:4, :-20] = dummy_of(batch.images).flatten(1)
    start[2:4, -20:] = 30 * nn.functional.one_hot(batch.labels, 20).to(start)
    found = attack.finish(start, evidence)
    assert found.labels.tolist() == batch.labels.tolist()
    torch.testing.assert_close(found.images, batch.images)


@pytest.mark.parametrize("kind", [DLG, IDLG])
def test_the_best_iterate_is_returned_with_its_own_objective(kind, monkeypatch):
    seen = []
    real = GradientMatching.differentiate

    def watch(self, dummy, evidence):
        parts, gradient = real(self, dummy, evidence)
        seen.append((parts["matching"].item(), self.decode(dummy.detach()).clamp(0, 1).clone()))
        return parts, gradient

    monkeypatch.setattr(GradientMatching, "differentiate", watch)
    attack = make(
        kind,
        optimizer=lambda p: torch.optim.SGD(p, lr=1.0),
        lr_scheduler=lambda o: LambdaLR(o, lambda number: 1.0 if number < 3 else -3.0),
        iterations=6,
    )
    found, _ = run(attack)
    seen = seen[:7]  # six iterates, and what the last step led to
    values = [value for value, _ in seen]
    best = values.index(min(values))
    assert 0 < best < 6  # from some step on it goes uphill
    assert found.score[0].item() == pytest.approx(values[best], rel=1e-4)
    assert torch.equal(found.images, seen[best][1])


def test_the_best_of_one_client_is_not_the_best_of_the_next():
    attack = make(IDLG, iterations=2)
    first, batch = run(attack, 0)
    run(attack, 1)
    again, _ = run(attack, 0)
    assert torch.equal(first.images, again.images)
    # nor does a control that runs in between take its place
    _, evidence = attack.initialize(attack.federation.play(batch, 0))
    attack.differentiate(dummy_of(batch.images), evidence)
    attack.reconstruct(attack.federation.play_noise(batch.labels, 0))
    found = attack.finish(dummy_of(batch.images) + 1, evidence)
    torch.testing.assert_close(found.images, batch.images)


def test_the_best_iterate_outlives_a_checkpoint():
    attack = make(IDLG)
    batch = attack.data.client(0)
    _, evidence = attack.initialize(attack.federation.play(batch, 0))
    attack.differentiate(dummy_of(batch.images), evidence)
    checkpoint = {
        "loops": {"fit_loop": {"epoch_loop.batch_progress": {"current": {"ready": 1}}}},
    }
    attack._trainer = SimpleNamespace(world_size=1)
    attack.on_save_checkpoint(checkpoint)
    other = make(IDLG)
    other.on_load_checkpoint(checkpoint)
    _, evidence = other.initialize(other.federation.play(batch, 0))
    found = other.finish(dummy_of(batch.images) + 1, evidence)
    torch.testing.assert_close(found.images, batch.images)


def test_idlg_is_for_one_image():
    with pytest.raises(InputError, match="idlg infers the label of one sample"):
        run(make(IDLG, batch_size=2))
    found, batch = run(make(IDLG, batch_size=2, label_inference="analytic"))
    assert sorted(found.labels.tolist()) == sorted(batch.labels.tolist())


# --- Inverting Gradients and what comes of it --------------------------------------------------


def test_the_sign_alone_reaches_adam():
    attack = make(InvertingGradients)
    gradient = torch.tensor([-3e-9, 0.0, 5.0])
    attack.adjust(gradient)
    assert gradient.tolist() == [-1.0, 0.0, 1.0]
    attack = make(InvertingGradients, signed=False)
    attack.adjust(gradient.mul_(2))
    assert gradient.tolist() == [-2.0, 0.0, 2.0]


def test_inverting_gradients_shows_the_image():
    attack = make(InvertingGradients, target=ROGLeNet(20, 16), iterations=150)
    found, batch = run(attack)
    assert psnr(found.images, batch.images).item() > 18


def rates(schedule, iterations):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = schedule(optimizer, iterations)
    found = []
    for _ in range(iterations):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_the_rate_falls_where_the_paper_says():
    found = rates(step_decay, 80)
    expected = [1.0] * 30 + [0.1] * 20 + [0.01] * 20 + [0.001] * 10
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("iterations", [10, 400])
def test_the_rate_rises_and_falls(iterations):
    found = rates(warm_cosine, iterations)
    top = found.index(max(found))
    assert top == min(50, iterations // 2)
    assert found[top] == 1.0
    assert found[: top + 1] == sorted(found[: top + 1])
    assert found[top:] == sorted(found[top:], reverse=True)
    assert 0 < found[-1] < 0.1
    middle = top + (iterations - top) // 2
    assert found[middle] == pytest.approx(0.5, abs=0.16)


def test_patterns_repeat():
    attack = make(ModernInvertingGradients, image_size=30, pattern_size=4)
    images = attack.start(2, torch.Generator().manual_seed(0))
    assert images.shape == (2, 3, 30, 30)
    assert torch.equal(images[..., 4:, :], images[..., :-4, :])
    assert torch.equal(images[..., 4:], images[..., :-4])
    assert not torch.equal(images[0], images[1])


def test_images_grow_finer_from_stage_to_stage():
    attack = make(MultiScale, iterations=9, num_scales=3)
    assert [attack.reduction_at(number) for number in range(9)] == [4, 4, 4, 2, 2, 2, 1, 1, 1]
    seen = []
    real = attack.matcher.updates

    def watch(images, labels, evidence):
        seen.append(images.detach().clone())
        return real(images, labels, evidence)

    attack.matcher.updates = watch
    run(attack)
    # neighbouring pixels of an upsampled image differ little
    rough = [float(TotalVariation()(images).mean()) for images in seen]
    assert rough[3] < rough[6]
    for images, reduction in ((seen[0], 4), (seen[4], 2)):
        small = nn.functional.avg_pool2d(images, reduction)
        smooth = nn.functional.interpolate(small, scale_factor=reduction, mode="bilinear")
        assert float((smooth - images).abs().mean()) < 0.3 * float((images - 0.5).abs().mean())
    assert attack.reduction == 1
    with pytest.raises(InputError, match="num_scales"):
        run(make(MultiScale, num_scales=7))


# --- GradInversion -----------------------------------------------------------------------------


def test_shifted_copies_are_aligned():
    data = SampleImagesDataModule(batch_size=2, num_clients=1, image_size=32)
    data.setup()
    images = data.client(0).images
    moves = [(0, 0), (2, -2), (-1, 2)]
    copies = [shift_images(images, torch.tensor([move] * 2)) for move in moves]
    objective = torch.tensor([0.1, 0.5, 0.7])
    aligned = group_mean(torch.cat(copies), objective)
    inner = (..., slice(5, -5), slice(5, -5))
    torch.testing.assert_close(aligned[inner], images[inner])
    lost = torch.cat([*copies, torch.full_like(images, torch.nan)])
    still = group_mean(lost, torch.cat([objective, torch.tensor([torch.nan])]))
    torch.testing.assert_close(still[inner], images[inner])
    plain = torch.stack(copies).mean(0)
    assert float((plain[inner] - images[inner]).square().mean()) > 1e-3
    # the frame is that of the best restart
    other = group_mean(torch.cat(copies), objective.flip(0))
    torch.testing.assert_close(other[inner], copies[2][inner])  # up to 4 pixels away


def test_the_group_pulls_its_members_together():
    attack = make(GradInversion, num_restarts=3, group_weight=0.7)
    start, evidence = attack.initialize(attack.federation.play(attack.data.client(0), 0))
    alone = make(GradInversion, num_restarts=3, group_weight=0.0)
    with torch.enable_grad():
        parts, gradient = attack.differentiate(start.clone(), evidence)
        plain, plain_gradient = alone.differentiate(start.clone(), evidence)
    assert set(parts) - set(plain) == {"group_consistency"}
    total = torch.stack([part.detach() for part in plain.values()]).sum(0)
    mean = group_mean(start, total)
    dummy = start.clone().requires_grad_()
    penalty = 0.7 * torch.stack([(x - mean).square().mean() for x in dummy.chunk(3)])
    torch.testing.assert_close(parts["group_consistency"], penalty.detach())
    (expected,) = torch.autograd.grad(penalty.sum(), dummy)
    torch.testing.assert_close(gradient - plain_gradient, expected, rtol=1e-3, atol=1e-7)


def test_steps_are_noisy_and_the_noise_repeats():
    images = [run(make(GradInversion, num_restarts=2, step_noise=s))[0].images for s in (1, 1, 0)]
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (DLG, {"known": ["labels"]}, "DLG finds the labels"),
        (GradInversion, {"group_weight": -1.0}, "group_weight"),
        (GradInversion, {"step_noise": -1.0}, "step_noise"),
        (GradInversion, {"max_shift": -1}, "max_shift"),
        (ModernInvertingGradients, {"pattern_size": 0}, "pattern_size"),
        (MultiScale, {"num_scales": 0}, "num_scales"),
        (InvertingGradients, {"distance": "angle"}, "distance"),
    ],
)
def test_bad_arguments_are_one_line(kind, arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        make(kind, **arguments)
    assert "\n" not in str(caught.value)


# --- priors ------------------------------------------------------------------------------------


@pytest.fixture
def images():
    return torch.rand(2, 3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_anisotropic_variation_against_a_loop(images):
    found = AnisotropicTotalVariation(2.0)(images)
    for number, image in enumerate(images):
        down = [abs(c[i + 1, j] - c[i, j]) for c in image for i in range(4) for j in range(4)]
        right = [abs(c[i, j + 1] - c[i, j]) for c in image for i in range(5) for j in range(3)]
        expected = 2 * (sum(down) / len(down) + sum(right) / len(right))
        assert found[number].item() == pytest.approx(float(expected))


def test_double_opponent_variation_against_its_six_channels(images):
    red, green, blue = images.unbind(1)
    six = torch.stack([red, green, blue, red - green, green - blue, blue - red], dim=1)
    expected = torch.zeros(2, dtype=torch.float64)
    for row in range(5):
        for column in range(4):
            here = six[..., row, column]
            square = torch.zeros(2, dtype=torch.float64)
            if row < 4:
                square += (six[..., row + 1, column] - here).square().sum(1)
            if column < 3:
                square += (six[..., row, column + 1] - here).square().sum(1)
            expected += square.sqrt() / 20
    found = DoubleOpponentTotalVariation(0.5, smoothing=1e-9)(images)
    torch.testing.assert_close(found, 0.5 * expected)
    with pytest.raises(InputError, match="three colours"):
        DoubleOpponentTotalVariation()(images[:, :2])
    grey = images[:, :1]
    assert torch.equal(DoubleOpponentTotalVariation(0.5)(grey), TotalVariation(0.5)(grey))


def test_squared_norm(images):
    expected = 3 * ((images.numpy() - 0.5) ** 2).mean((1, 2, 3))
    torch.testing.assert_close(SquaredNorm(3.0)(images).numpy(), expected)


@pytest.mark.parametrize(
    "prior",
    [AnisotropicTotalVariation(0.7), DoubleOpponentTotalVariation(0.7), SquaredNorm(0.7)],
)
def test_gradients_of_priors(prior, images):
    assert torch.autograd.gradcheck(prior, images.requires_grad_())


def gather_statistics(network, images):
    """Make each layer's running statistics those of these images in evaluation mode."""
    network.eval()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:  # in order: each changes what the next one sees
        found = []
        handle = norm.register_forward_hook(lambda m, inputs, output, f=found: f.append(inputs[0]))
        with torch.no_grad():
            network(images)
        handle.remove()
        columns = found[0].movedim(1, 0).flatten(1)
        norm.running_mean.copy_(columns.mean(1))
        norm.running_var.copy_(columns.var(1))
    return norms


def test_the_truth_has_the_statistics_of_batch_norm():
    network = ConvNet(num_classes=20, width=4)
    data = SampleImagesDataModule(batch_size=4, num_clients=2, image_size=32)
    data.setup()
    batch, other = data.client(0), data.client(1)
    prior = BatchNormStatistics(2.0)
    assert prior(batch.images, batch.labels, network.eval(), {}, {}).item() == 0  # never trained
    norms = gather_statistics(network, batch.images)
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    network.eval()
    assert prior(batch.images, batch.labels, network, {}, batch_statistics(network)).item() < 1e-4
    assert prior(other.images, batch.labels, network, {}, batch_statistics(network)).item() > 0.1
    # the first layer's part, by hand
    with torch.no_grad():
        columns = network.features[0](other.images).movedim(1, 0).flatten(1)
    first = norms[0]
    expected = (columns.mean(1) - first.running_mean).norm() + (
        columns.var(1) - first.running_var
    ).norm()
    for norm in norms[1:]:
        norm.running_mean.zero_()
    torch.testing.assert_close(
        prior(other.images, batch.labels, network, {}, batch_statistics(network)),
        2 * expected,
        rtol=1e-4,
        atol=1e-6,
    )
    network.train()
    prior(other.images, batch.labels, network, {}, batch_statistics(network))
    assert torch.equal(first.running_mean, before["features.1.running_mean"])
    assert not any(module._forward_pre_hooks for module in network.modules())


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_statistics_of_several_restarts_are_those_of_each(mode):
    network = ConvNet(num_classes=20, width=4)
    attack = make(
        GradInversion,
        batch_size=3,
        target=network,
        client=FedAvg(0.01, 2, mode=mode),
        num_restarts=2,
        label_inference="residual_counts",
    )
    batch = attack.data.client(0)
    gather_statistics(network, attack.data.client(1).images)
    start, evidence = attack.initialize(attack.federation.play(batch, 0))
    parts, gradient = attack.differentiate(start, evidence)
    assert gradient.isfinite().all()
    with attack.engine.simulating(evidence):
        for restart in range(2):
            images = start[3 * restart : 3 * restart + 3]
            value = BatchNormStatistics(0.1)(
                images, evidence.labels, network, {}, batch_statistics(network)
            )
            assert value.item() > 0.01
            torch.testing.assert_close(
                parts["BatchNormStatistics"][restart], value, rtol=1e-4, atol=1e-7
            )


def test_features_of_the_truth_are_those_that_the_update_tells():
    attack = make(ModernInvertingGradients, target=ConvNet(num_classes=20, width=4), num_restarts=2)
    batch, other = attack.data.client(0), attack.data.client(1)
    observation = attack.federation.play(batch, 0)
    start, evidence = attack.initialize(observation)
    prior = DeepFeatures(1.0)
    with attack.client.working(attack.federation.payload):
        at_truth = prior(
            batch.images, batch.labels, attack.federation.payload, observation.update, {}
        )
        elsewhere = prior(
            other.images, batch.labels, attack.federation.payload, observation.update, {}
        )
        scaled = {name: -0.3 * tensor for name, tensor in observation.update.items()}
        assert (
            prior(batch.images, batch.labels, attack.federation.payload, scaled, {}).item() < 1e-6
        )
    assert at_truth.item() < 1e-8
    assert elsewhere.item() > 1e-3
    # several restarts at once give what each gives alone
    with attack.engine.simulating(evidence):
        together = attack.differentiate(start, evidence)[0]["DeepFeatures"]
        for restart in range(2):
            value = attack.priors[1](
                start[restart, None],
                batch.labels,
                attack.federation.payload,
                observation.update,
                {},
            )
            torch.testing.assert_close(together[restart], value, rtol=1e-4, atol=1e-7)


def test_features_need_a_bias():
    attack = make(ModernInvertingGradients, target=ROGLeNet(20, 16))
    with pytest.raises(InputError, match="no bias"):
        run(attack)
