import copy
import weakref
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from lightning_recon.attacks import InvertingGradients
from lightning_recon.clients import (
    DPSGD,
    Aggregate,
    Client,
    FedAvg,
    FedAvgAdamW,
    FedSGD,
    InstaHide,
    MixUp,
)
from lightning_recon.clients.base import LocalLoss, functional, plain
from lightning_recon.defenses import ClipL2, GaussianNoise, apply_chain
from lightning_recon.errors import InputError
from lightning_recon.targets import ConvNet, LeNet
from lightning_recon.updates import Buffers, PrivateBatch, Update


def private(size=6, image_size=32, num_classes=10, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    return PrivateBatch(
        images=torch.rand(size, 3, image_size, image_size, generator=generator, dtype=dtype),
        labels=torch.randint(num_classes, (size,), generator=generator),
        masks=torch.ones(size, 1, image_size, image_size, dtype=torch.bool),
        indices=torch.arange(size),
    )


class Odd(nn.Module):
    """Tied weights, a frozen layer, a layer without part, dropout and a counting buffer."""

    def __init__(self, dropout=0.5):
        super().__init__()
        self.encoder = nn.Linear(48, 48)
        self.again = nn.Linear(48, 48)
        self.again.weight = self.encoder.weight
        self.norm = nn.BatchNorm1d(48)
        self.frozen = nn.Linear(48, 48).requires_grad_(False)
        self.unused = nn.Linear(7, 5)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(48, 10)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, images):
        self.calls += 1
        features = F.adaptive_avg_pool2d(images, 4).flatten(1)
        features = torch.tanh(self.again(torch.tanh(self.norm(self.encoder(features)))))
        return self.classifier(self.dropout(self.frozen(features))) * self.scale


def odd(dropout=0.5):
    torch.manual_seed(0)
    return Odd(dropout).double()


def by_backward(payload, batch, seed=0):
    """The gradient as a plain training loop computes it, on a copy of the model."""
    model = copy.deepcopy(payload).requires_grad_().train()
    model.zero_grad()
    torch.manual_seed(seed)
    loss = nn.CrossEntropyLoss()(model(batch.images), batch.labels)
    loss.backward()
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in model.named_parameters()
    }


def snapshot(payload):
    """All that a client could change in a model."""
    return {
        "tensors": {
            name: (tensor, tensor.detach().clone(), tensor.requires_grad)
            for name, tensor in (*payload.named_parameters(), *payload.named_buffers())
        },
        "gradients": {
            name: None if parameter.grad is None else parameter.grad.clone()
            for name, parameter in payload.named_parameters()
        },
        "modes": {name: module.training for name, module in payload.named_modules()},
    }


def assert_same(before, after):
    assert before["modes"] == after["modes"]
    assert before["tensors"].keys() == after["tensors"].keys()
    for name, (tensor, value, requires_grad) in before["tensors"].items():
        assert after["tensors"][name][0] is tensor, name
        assert torch.equal(after["tensors"][name][1], value), name
        assert after["tensors"][name][2] == requires_grad, name
    for name, gradient in before["gradients"].items():
        now = after["gradients"][name]
        assert (now is None) == (gradient is None), name
        assert gradient is None or torch.equal(now, gradient), name


PAYLOADS = {
    "LeNet": lambda: LeNet().double(),
    "ConvNet with batch norm": lambda: ConvNet(width=4).double(),
    "frozen as in an attack": lambda: ConvNet(width=4).double().requires_grad_(False),
    "odd": odd,
}


@pytest.mark.parametrize("make", PAYLOADS.values(), ids=PAYLOADS.keys())
@pytest.mark.parametrize("training", [True, False])
def test_update_is_the_gradient_of_a_plain_backward(make, training):
    payload, batch = make().train(training), private()
    update = FedSGD()(payload, batch, seed=5)
    expected = by_backward(payload, batch, seed=5)
    assert list(update) == [name for name, _ in payload.named_parameters()]
    for name, gradient in expected.items():
        torch.testing.assert_close(update[name], gradient, rtol=1e-9, atol=1e-12)
    assert sum(gradient.abs().sum() for gradient in update.values()) > 0


