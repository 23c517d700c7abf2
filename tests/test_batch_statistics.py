"""What the buffers of a client tell of its batch, against the statistics of the batch itself."""

import copy

import pytest
import torch
import torch.nn.functional as F
from attack_helpers import bind
from torch import nn

from lightning_recon.attacks import Attack, InvertingGradients
from lightning_recon.attacks.matching.batch_statistics import batch_statistics
from lightning_recon.audit.privacy_statement import privacy_statement
from lightning_recon.clients import Aggregate, FedAvg, FedSGD, InstaHide, MixUp, Soteria
from lightning_recon.defenses import ClipL2, GaussianNoise, PrivUnit2
from lightning_recon.errors import InputError
from lightning_recon.runs.results import describe_attack
from lightning_recon.targets import ConvNet, LeNet, TorchvisionClassifier
from lightning_recon.updates import PrivateBatch


def private(size=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(size, 3, 32, 32, generator=generator)
    images *= torch.rand(size, 3, 1, 1, generator=generator)
    masks = torch.ones(size, 1, 32, 32, dtype=torch.bool)
    return PrivateBatch(images, torch.arange(size) % 10, masks, torch.arange(size))


def public_model(momentum=0.1):
    """A model that has seen some batches before it is sent."""
    model = ConvNet(width=4)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = momentum
    for seed in range(7, 10):
        model.train()(private(seed=seed).images)
    return model


def inputs_of_norms(model, images):
    """What each batch norm sees, by hooks on a copy in training mode."""
    model = copy.deepcopy(model).train()
    seen = {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_pre_hook(
                lambda _, inputs, name=name: seen.update({name: inputs[0].detach()})
            )
    model(images)
    assert seen
    return seen


def assert_statistics(found, seen, tolerance=1e-4):
    for name, features in seen.items():
        columns = features.transpose(0, 1).flatten(1).double()
        for kind, expected in (("running_mean", columns.mean(1)), ("running_var", columns.var(1))):
            got = found[f"{name}.{kind}"].double()
            torch.testing.assert_close(got, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("momentum", [0.1, 0.01, 1.0, None])
@pytest.mark.parametrize("client", [FedSGD(), FedAvg(0.1), Soteria(FedSGD(), 0.5)])
def test_the_batch_statistics_of_one_step_are_solved_exactly(client, momentum):
    payload, batch = public_model(momentum), private()
    _, buffers = client.run(payload, batch, seed=0)
    found = batch_statistics(payload, buffers)
    assert list(found) == [name for name, _ in payload.named_buffers() if "num_" not in name]
    assert_statistics(
        found, inputs_of_norms(payload, batch.images), 1e-3 if momentum == 0.01 else 1e-4
    )


def test_also_of_a_network_that_never_saw_a_batch_and_has_other_layers():
    torch.manual_seed(0)
    payload = TorchvisionClassifier("resnet18", None, 10)
    batch = private(4)
    _, buffers = FedSGD().run(payload, batch, seed=0)
    found = batch_statistics(payload, buffers)
    assert_statistics(found, inputs_of_norms(payload, batch.images))


@pytest.mark.parametrize("momentum", [0.3, None])
def test_buffers_of_local_steps_are_those_of_a_plain_loop(momentum):
    payload, batch = public_model(momentum), private()
    client = FedAvg(0.1, 2, 4, momentum=0.5, shuffle=False)
    update, buffers = client.run(payload, batch, seed=0)

    trained = copy.deepcopy(payload).train()
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1, momentum=0.5)
    weights, seen = [], []
    for _ in range(2):
        for part in (slice(0, 4), slice(4, 6)):
            seen.append(inputs_of_norms(trained, batch.images[part]))
            optimizer.zero_grad()
            F.cross_entropy(trained(batch.images[part]), batch.labels[part]).backward()
            optimizer.step()
    assert list(buffers) == [name for name, _ in trained.named_buffers()]
    for name, buffer in trained.named_buffers():
        torch.testing.assert_close(buffers[name], buffer)
    torch.testing.assert_close(
        update["classifier.bias"],
        trained.classifier.bias.detach() - payload.classifier.bias.detach(),
    )

    weights = torch.ones(4) if momentum is None else 0.7 ** torch.arange(3.0, -1, -1)
    weights /= weights.sum()
    found = batch_statistics(payload, buffers)
    for name in seen[0]:
        means = torch.stack([step[name].mean((0, 2, 3)) for step in seen])
        torch.testing.assert_close(
            found[f"{name}.running_mean"], weights @ means, rtol=1e-3, atol=1e-4
        )


def test_a_client_in_evaluation_mode_tells_nothing():
    payload, batch = public_model(), private()
    _, buffers = FedAvg(0.1, 2, mode="eval").run(payload, batch, seed=0)
    found = batch_statistics(payload, buffers)
    for name, buffer in payload.named_buffers():
        assert torch.equal(buffers[name], buffer)
        assert "num_" in name or torch.equal(found[name], buffer)


def test_neither_the_payload_nor_its_buffers_change_and_they_are_not_lent():
    payload = public_model()
    before = copy.deepcopy(payload.state_dict())
    for client in (FedSGD(), FedAvg(0.1, 2), MixUp(FedSGD()), Aggregate(FedSGD(), 2)):
        _, buffers = client.run(payload, private(), seed=0)
        for buffer in buffers.values():
            buffer.add_(1)
    for name, tensor in payload.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_of_an_aggregate_the_mean_is_sent():
    payload, batch = public_model(), private()
    _, buffers = Aggregate(FedSGD(), 3).run(payload, batch, seed=0)
    shares = [PrivateBatch(*(field[i : i + 2] for field in batch)) for i in (0, 2, 4)]
    parts = [FedSGD().run(payload, share, seed=0)[1] for share in shares]
    for name, buffer in buffers.items():
        assert buffer.dtype == parts[0][name].dtype
        expected = torch.stack([part[name].double() for part in parts]).mean(0)
        torch.testing.assert_close(buffer.double(), expected)
    means = batch_statistics(payload, buffers)["features.1.running_mean"]
    torch.testing.assert_close(
        means,
        inputs_of_norms(payload, batch.images)["features.1"].mean((0, 2, 3)),
        rtol=0,
        atol=1e-4,
    )


def test_of_a_mixing_client_it_is_the_mixed_batch():
    payload, batch = public_model(), private()
    _, buffers = InstaHide(FedSGD(), 2).run(payload, batch, seed=0)
    found = batch_statistics(payload, buffers)["features.1.running_mean"]
    own = inputs_of_norms(payload, batch.images)["features.1"].mean((0, 2, 3))
    assert (found - own).abs().max() > 1e-2


class Counting(nn.Module):
    """Puts a new tensor into its buffer instead of writing the old one."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3 * 32 * 32, 10)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, images):
        self.calls = self.calls + 1
        return self.linear(images.flatten(1))


def test_buffers_that_are_replaced_come_back_too():
    payload = Counting()
    _, buffers = FedAvg(0.1, 3).run(payload, private(), seed=0)
    assert (buffers["calls"], payload.calls) == (3, 0)


def test_without_buffers_they_are_the_running_ones_of_layers_that_saw_a_batch():
    payload = public_model()
    expected = {name: tensor for name, tensor in payload.named_buffers() if "num_" not in name}
    found = batch_statistics(payload)
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    payload.features[1].reset_running_stats()
    assert list(batch_statistics(payload)) == [
        name for name in expected if not name.startswith("features.1.")
    ]
    assert batch_statistics(ConvNet(width=4)) == {}
    assert batch_statistics(LeNet(), {}) == {}
    assert batch_statistics(nn.BatchNorm2d(3, track_running_stats=False), {}) == {}


# what is granted to an attacker


class Grants(Attack):
    """Keeps what it observes."""

    threat_model = citation = "none"

    def __init__(self, *oracles, **arguments):
        super().__init__(**arguments)
        self.oracles = oracles

    def server_payload(self, model):
        return model

    def reconstruct(self, observation):
        raise NotImplementedError


def granting(*oracles, **arguments):
    return bind(Grants(*oracles, **arguments), private().images[:0])


def test_buffers_are_observed_only_where_they_are_granted():
    batch = private()
    arguments = {"target": public_model(), "defenses": [ClipL2(1e-3), GaussianNoise(1.0)]}
    assert granting("labels", **arguments).federation.play(batch, 0).buffers is None
    attack = granting("buffers", **arguments)
    observation = attack.federation.play(batch, 0)
    found = batch_statistics(observation.payload, observation.buffers)
    assert_statistics(found, inputs_of_norms(attack.federation.payload, batch.images))


def test_without_data_the_buffers_are_the_payloads_own():
    attack = granting("buffers", target=public_model())
    observation = attack.federation.play_noise(torch.zeros(2, dtype=torch.int64), 0)
    for name, buffer in attack.federation.payload.named_buffers():
        assert torch.equal(observation.buffers[name], buffer)


def test_buffers_of_a_captured_update():
    attack = granting("buffers", target=public_model())
    update, buffers = FedSGD().run(attack.federation.payload, private(), seed=0)
    captured = {"update": update, "num_samples": 6, "labels": None}
    observation = attack.federation.receive({**captured, "buffers": buffers}, 0)
    for name, buffer in buffers.items():
        assert torch.equal(observation.buffers[name], buffer)
    del buffers["features.1.running_var"]
    with pytest.raises(InputError, match=r"update 4: .* are missing, such as features.1.running_v"):
        attack.federation.receive({**captured, "buffers": buffers}, 4)
    buffers["features.1.running_var"] = torch.zeros(3)
    with pytest.raises(InputError, match=r"features\.1\.running_var is 3, not 4") as caught:
        attack.federation.receive({**captured, "buffers": buffers}, 4)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("known", [["labels"], ["labels", "buffers"]])
def test_the_privacy_statement_tells_of_buffers_that_pass_no_defense(known):
    attack = InvertingGradients(
        ConvNet(10), defenses=[ClipL2(1.0), GaussianNoise(1.0)], known=known
    )
    privacy = describe_attack(attack, 4)["privacy"]
    is_granted = "buffers" in known
    assert privacy["statement"].endswith("pass no defense") is is_granted
    assert (privacy["actual"] is None) is is_granted
    assert (privacy["rero_1000"] == 1) is is_granted


def test_buffers_that_do_not_exist_cannot_be_granted():
    known = ["labels", "num_samples", "client", "buffers"]
    attack = InvertingGradients(LeNet(10), known=known)
    with pytest.raises(InputError, match="LeNet has no buffers to grant"):
        bind(attack, torch.zeros(0, 3, 32, 32))
    attack = InvertingGradients(ConvNet(10, width=4), known=known)
    bind(attack, torch.zeros(0, 3, 32, 32))
    update = dict(attack.target.named_parameters())
    captured = {"update": update, "num_samples": 1, "labels": torch.tensor([1])}
    with pytest.raises(InputError, match="captured update 3 holds no buffers"):
        attack.federation.receive(captured, 3)


def test_no_claim_holds_where_buffers_are_sent():
    defenses = [PrivUnit2(epsilon=10, clip_norm=1)]
    InvertingGradients(ConvNet(10), defenses=defenses)  # binds them
    for sends_buffers in (False, True):
        privacy = privacy_statement(defenses, FedSGD(), 4, sends_buffers=sends_buffers)
        assert privacy["claimed"]["epsilon"] == 10
        assert privacy["claim_holds"] is not sends_buffers
