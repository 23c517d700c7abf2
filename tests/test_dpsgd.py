"""Per-sample clipping against a loop over batches of one, and the noise that goes with it."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_recon.audit.privacy_statement import privacy_statement
from lightning_recon.clients import Aggregate, FedSGD, dpsgd
from lightning_recon.clients.dpsgd import DPSGD
from lightning_recon.defenses import DPSGDNoise, apply_chain, bind_chain
from lightning_recon.errors import InputError
from lightning_recon.privacy.accounting import rero_sampled
from lightning_recon.privacy.gaussian import gaussian_epsilon
from lightning_recon.privacy.reconstruction import rero_gaussian
from lightning_recon.rowsparse import RowSparse
from lightning_recon.targets import ConvNet, LeNet
from lightning_recon.updates import PrivateBatch


def private(size=5, image_size=32, num_classes=10, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(size, 3, image_size, image_size, generator=generator, dtype=dtype)
    # of very different brightness: some gradients are clipped and some are not
    images *= torch.linspace(0.02, 1, size, dtype=dtype)[:, None, None, None]
    return PrivateBatch(
        images=images,
        labels=torch.randint(num_classes, (size,), generator=generator),
        masks=torch.ones(size, 1, image_size, image_size, dtype=torch.bool),
        indices=torch.arange(size),
    )


class Odd(nn.Module):
    """Tied weights, a frozen layer, a layer without part, a scalar and a counting buffer."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(48, 48)
        self.again = nn.Linear(48, 48)
        self.again.weight = self.encoder.weight
        self.frozen = nn.Linear(48, 48).requires_grad_(False)
        self.unused = nn.Linear(7, 5)
        self.dropout = nn.Dropout(0.0)
        self.classifier = nn.Linear(48, 10)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, images):
        self.calls += 1
        features = F.adaptive_avg_pool2d(images, 4).flatten(1)
        features = torch.tanh(self.again(torch.tanh(self.encoder(features))))
        return self.classifier(self.dropout(self.frozen(features))) * self.scale


def odd():
    torch.manual_seed(0)
    return Odd().double()


PAYLOADS = {
    "LeNet": lambda: LeNet().double(),
    "batch norm": lambda: ConvNet(width=4).double(),
    "frozen as in an attack": lambda: ConvNet(width=4).double().requires_grad_(False),
    "odd": odd,
}
EVERY = pytest.mark.parametrize("make", PAYLOADS.values(), ids=PAYLOADS.keys())


def by_loop(payload, batch, clip_norm):
    """One plain backward pass a sample; batch norm with its running statistics."""
    total, norms = {}, []
    for image, label in zip(batch.images, batch.labels, strict=True):
        model = copy.deepcopy(payload).requires_grad_().eval()
        F.cross_entropy(model(image[None]), label[None]).backward()
        gradient = {
            name: torch.zeros_like(p) if p.grad is None else p.grad
            for name, p in model.named_parameters()
        }
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradient.values()))
        norms.append(norm)
        for name, g in gradient.items():
            total[name] = total.get(name, 0) + g * min(1, clip_norm / norm) / len(batch.images)
    return total, norms


def norm_of(update):
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in update.values()))