def test_linear_model_by_hand():
    """Softmax regression has its gradient in closed form: (p - y)^T x / B."""
    payload, batch = nn.Sequential(nn.Flatten(), nn.Linear(48, 10)).double(), private(image_size=4)
    images = batch.images.flatten(1)
    logits = images @ payload[1].weight.T + payload[1].bias
    residual = logits.exp() / logits.exp().sum(1, keepdim=True)
    residual[torch.arange(6), batch.labels] -= 1
    update = FedSGD()(payload, batch, seed=0)
    torch.testing.assert_close(update["1.weight"], (residual.T @ images / 6).detach())
    torch.testing.assert_close(update["1.bias"], residual.mean(0).detach())


@pytest.mark.parametrize("make", PAYLOADS.values(), ids=PAYLOADS.keys())
@pytest.mark.parametrize("training", [True, False])
def test_payload_is_not_changed(make, training):
    payload = make().train(training)
    for i, parameter in enumerate(payload.parameters()):
        if i % 2 and parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, 3.0)
    before = snapshot(payload)
    FedSGD()(payload, private(), seed=0)
    assert_same(before, snapshot(payload))


def test_modes_of_single_layers_are_kept():
    payload = ConvNet(width=4).double()
    payload.features[1].eval()
    before = snapshot(payload)
    FedSGD()(payload, private(), seed=0)
    assert_same(before, snapshot(payload))


def test_payload_is_not_changed_by_a_failure():
    payload = ConvNet(width=4).double().eval()
    before = snapshot(payload)
    random_state = torch.get_rng_state()
    with pytest.raises(RuntimeError):
        FedSGD()(payload, private()._replace(images=torch.zeros(6, 5, 32, 32)), seed=0)
    assert_same(before, snapshot(payload))
    assert torch.equal(torch.get_rng_state(), random_state)


def test_batch_norm_uses_the_batch_and_not_the_running_statistics():
    payload, batch = ConvNet(width=4).double().eval(), private()
    first = FedSGD()(payload, batch, seed=0)
    for module in payload.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.fill_(3.0)
            module.running_var.fill_(7.0)
    second = FedSGD()(payload, batch, seed=0)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_parameters_without_part_get_zeros():
    payload = odd()
    update = FedSGD()(payload, private(), seed=0)
    for name in ("unused.weight", "unused.bias"):
        assert update[name].shape == payload.get_parameter(name).shape
        assert update[name].dtype == torch.float64
        assert not update[name].any()
    assert update["frozen.weight"].any(), "the server sees frozen layers too"


def test_tied_weights_are_one_parameter():
    update = FedSGD()(odd(), private(), seed=0)
    assert "encoder.weight" in update
    assert "again.weight" not in update
    assert "again.bias" in update


def test_dropout_depends_on_the_seed_only():
    payload, batch = odd(), private()
    torch.manual_seed(1)
    first = FedSGD()(payload, batch, seed=5)
    torch.manual_seed(2)
    torch.rand(7)
    again = FedSGD()(payload, batch, seed=5)
    other = FedSGD()(payload, batch, seed=6)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])
    without = FedSGD()(odd(dropout=0), batch, seed=5)
    assert not torch.equal(first["classifier.weight"], without["classifier.weight"])


def test_global_random_state_is_untouched():
    payload, batch = odd(), private()
    before = torch.get_rng_state()
    FedSGD()(payload, batch, seed=5)
    assert torch.equal(torch.get_rng_state(), before)


def test_works_without_gradients_outside():
    payload, batch = ConvNet(width=4).double(), private()
    expected = FedSGD()(payload, batch, seed=0)
    with torch.no_grad():
        update = FedSGD()(payload, batch, seed=0)
        assert not torch.is_grad_enabled()
    assert all(torch.equal(update[name], expected[name]) for name in expected)
    assert not any(gradient.requires_grad for gradient in (*update.values(), *expected.values()))


