"""Defenses that are part of the client or of the target, and no function of the update."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Normal, kl_divergence
from torch.func import vmap

from lightning_recon.clients import DPSGD, Aggregate, FedAvg, FedSGD, InstaHide, MixUp, Soteria
from lightning_recon.clients.base import functional
from lightning_recon.errors import InputError
from lightning_recon.targets import (
    ConvNet,
    Dropout,
    LeNet,
    TorchvisionClassifier,
    VariationalBottleneck,
)
from lightning_recon.targets.base import Target
from lightning_recon.updates import PrivateBatch


class Net(Target):
    """Twelve pixels, a rectified representation of seven entries, three classes."""

    def __init__(self):
        super().__init__(3)
        torch.manual_seed(0)
        self.encoder = nn.Linear(12, 7)
        self.classifier = nn.Linear(7, 3)

    def represent(self, images):
        return self.encoder(images.flatten(1)).relu()

    def forward(self, images):
        return self.classifier(self.represent(images))


def net():
    return Net().double()


def private(num_samples=6):
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(num_samples, 3, 2, 2, generator=generator, dtype=torch.float64)
    masks = torch.ones(num_samples, 1, 2, 2, dtype=torch.bool)
    return PrivateBatch(images, torch.arange(num_samples) % 3, masks, torch.arange(num_samples))


class Recorder(FedSGD):
    """Keeps the batch that it is given."""

    def run(self, payload, batch, *, seed):
        self.batch = batch
        return super().run(payload, batch, seed=seed)


# Soteria


@pytest.mark.parametrize("prune_rate", [0.2, 0.5, 0.8])
def test_soteria_prunes_where_the_representation_tells_most(prune_rate):
    payload, batch = net(), private()
    update = Soteria(FedSGD(), prune_rate)(payload, batch, seed=0)
    whole = FedSGD()(payload, batch, seed=0)

    ratio = torch.zeros(7, dtype=torch.float64)
    for image in batch.images:
        jacobian = torch.autograd.functional.jacobian(
            lambda x: payload.represent(x[None])[0], image
        )
        r = payload.represent(image[None])[0].detach()
        for i in range(7):
            if r[i] != 0:
                ratio[i] += r[i].abs() / jacobian[i].norm()
    pruned = set(ratio.argsort(descending=True)[: round(prune_rate * 7)].tolist())
    for i in range(7):
        expected = whole["classifier.weight"][:, i] * (i not in pruned)
        assert torch.equal(update["classifier.weight"][:, i], expected)
    for name in ("encoder.weight", "encoder.bias", "classifier.bias"):
        assert torch.equal(update[name], whole[name])
    assert whole["classifier.weight"][:, sorted(pruned)].any()


def test_soteria_keeps_dead_entries_and_prunes_constant_ones_first():
    payload = net()
    with torch.no_grad():
        payload.encoder.weight[2:4] = 0
        payload.encoder.bias[2] = -1.0  # never active
        payload.encoder.bias[3] = 1e-3  # active, and the same for every image
    update = Soteria(FedSGD(), 0.01)(payload, private(), seed=0)
    assert not update["classifier.weight"][:, 3].any()
    assert update["classifier.weight"].any(0).sum() == 5
    update = Soteria(FedSGD(), 0.85)(payload, private(), seed=0)
    assert update["classifier.weight"].any(0).sum() == 0  # six pruned, one dead


def test_soteria_of_another_layer():
    payload, batch = net(), private()
    update = Soteria(FedSGD(), 0.5, layer="encoder")(payload, batch, seed=0)
    whole = FedSGD()(payload, batch, seed=0)
    # that layer reads the pixels themselves: the slope is 1, and the brightest are pruned
    pruned = batch.images.flatten(1).sum(0).topk(6).indices
    assert not update["encoder.weight"][:, pruned].any()
    assert update["encoder.weight"].any(0).sum() == 6
    assert torch.equal(update["classifier.weight"], whole["classifier.weight"])


class Tokens(nn.Module):
    """Its last matrix reads many vectors of an image, the one before it one."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(12, 6)
        self.classifier = nn.Linear(6, 3)
        self.tokens = nn.Linear(4, 1)

    def forward(self, images):
        logits = self.classifier(self.encoder(images.flatten(1)).tanh())
        return logits + self.tokens(images.flatten(2)).mean(1)