def assert_close(update, expected):
    assert list(update) == list(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(update[name], tensor, rtol=1e-9, atol=1e-12)


@EVERY
@pytest.mark.parametrize("num_parallel", [1, 2, None])
def test_equals_a_loop_over_batches_of_one(make, num_parallel):
    payload, batch = make(), private()
    _, norms = by_loop(payload, batch, 1.0)
    clip_norm = (min(norms) * max(norms)) ** 0.5
    expected, _ = by_loop(payload, batch, clip_norm)
    assert min(norms) < clip_norm < max(norms), "some are clipped, some are not"
    assert_close(DPSGD(clip_norm, num_parallel)(payload, batch, seed=0), expected)


def test_without_need_to_clip_it_is_fedsgd():
    payload, batch = LeNet().double(), private()
    assert_close(DPSGD(1e9)(payload, batch, seed=0), FedSGD()(payload, batch, seed=0))


@EVERY
@pytest.mark.parametrize("client", [DPSGD(1e9), Aggregate(DPSGD(1e9), 5)], ids=["one", "five"])
def test_its_attacker_uses_running_statistics_too_and_leaves_only_the_clip_out(make, client):
    payload, batch = make(), private()
    with client.working(payload):
        simulated = client.simulate(payload, batch.images, batch.labels)
    assert_close(simulated, client(payload, batch, seed=0))


def test_samples_are_differentiated_in_groups_that_fit_in_memory(monkeypatch):
    payload, batch = LeNet().double(), private()
    size = sum(parameter.numel() for parameter in payload.parameters())
    parameters = dict(payload.named_parameters())
    results = []
    for room, fitting in ((10 * size, 10), (2 * size + 1, 2), (size - 1, 1)):
        monkeypatch.setattr(dpsgd, "_NUM_NUMBERS", room)
        assert DPSGD(0.1)._fitting(parameters, "cpu") == fitting
        results.append(DPSGD(0.1)(payload, batch, seed=0))
    assert_close(results[1], results[0])
    assert_close(results[2], results[0])


class SparseRows(nn.Module):
    """One row of a wide matrix a sample, with a sparse gradient; the rows share their memory."""

    def __init__(self, shared):
        super().__init__()
        row = torch.linspace(-1, 1, 48, dtype=torch.float64)[None]
        self.rows = nn.Parameter(row.expand(9, 48) if shared else row.repeat(9, 1))
        self.head = nn.Linear(1, 10, dtype=torch.float64)
        self.shared = shared

    def forward(self, images):
        features = F.adaptive_avg_pool2d(images, 4).flatten(1)
        row = (features.mean(1) * 20).long().clamp(0, 8)
        rows = F.embedding(row, self.rows, sparse=self.shared)
        return self.head((features * rows).sum(1, keepdim=True))


def test_sparse_gradients_stay_sparse():
    torch.manual_seed(0)
    dense, sparse = SparseRows(False), SparseRows(True)
    sparse.head.load_state_dict(dense.head.state_dict())
    batch, clip_norm = private(), 1.2
    expected, norms = by_loop(dense, batch, clip_norm)
    assert min(norms) < clip_norm < max(norms)
    update = DPSGD(clip_norm)(sparse, batch, seed=0)
    assert isinstance(update["rows"], RowSparse)
    assert not update["rows"].is_dense
    assert len(update["rows"].rows) < 9, "samples share rows, and some rows are empty"
    torch.testing.assert_close(update["rows"].to_dense(), expected["rows"])
    torch.testing.assert_close(update["head.weight"], expected["head.weight"])
    with torch.autocast("cpu"):
        assert DPSGD(clip_norm)._fitting(dict(dense.named_parameters()), "cpu") == 1


@EVERY
def test_norm_and_sensitivity_are_bounded(make):
    payload, batch, clip_norm = make(), private(), 0.01
    client = DPSGD(clip_norm)
    update = client(payload, batch, seed=0)
    assert norm_of(update) <= clip_norm * (1 + 1e-9)
    for label in range(10):
        image = batch.images.clone()
        image[2] = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(label))
        labels = batch.labels.clone()
        labels[2] = label
        other = client(payload, batch._replace(images=image, labels=labels), seed=0)
        moved = norm_of({name: update[name] - other[name] for name in update})
        assert moved <= 2 * clip_norm / 5 * (1 + 1e-9)


def test_clipping_the_mean_instead_has_no_such_bound():
    """What the class is for: one sample moves a clipped mean by more than 2C/B."""
    payload, batch = nn.Sequential(nn.Flatten(), nn.Linear(48, 10)).double(), private(image_size=4)
    batch.images[:4] *= 1e-3
    clip_norm = 0.01

    def clipped_mean(batch):
        update = FedSGD()(payload, batch, seed=0)
        factor = min(1, clip_norm / norm_of(update))
        return {name: tensor * factor for name, tensor in update.items()}

    labels = batch.labels.clone()
    labels[4] = (labels[4] + 1) % 10
    first, second = clipped_mean(batch), clipped_mean(batch._replace(labels=labels))
    moved = norm_of({name: first[name] - second[name] for name in first})
    assert moved > 2 * clip_norm / 5