def test_images_keep_no_graph():
    batch = private()
    FedSGD()(odd(), batch, seed=0)
    assert not batch.images.requires_grad
    assert batch.images.grad is None


class SharedGradient(nn.Module):
    """Two parameters whose sum is used, and one that is only ever summed up."""

    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.zeros(10))
        self.second = nn.Parameter(torch.zeros(10))
        self.summed = nn.Parameter(torch.ones(10))

    def forward(self, images):
        return images.flatten(1)[:, :10] * self.summed.sum() + (self.first + self.second)


def test_parts_of_the_update_may_be_changed_in_place():
    """Defenses do, so no two parts may share their memory."""
    update = FedSGD()(SharedGradient().double(), private(), seed=0)
    expected = {name: gradient.clone() for name, gradient in update.items()}
    norm = torch.cat(list(expected.values())).norm()
    sent = apply_chain([ClipL2(0.5 * norm.item())], update, generator=torch.Generator())
    for name, gradient in expected.items():
        torch.testing.assert_close(sent[name], 0.5 * gradient)


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.Tanh(), nn.Linear(7, 3)).double()


def _batch(num_samples: int = 6) -> PrivateBatch:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(num_samples, 3, 2, 2, generator=generator, dtype=torch.float64)
    masks = torch.ones(num_samples, 1, 2, 2, dtype=torch.bool)
    return PrivateBatch(images, torch.arange(num_samples) % 3, masks, torch.arange(num_samples))


@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.0, 0.0), (0.9, 0.01)])
def test_fedavg_is_the_change_of_the_weights_by_torch_sgd(
    momentum: float, weight_decay: float
) -> None:
    payload, batch = _net(), _batch()
    client = FedAvg(0.1, 2, 4, momentum, weight_decay, shuffle=False)
    update = client(payload, batch, seed=0)

    trained = copy.deepcopy(payload)
    optimizer = torch.optim.SGD(
        trained.parameters(), lr=0.1, momentum=momentum, weight_decay=weight_decay
    )
    for _ in range(2):
        for part in (slice(0, 4), slice(4, 6)):
            optimizer.zero_grad()
            F.cross_entropy(trained(batch.images[part]), batch.labels[part]).backward()
            optimizer.step()
    for (name, after), before in zip(trained.named_parameters(), payload.parameters(), strict=True):
        torch.testing.assert_close(update[name], after.detach() - before.detach())
        assert not update[name].requires_grad
    assert client.num_steps(6) == 4


def test_fedavg_holds_no_gradient_of_an_earlier_step() -> None:
    payload, batch = _net(), _batch()
    held: list[weakref.ref[Tensor]] = []

    def gradient(loss: LocalLoss, parameters: Update, images: Tensor, labels: Tensor) -> Update:
        assert [one() for one in held] == [None] * len(held)
        found = plain(loss, parameters, images, labels)
        held[:] = [weakref.ref(one) for one in found.values()]
        return found

    def loss(parameters: Update, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(payload, parameters, (images,)), labels)

    parameters = {name: tensor.detach() for name, tensor in payload.named_parameters()}
    client = FedAvg(0.1, 3, momentum=0.9, weight_decay=0.01)
    client.local_update(loss, parameters, batch.images, batch.labels, gradient=gradient)
    assert len(held) == 4


def test_fedavg_adamw_is_the_change_of_the_weights_by_torch_adamw() -> None:
    payload, batch = _net(), _batch()
    settings = {"betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}
    update = FedAvgAdamW(0.1, 2, 4, shuffle=False, **settings)(payload, batch, seed=0)

    trained = copy.deepcopy(payload)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=0.1, **settings)
    for _ in range(2):
        for part in (slice(0, 4), slice(4, 6)):
            optimizer.zero_grad()
            F.cross_entropy(trained(batch.images[part]), batch.labels[part]).backward()
            optimizer.step()
    for (name, after), before in zip(trained.named_parameters(), payload.parameters(), strict=True):
        torch.testing.assert_close(update[name], after.detach() - before.detach())