def test_soteria_takes_the_last_layer_that_reads_a_representation():
    batch = private()
    payload = Tokens().double()
    update = Soteria(FedSGD(), 0.5)(payload, batch, seed=0)
    whole = FedSGD()(payload, batch, seed=0)
    assert update["classifier.weight"].any(0).sum() == 3
    assert whole["classifier.weight"].any(0).all()
    for name in ("encoder.weight", "tokens.weight"):
        assert torch.equal(update[name], whole[name])


def test_the_attackers_stand_in_for_soteria_is_what_the_client_sends():
    payload, batch = net(), private()
    client = Soteria(FedSGD(label_smoothing=0.1), 0.5)
    update = client(payload, batch, seed=0)
    images = torch.stack([batch.images, 0.5 * batch.images]).requires_grad_()

    def one(images):
        simulated = client.simulate(payload, images, batch.labels, gradient=functional)
        return client.stand_in(simulated, update)

    with client.working(payload):
        simulated = vmap(one)(images)
    assert list(simulated) == list(update)
    for name in update:
        torch.testing.assert_close(simulated[name][0], update[name])
        assert not torch.equal(simulated[name][1], update[name])
    (slope,) = torch.autograd.grad(simulated["classifier.weight"].square().sum(), images)
    assert slope.any()