@EVERY
@pytest.mark.parametrize("training", [True, False])
def test_payload_is_not_changed(make, training):
    payload = make().train(training)
    before = {name: tensor.clone() for name, tensor in payload.state_dict().items()}
    modes = [module.training for module in payload.modules()]
    flags = [parameter.requires_grad for parameter in payload.parameters()]
    state = torch.get_rng_state()
    DPSGD(1.0)(payload, private(), seed=0)
    assert all(torch.equal(before[name], now) for name, now in payload.state_dict().items())
    assert [module.training for module in payload.modules()] == modes
    assert [parameter.requires_grad for parameter in payload.parameters()] == flags
    assert all(parameter.grad is None for parameter in payload.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_payload_is_not_changed_by_a_failure():
    payload = ConvNet(width=4).double()
    with pytest.raises(RuntimeError):
        DPSGD(1.0)(payload, private()._replace(images=torch.zeros(5, 5, 32, 32)), seed=0)
    assert all(module.training for module in payload.modules())


def test_tensors_of_the_update_are_its_own():
    update = DPSGD(1.0)(odd(), private(), seed=0)
    places = [tensor.data_ptr() for tensor in update.values()]
    assert len(set(places)) == len(places)
    assert all(tensor.is_contiguous() and not tensor.requires_grad for tensor in update.values())


def test_dropout_depends_on_the_seed_only():
    payload, batch = odd(), private()
    payload.dropout.p = 0.5
    torch.manual_seed(1)
    first = DPSGD(1.0)(payload, batch, seed=5)
    torch.manual_seed(2)
    again, other = DPSGD(1.0)(payload, batch, seed=5), DPSGD(1.0)(payload, batch, seed=6)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_gradient_of_zero_is_left_alone():
    payload = nn.Sequential(nn.Flatten(), nn.Linear(48, 1)).double()
    batch = private(image_size=4, num_classes=1)
    update = DPSGD(1.0)(payload, batch, seed=0)
    assert norm_of(update) == 0, "one class: the loss is 0 for every weight"


def test_one_bad_sample_is_refused():
    batch = private()
    batch.images[3, 0, 0, 0] = math.nan
    with pytest.raises(InputError, match="not finite") as error:
        DPSGD(1.0)(LeNet().double(), batch, seed=0)
    assert "\n" not in str(error.value)


def test_buffers_are_returned_as_they_were():
    payload = ConvNet(width=4).double()
    _, buffers = DPSGD(1.0).run(payload, private(), seed=0)
    assert list(buffers) == [name for name, _ in payload.named_buffers()]
    for name, buffer in payload.named_buffers():
        assert torch.equal(buffers[name], buffer)


def test_batch_norm_without_running_statistics_is_refused():
    payload = nn.Sequential(
        nn.BatchNorm2d(3, track_running_stats=False), nn.Flatten(), nn.Linear(48, 10)
    ).double()
    with pytest.raises(InputError, match="group norm"):
        DPSGD(1.0)(payload, private(image_size=4), seed=0)
    assert all(module.training for module in payload.modules())


@pytest.mark.parametrize("clip_norm", [0, -1.0, math.inf, math.nan])
def test_refuses_what_is_no_bound(clip_norm):
    with pytest.raises(InputError, match=r"^DPSGD: clip_norm"):
        DPSGD(clip_norm)


def test_refuses_no_samples_at_once():
    with pytest.raises(InputError, match=r"^DPSGD: num_parallel"):
        DPSGD(1.0, 0)


# --- the noise --------------------------------------------------------------------------------


@pytest.mark.parametrize(("adjacency", "factor"), [("replace", 2), ("add_remove", 1)])
@pytest.mark.parametrize("epsilon", [0.5, 8.0, 100.0])
def test_noise_calibrated_for_one_record(adjacency, factor, epsilon):
    noise = DPSGDNoise(3.0, 16, epsilon=epsilon, delta=1e-6, adjacency=adjacency)
    sensitivity = factor * 3.0 / 16
    assert gaussian_epsilon(sensitivity, noise.std, 1e-6) == pytest.approx(epsilon, rel=1e-9)
    assert noise.claimed["epsilon"] == epsilon
    assert noise.claimed["level"] == "record"


def test_noise_multiplier_is_in_units_of_a_clipped_gradient():
    noise = DPSGDNoise(3.0, 16, noise_multiplier=1.5)
    assert noise.std == pytest.approx(1.5 * 3.0 / 16)
    assert noise.claimed is None
    sent = apply_chain(
        [noise], {"a": torch.zeros(100_000)}, generator=torch.Generator().manual_seed(0)
    )
    assert sent["a"].std().item() == pytest.approx(noise.std, rel=0.01)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({}, "either"),
        ({"noise_multiplier": 1.0, "epsilon": 1.0}, "either"),
        ({"noise_multiplier": 0.0}, "noise_multiplier"),
        ({"noise_multiplier": math.nan}, "noise_multiplier"),
        ({"epsilon": -1.0}, "epsilon"),
        ({"epsilon": 1.0, "delta": 0.0}, "delta"),
        ({"epsilon": 1.0, "adjacency": "swap"}, "adjacency"),
        ({"epsilon": 1.0, "clip_norm": 0.0}, "clip_norm"),
        ({"epsilon": 1.0, "num_samples": 0}, "num_samples"),
    ],
)
def test_noise_refuses_what_does_not_fit_together(arguments, word):
    with pytest.raises(InputError, match=word) as error:
        DPSGDNoise(**{"clip_norm": 1.0, "num_samples": 16, **arguments})
    assert "\n" not in str(error.value)


