import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_recon.clients import FedSGD
from lightning_recon.defenses import ClipL2, apply_chain
from lightning_recon.structures import PrivateBatch
from lightning_recon.targets import ConvNet, LeNet

pytestmark = pytest.mark.usefixtures("one_thread")


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