def test_soteria_leaves_the_payload_and_the_random_state_alone():
    payload, batch = ConvNet(width=2), private()
    batch = batch._replace(images=torch.rand(6, 3, 16, 16))
    before = copy.deepcopy(payload.state_dict())
    state = torch.get_rng_state()
    first, again = (Soteria(FedSGD(), 0.5)(payload, batch, seed=1) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert payload.training
    assert not payload.classifier._forward_pre_hooks
    for name, tensor in payload.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert first["classifier.weight"].any(0).sum() == 4


# mixup and InstaHide


def one_hot(batch):
    return F.one_hot(batch.labels, 6).double()


def test_mixup_mixes_pairs_with_one_weight():
    batch = private()._replace(labels=torch.arange(6))
    payload = nn.Sequential(nn.Flatten(), nn.Linear(12, 6)).double()
    weights = []
    for seed in range(300):
        inner = Recorder()
        update = MixUp(inner, alpha=0.7)(payload, batch, seed=seed)
        mixed = inner.batch
        own = mixed.labels.diagonal()
        weight = own.min()  # more only where an image meets itself
        other = (mixed.labels - weight * one_hot(batch)).argmax(1)
        assert sorted(other.tolist()) == list(range(6))
        expected = weight * batch.images + (1 - weight) * batch.images[other]
        torch.testing.assert_close(mixed.images, expected)
        if seed < 5:
            logits = payload(mixed.images)
            loss = -(mixed.labels * logits.log_softmax(1)).sum(1).mean()
            expected = torch.autograd.grad(loss, list(payload.parameters()))
            for tensor, gradient in zip(update.values(), expected, strict=True):
                torch.testing.assert_close(tensor, gradient)
        if not (other == torch.arange(6)).all():
            weights.append(float(weight))
    # Beta(a, a) has mean 1/2 and variance 1 / (4 (2 a + 1))
    mean, variance = torch.tensor(weights).mean(), torch.tensor(weights).var()
    assert abs(mean - 0.5) < 4 * math.sqrt(1 / 9.6 / len(weights))
    assert variance.item() == pytest.approx(1 / 9.6, rel=0.2)


@pytest.mark.parametrize("num_mixed", [2, 4])
def test_instahide_mixes_different_images_and_flips_signs(num_mixed):
    batch = private()._replace(labels=torch.arange(6))
    payload = nn.Sequential(nn.Flatten(), nn.Linear(12, 6)).double()
    flips, largest = [], []
    for seed in range(100):
        inner = Recorder()
        InstaHide(inner, num_mixed)(payload, batch, seed=seed)
        labels = inner.batch.labels
        assert ((labels > 0).sum(1) == num_mixed).all()
        assert (labels.diagonal() > 0).all()
        assert ((labels > 0).sum(0) == num_mixed).all(), "each image is used as often"
        torch.testing.assert_close(labels.sum(1), torch.ones(6, dtype=torch.float64))
        largest.append(labels.max())
        plain = (labels @ (2 * batch.images - 1).flatten(1)).view_as(batch.images)
        signed = 2 * inner.batch.images - 1
        torch.testing.assert_close(signed.abs(), plain.abs())
        assert inner.batch.images.min() >= 0
        assert inner.batch.images.max() <= 1
        flips.append((signed.sign() != plain.sign()).double().flatten())
    assert 0.6 < max(largest) <= 0.65
    rate = torch.stack(flips).mean(0)
    assert ((rate - 0.5).abs() < 5 * 0.05).all(), "each number flips in half of the batches"
    assert abs(float(rate.mean()) - 0.5) < 4 * 0.5 / math.sqrt(7200)


@pytest.mark.parametrize("make", [MixUp, InstaHide])
def test_mixing_depends_on_the_seed_alone_and_reaches_other_protocols(make):
    payload, batch = net(), private()
    client = make(FedAvg(0.1, epochs=2, minibatch_size=3))
    state = torch.get_rng_state()
    first, again, other = (client(payload, batch, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["encoder.weight"], other["encoder.weight"])
    assert client.protocol == "fedavg"
    assert client.gradient_scale == -10
    # the attacker's side is the inner client's
    with client.working(payload):
        simulated = client.simulate(payload, batch.images, batch.labels)
        expected = client.client.simulate(payload, batch.images, batch.labels)
    assert all(torch.equal(simulated[name], expected[name]) for name in expected)


def test_mixing_in_front_of_soteria():
    payload, batch = net(), private()
    client = MixUp(Soteria(FedSGD(), 0.5))
    update = client(payload, batch, seed=3)
    assert update["classifier.weight"].any(0).sum() <= 3
    ones = {name: torch.ones_like(tensor) for name, tensor in update.items()}
    kept = client.stand_in(ones, update)["classifier.weight"].any(0)
    assert torch.equal(kept, update["classifier.weight"].any(0))


# PRECODE and dropout in the target


def test_the_bottleneck_by_hand():
    inner, batch = net(), private()
    target = VariationalBottleneck(inner, num_latents=5, kl_weight=0.3, seed=2).double()
    torch.manual_seed(7)
    logits, penalty = target.train()(batch.images, with_penalty=True)

    torch.manual_seed(7)
    statistics = target.encoder(inner.represent(batch.images))
    mean, std = statistics[:, :5], F.softplus(statistics[:, 5:])
    noise = torch.randn(6, 5, dtype=torch.float64)
    expected = inner.classifier(target.decoder(mean + std * noise))
    torch.testing.assert_close(logits, expected)
    bits = kl_divergence(Normal(mean, std), Normal(0.0, 1.0)).sum(1).mean() / math.log(2)
    torch.testing.assert_close(penalty, 0.3 * bits)
    assert penalty > 0

    torch.testing.assert_close(target.eval()(batch.images), inner.classifier(target.decoder(mean)))


def test_the_penalty_is_part_of_the_clients_loss():
    batch = private()
    target = VariationalBottleneck(net(), num_latents=5, kl_weight=0.3).double()
    update = FedSGD()(target, batch, seed=4)
    torch.manual_seed(4)
    logits, penalty = target(batch.images, with_penalty=True)
    loss = F.cross_entropy(logits, batch.labels) + penalty
    gradients = torch.autograd.grad(loss, list(target.parameters()))
    for tensor, gradient in zip(update.values(), gradients, strict=True):
        torch.testing.assert_close(tensor, gradient)
    without = VariationalBottleneck(net(), num_latents=5, kl_weight=0.0).double()
    assert not torch.equal(
        FedSGD()(without, batch, seed=4)["encoder.weight"], update["encoder.weight"]
    )


def test_the_bottleneck_passes_through_the_attackers_simulation():
    batch = private()
    target = VariationalBottleneck(net(), num_latents=5).double()
    client = FedSGD()
    images = torch.stack([batch.images, batch.images]).requires_grad_()

    def one(images):
        return client.simulate(target, images, batch.labels, gradient=functional)

    with client.working(target):
        simulated = vmap(one, randomness="different")(images)
    first, second = simulated["body.encoder.weight"]
    assert not torch.equal(first, second), "each restart draws its own noise"
    (slope,) = torch.autograd.grad(first.square().sum(), images)
    assert slope[0].any()


def test_dropout_drops_entries_of_the_representation():
    inner, batch = net(), private()
    target = Dropout(inner, 0.4).double()
    torch.manual_seed(3)
    logits = target.train()(batch.images)
    torch.manual_seed(3)
    kept = torch.ones(6, 7, dtype=torch.float64).bernoulli_(0.6)
    expected = inner.classifier(inner.represent(batch.images) * kept / 0.6)
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(target.eval()(batch.images), inner(batch.images))
    first, again, other = (FedSGD()(target, batch, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first["body.encoder.weight"], again["body.encoder.weight"])
    assert not torch.equal(first["body.encoder.weight"], other["body.encoder.weight"])


def test_wrapped_targets_wrap_again_and_leave_the_inner_one_alone():
    inner, batch = net(), private()
    before = list(inner.state_dict())
    bottleneck = VariationalBottleneck(inner, num_latents=5)
    target = Dropout(bottleneck, 0.5).double()
    assert list(inner.state_dict()) == before
    assert target.num_classes == 3
    assert target.name == "Net with a bottleneck of 5 with dropout 0.5"
    linear = [name for name, m in target.named_modules() if isinstance(m, nn.Linear)]
    assert linear[-1] == "classifier"
    assert target.has_penalty
    _, penalty = target(batch.images, with_penalty=True)
    _, expected = bottleneck.double()(batch.images, with_penalty=True)
    torch.testing.assert_close(penalty, expected)
    assert not Dropout(inner).has_penalty


@pytest.mark.parametrize(
    "make",
    [
        lambda: LeNet(),
        lambda: ConvNet(width=2),
        lambda: TorchvisionClassifier("resnet18", None, 10),
    ],
)
def test_any_target_that_ends_in_a_linear_layer_can_be_wrapped(make):
    for target in (Dropout(make(), 0.1), VariationalBottleneck(make(), 4)):
        target.check_input((3, 32, 32))
        assert target.eval()(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    plain = make().eval()
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(Dropout(plain).eval()(images), plain(images))


# bad input


class Conv(Target):
    def __init__(self):
        super().__init__(3)
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, images):
        return self.conv(images).mean((2, 3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Soteria(FedAvg(0.1), 0.5), "FedSGD, not of FedAvg"),
        (lambda: Soteria(DPSGD(1.0), 0.5), "FedSGD, not of DPSGD"),
        (lambda: Soteria(FedSGD(), 1.0), "prune_rate"),
        (lambda: Soteria(FedSGD(), 0.0), "prune_rate"),
        (lambda: Soteria(FedSGD(), 0.5, "head")(net(), private(), seed=0), "no layer 'head'"),
        (lambda: Soteria(FedSGD(), 0.5)(Conv().double(), private(), seed=0), "linear layer"),
        (
            lambda: Soteria(FedSGD(), 0.5, "conv")(Conv().double(), private(), seed=0),
            "conv.weight is not of a linear layer",
        ),
        (lambda: MixUp(FedSGD(), 0.0), "alpha"),
        (lambda: MixUp(DPSGD(1.0)), "DPSGD"),
        (lambda: MixUp(Aggregate(FedSGD(), 2)), "Aggregate"),
        (lambda: MixUp(FedSGD())(net(), private(1), seed=0), "batch of 1"),
        (lambda: InstaHide(FedSGD(), 1), "num_mixed"),
        (lambda: InstaHide(FedSGD(), 4)(net(), private(3), seed=0), "num_mixed 4 is more"),
        (lambda: Dropout(net(), 1.0), "rate"),
        (lambda: Dropout(Conv()), "Conv has no linear layer"),
        (lambda: VariationalBottleneck(net(), 0), "num_latents"),
        (lambda: VariationalBottleneck(net(), kl_weight=-1.0), "kl_weight"),
        (lambda: VariationalBottleneck(Conv()), "Conv has no linear layer"),
    ],
)
def test_bad_input_is_refused_in_one_line(make, message):
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