def test_attacks_that_read_sums_of_gradients_refuse_adamw() -> None:
    with pytest.raises(InputError, match="not of fedavg-adamw with several steps"):
        InvertingGradients(LeNet(), client=FedAvgAdamW(0.1))


def test_one_step_of_fedavg_is_a_scaled_gradient_and_shuffling_depends_on_the_seed() -> None:
    payload, batch = _net(), _batch()
    gradient = FedSGD()(payload, batch, seed=0)
    step = FedAvg(0.5)
    update = step(payload, batch, seed=0)
    for name in gradient:
        torch.testing.assert_close(step.gradient_scale * update[name], gradient[name])
    shuffling = FedAvg(0.5, minibatch_size=2)
    first, again, other = (shuffling(payload, batch, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(
    "client",
    [
        FedSGD(label_smoothing=0.1),
        FedAvg(0.1, 2, 3, momentum=0.5, shuffle=False),
        Aggregate(FedAvg(0.1, 3), 2),
    ],
)
def test_the_attackers_simulation_is_the_clients_update_and_differentiable(client: Client) -> None:
    payload, batch = _net(), _batch()
    update = client(payload, batch, seed=0)
    images = batch.images.clone().requires_grad_()
    with client.working(payload):
        simulated = client.simulate(payload, images, batch.labels)
        nested = client.simulate(payload, images, batch.labels, gradient=functional)
    for name in update:
        torch.testing.assert_close(simulated[name], update[name])
        torch.testing.assert_close(nested[name], update[name])

    def energy(images: Tensor) -> Tensor:
        with client.working(payload):
            result = client.simulate(payload, images, batch.labels)
        return sum((tensor.square().sum() for tensor in result.values()), torch.zeros(()))

    assert torch.autograd.gradcheck(energy, [images])


def test_an_aggregate_is_the_mean_of_its_clients() -> None:
    payload, batch = _net(), _batch()
    update = Aggregate(FedAvg(0.1, 2), 3)(payload, batch, seed=0)
    shares = [PrivateBatch(*(field[i : i + 2] for field in batch)) for i in (0, 2, 4)]
    parts = [FedAvg(0.1, 2)(payload, share, seed=0) for share in shares]
    for name in update:
        torch.testing.assert_close(
            update[name], torch.stack([part[name] for part in parts]).mean(0)
        )


WRAPPERS = {
    "mixup": (MixUp, 6),
    "instahide": (InstaHide, 6),
    "aggregate": (lambda client: Aggregate(client, 2), 3),
    "aggregate of mixup": (lambda client: Aggregate(MixUp(client), 3), 2),
}


def count_gradients(client: Client, num_samples: int) -> list[float]:
    """How often each local step's gradient counts, by a client whose k-th gradient is e_k."""
    steps: list[int] = []

    def unit(loss: object, parameters: Update, images: Tensor, labels: Tensor) -> Update:
        steps.append(1)
        return {"weight": torch.eye(40, dtype=torch.float64)[len(steps) - 1]}

    def loss(parameters: Update, images: Tensor, labels: Tensor) -> Tensor:
        raise AssertionError

    start = {"weight": torch.zeros(40, dtype=torch.float64)}
    samples = torch.arange(num_samples)
    update = client.local_update(loss, start, samples, samples, gradient=unit)
    return (client.gradient_scale * update["weight"])[: len(steps)].tolist()


@pytest.mark.parametrize(
    "client",
    [FedSGD(), FedAvg(0.1, 3), FedAvg(0.3, 2, 4), FedAvg(0.2, 3, 4, momentum=0.9)],
    ids=["fedsgd", "whole batches", "minibatches", "momentum"],
)
def test_how_often_each_gradient_counts_in_an_update(client: Client) -> None:
    assert client.gradient_weights(6) == pytest.approx(count_gradients(client, 6))
    assert client.num_gradients(6) == pytest.approx(sum(count_gradients(client, 6)))
    for make, num_samples in WRAPPERS.values():
        # an aggregate's clients have fewer samples, and hence steps, than there are in all
        assert make(client).gradient_weights(6) == client.gradient_weights(num_samples)
        assert make(client).num_gradients(6) == client.num_gradients(num_samples)


@pytest.mark.parametrize("make", [make for make, _ in WRAPPERS.values()], ids=WRAPPERS)
def test_a_wrapped_client_is_simulated_as_the_inner_one(make: Callable[[Client], Client]) -> None:
    class Own(FedAvg):
        clip_norm = None

        def loss_of(self, payload: nn.Module, buffers: Buffers | None = None) -> LocalLoss:
            return lambda parameters, images, labels: parameters["1.bias"].square().sum()

        def stand_in(self, update: Update, observed: Update) -> Update:
            return observed

    inner = Own(0.25, 2, mode="eval")
    client, payload, batch = make(inner), _net(), _batch()
    assert (client.protocol, client.gradient_scale, client.mode) == ("fedavg", -4, "eval")
    with client.working(payload):
        assert not payload.training
        simulated = client.simulate(payload, batch.images, batch.labels)
        expected = inner.simulate(payload, batch.images, batch.labels)
    assert payload.training
    assert simulated["1.bias"].any()
    assert not simulated["1.weight"].any()
    for name in expected:
        torch.testing.assert_close(simulated[name], expected[name])
    assert client.stand_in(simulated, expected) is expected


def test_an_aggregate_of_clients_that_clip_says_so() -> None:
    assert Aggregate(DPSGD(0.5), 2).clip_norm == 0.5
    assert Aggregate(FedSGD(), 2).clip_norm is None
    noise = GaussianNoise(calibration="record_mean", epsilon=1.0, num_records=10)
    InvertingGradients(LeNet(), client=Aggregate(DPSGD(0.5), 2), defenses=[noise])
    assert noise.std == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FedAvg(0.0), "learning_rate"),
        (lambda: FedAvg(0.1, epochs=0), "epochs"),
        (lambda: FedAvg(0.1, minibatch_size=0), "minibatch_size"),
        (lambda: FedAvg(0.1, momentum=1.0), "momentum"),
        (lambda: FedAvg(0.1, weight_decay=-1.0), "weight_decay"),
        (lambda: FedAvgAdamW(0.1, betas=(0.9, 1.0)), "betas must be in"),
        (lambda: FedAvgAdamW(0.1, eps=0.0), "eps must be"),
        (lambda: FedSGD(label_smoothing=1.0), "label_smoothing"),
        (lambda: FedSGD(mode="test"), "mode"),  # type: ignore[arg-type]
        (lambda: Aggregate(FedSGD(), 0), "num_clients"),
        (lambda: FedAvg(0.1, minibatch_size=7)(_net(), _batch(), seed=0), "minibatch_size 7"),
        (lambda: Aggregate(FedSGD(), 4)(_net(), _batch(), seed=0), "6 samples"),
    ],
)
def test_clients_refuse_bad_input(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_in_eval_mode_batch_norm_uses_the_running_statistics() -> None:
    torch.manual_seed(0)
    payload = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 3)).double()
    payload[0].running_mean.fill_(0.3)
    batch = _batch()
    update = FedSGD(mode="eval")(payload, batch, seed=0)
    payload.eval()
    F.cross_entropy(payload(batch.images), batch.labels).backward()
    assert payload[2].weight.grad is not None
    torch.testing.assert_close(update["2.weight"], payload[2].weight.grad)
    payload.train()
    assert not torch.equal(FedSGD()(payload, batch, seed=0)["2.weight"], update["2.weight"])