def test_statement_of_dpsgd():
    noise = DPSGDNoise(1.0, 16, epsilon=8.0)
    bind_chain([noise])
    told = privacy_statement([noise], client=DPSGD(1.0), num_samples=16)
    assert told["record_level"]["epsilon"] == pytest.approx(8)
    assert told["record_level"]["adjacency"].startswith("record level")
    expected = gaussian_epsilon(2.0, noise.std, 1e-5)
    assert told["actual"]["epsilon"] == pytest.approx(expected)
    assert expected > 100, "a client is protected far less than a record"
    assert told["claim_holds"] is True
    assert "one record" in told["statement"]
    assert "all of one client's data" in told["statement"]


def test_rero_of_a_record_that_is_drawn_at_times():
    noise = DPSGDNoise(1.0, 16, noise_multiplier=2.0)
    bind_chain([noise])
    client = DPSGD(1.0)
    told, sampled = (
        privacy_statement([noise], client, num_samples=16, num_rounds=20, sampling_rate=rate)
        for rate in (1.0, 0.1)
    )
    assert told["rero_record_1000"] == pytest.approx(rero_gaussian(1.0, 2.0, num_rounds=20))
    assert sampled["rero_record_1000"] == pytest.approx(rero_sampled(2.0, 0.1, 20))
    assert sampled["rero_record_1000"] < told["rero_record_1000"] < told["rero_1000"]
    assert privacy_statement([noise], client)["rero_record_1000"] is None


@pytest.mark.parametrize("adjacency", ["replace", "add_remove"])
def test_a_claim_is_judged_in_its_own_terms(adjacency):
    noise = DPSGDNoise(1.0, 16, epsilon=8.0, delta=1e-3, adjacency=adjacency)
    told = privacy_statement([noise], client=DPSGD(1.0), num_samples=16, delta=1e-6)
    assert told["claim_holds"] is True
    assert told["record_level"]["epsilon"] > 8, "at a smaller delta, and under replacement"


def test_noise_of_dpsgd_without_its_client_protects_no_record():
    noise = DPSGDNoise(1.0, 16, epsilon=8.0)
    told = privacy_statement([noise], client=FedSGD(), num_samples=16)
    assert told["actual"] is None
    assert told["record_level"] is None
    assert told["claim_holds"] is False


@pytest.mark.parametrize(("clip_norm", "num_samples"), [(2.0, 16), (1.0, 8)])
def test_noise_made_for_another_client_is_refused(clip_norm, num_samples):
    noise = DPSGDNoise(1.0, 16, epsilon=8.0)
    with pytest.raises(InputError, match="give both the same"):
        privacy_statement([noise], client=DPSGD(clip_norm), num_samples=num_samples)
