"""Several clients as one computation come out as they would one by one."""

import csv
import json
import warnings
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from attack_helpers import bind_to

from lightning_recon.attacks import DLG, GradInversion, MultiScale, ROGAttack
from lightning_recon.attacks.matching.evidence import stack_clients
from lightning_recon.clients import FedAvg, FedSGD
from lightning_recon.commands.lightning import main
from lightning_recon.data import SampleImagesDataModule
from lightning_recon.data.sharing import ClientLoader
from lightning_recon.defenses import (
    QSGD,
    ClipL2,
    GaussianNoise,
    PowerSGD,
    RandomK,
    SignSGD,
    TernGrad,
    TopK,
    UniformQuantiser,
)
from lightning_recon.errors import InputError
from lightning_recon.observation import Failure
from lightning_recon.priors import DeepFeatures, Prior, TotalVariation
from lightning_recon.targets import ConvNet, LeNet

TINY = str(Path(__file__).parent / "conf/matching_tiny.yaml")
CLIENTS = (0, 1, 2)


@contextmanager
def computing():
    """That of a run, without its Trainer."""
    with torch.enable_grad():
        yield


def descent(parameters):
    return torch.optim.SGD(parameters, lr=3.0)


def make(attack_class=ROGAttack, batch_size=2, **arguments):
    arguments = {
        "target": LeNet(num_classes=20),
        "iterations": 4,
        "optimizer": descent,
        "distance": "cosine",
        **arguments,
    }
    if attack_class is ROGAttack:
        arguments = {"upsampling": 1, **arguments}
    attack = attack_class(**arguments)
    attack.computing = computing
    data = SampleImagesDataModule(batch_size=batch_size, num_clients=3, image_size=32)
    return bind_to(attack, data)


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.images, other.images, rtol=0, atol=2e-4)
        torch.testing.assert_close(one.score, other.score, rtol=1e-3, atol=1e-6)
        assert one.labels.tolist() == other.labels.tolist()
        assert one.notes == other.notes
        assert [place for place, _ in one.curve] == [place for place, _ in other.curve]
        values = [torch.tensor([value for _, value in r.curve]) for r in (one, other)]
        torch.testing.assert_close(*values, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"num_restarts": 2, "batch_size": 1},
        {"client": FedAvg(0.01, 2, 1, momentum=0.5), "num_restarts": 2},
        {"client": FedAvg(0.01, 2), "known": ["labels"]},
        {"known": ["num_samples", "client"]},
        {"target": ConvNet(num_classes=20, width=4), "num_restarts": 2},
        {"priors": [TotalVariation(1e-3), DeepFeatures(0.1)]},
        {"upsampling": 4},
        {"attack_class": MultiScale, "num_scales": 2, "signed": False, "optimizer": descent},
        *(
            {"defenses": [defense], "adaptive": True, "num_restarts": 2}
            for defense in (
                *(QSGD(4), QSGD(4, scale="l2"), TopK(0.9), SignSGD(), TernGrad()),
                *(UniformQuantiser(4), RandomK(0.9), PowerSGD(2)),
            )
        ),
        {"defenses": [ClipL2(0.1), GaussianNoise(0.001)], "adaptive": True},
    ],
    ids=range(18),
)
def test_each_client_comes_out_as_it_would_alone(arguments):
    alone, together = make(**arguments), make(clients_at_once=3, **arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as the one that they are attacked one by one
        found = together.attack_together(CLIENTS)
        noise = together.attack_together(CLIENTS, noise_only=True)
    expected = [alone.attack_client(client) for client in CLIENTS]
    assert_same(found, expected)
    assert_same(noise, [alone.attack_noise(client) for client in CLIENTS])
    assert not torch.equal(expected[0].images, expected[1].images)
    for reconstruction in expected:
        assert reconstruction.curve[-1][1] < reconstruction.curve[0][1]


@pytest.mark.parametrize("clients_at_once", [1, 2])
def test_the_gradient_through_batch_norm_is_that_of_finite_differences(clients_at_once):
    """Autograd around vmap loses the derivative of the batch's mean and variance."""
    target = ConvNet(num_classes=20, width=4).double()
    attack = make(target=target, num_restarts=3 - clients_at_once, clients_at_once=clients_at_once)
    starts, evidences = zip(
        *(attack.initialize(attack.play(client)) for client in range(clients_at_once)), strict=True
    )
    start = torch.cat(starts)
    evidence = evidences[0] if clients_at_once == 1 else stack_clients(evidences)
    _, gradient = attack.differentiate(start, evidence)
    direction = torch.randn(
        start.shape, generator=torch.Generator().manual_seed(0), dtype=start.dtype
    )
    ahead, behind = (
        attack.differentiate(start + step * direction, evidence)[0]["matching"]
        for step in (1e-6, -1e-6)
    )
    slopes = (ahead - behind) / 2e-6
    along = (gradient * direction).view(2, -1).sum(1)
    torch.testing.assert_close(along, slopes, rtol=1e-5, atol=0)


@pytest.mark.parametrize("noise_only", [False, True])
def test_a_failing_client_fails_alone(noise_only, monkeypatch):
    attack = make(clients_at_once=3)
    expected = attack.attack_together(CLIENTS, noise_only=noise_only)
    play = attack.play

    def broken(client, **options):
        if client == 1:
            raise InputError("the update of client 1 holds NaN")
        return play(client, **options)

    monkeypatch.setattr(attack, "play", broken)
    with pytest.raises(InputError, match="client 1"):
        attack.attack_together(CLIENTS, noise_only=noise_only)
    attack.records_failures = True
    found = attack.attack_together(CLIENTS, noise_only=noise_only)
    assert found[1] == Failure("the update of client 1 holds NaN")
    assert_same([found[0], found[2]], [expected[0], expected[2]])


class Branching(Prior):
    """Looks at the numbers, which vmap does not allow."""

    def forward(self, images):
        return self.weight * images.square().mean((1, 2, 3)) if images.max() > 0 else images.sum()


def test_what_cannot_be_batched_is_attacked_one_by_one():
    attack = make(clients_at_once=3, priors=[Branching(0.1)])
    with pytest.warns(UserWarning, match="3 clients could not be attacked together"):
        found = attack.attack_together(CLIENTS)
    alone = make(priors=[Branching(0.1)])
    assert_same(found, [alone.attack_client(client) for client in CLIENTS])


def test_a_client_of_another_size_is_attacked_apart(monkeypatch):
    sizes = []
    for clients_at_once in (1, 3):
        attack = make(clients_at_once=clients_at_once)
        client = attack.data.client
        monkeypatch.setattr(
            attack.data,
            "client",
            lambda number, client=client: type(client(number))(
                *(field[: 1 if number == 1 else 2] for field in client(number))
            ),
        )
        sizes.append(attack.attack_together(CLIENTS))
    assert [len(reconstruction.images) for reconstruction in sizes[0]] == [2, 1, 2]
    assert_same(sizes[1], sizes[0])


def test_where_memory_is_short_fewer_clients_then_fewer_restarts_run_at_once(monkeypatch):
    attack = make(clients_at_once=4, num_restarts=2, batch_size=1)
    expected = attack.attack_together(CLIENTS)
    real = attack.engine._differentiate
    sizes = []

    def short(dummy, evidence, image_shape):
        sizes.append(len(dummy))
        if len(dummy) > 1:
            raise torch.OutOfMemoryError("too much")
        return real(dummy, evidence, image_shape)

    monkeypatch.setattr(attack.engine, "_differentiate", short)
    found = attack.attack_together(CLIENTS)
    assert sizes[:3] == [6, 2, 1]  # all, one client, one restart
    assert (attack.engine.clients_together, attack.engine.restarts_at_once) == (1, 1)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.images, other.images, rtol=0, atol=2e-4)
        assert one.notes == {**other.notes, "restarts_at_once": 1.0, "clients_at_once": 1.0}


def test_a_chunk_of_clients_is_compared_with_their_own_updates(monkeypatch):
    attack = make(clients_at_once=3, client=FedAvg(0.01))
    expected = attack.attack_together(CLIENTS)
    attack.engine.clients_together = 2
    found = attack.attack_together(CLIENTS)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.images, other.images, rtol=0, atol=2e-4)


def test_each_client_is_left_where_it_would_be_alone(monkeypatch):
    alone, together = make(iterations=8), make(iterations=8, clients_at_once=3)
    curves = [alone.attack_client(client).curve for client in CLIENTS]
    limit = sum(curve[4][1] for curve in curves) / 3
    for attack in (alone, together):
        monkeypatch.setattr(attack.loop, "is_on_plateau", lambda curve: curve[-1][1] < limit)
    expected = [alone.attack_client(client) for client in CLIENTS]
    assert len({len(reconstruction.curve) for reconstruction in expected}) > 1
    assert_same(together.attack_together(CLIENTS), expected)
    monkeypatch.setattr(together.loop, "is_on_plateau", lambda curve: len(curve) == 2)
    assert [len(r.curve) for r in together.attack_together(CLIENTS)] == [2, 2, 2]


@pytest.mark.parametrize(
    ("attack_class", "arguments"), [(DLG, {}), (GradInversion, {}), (DLG, {"optimizer": descent})]
)
def test_attacks_that_look_at_one_client_say_so(attack_class, arguments):
    with pytest.raises(InputError, match="one client at a time; leave out clients_at_once"):
        attack_class(LeNet(20), clients_at_once=2, **arguments)


def test_the_loader_hands_out_groups():
    loader = ClientLoader(5, [7, 3, 4, 8, 1].__getitem__)
    groups = [item.tolist() for item in loader.in_groups(2)]
    assert groups == [[7, 3], [4, 8], [1]]
    assert len(loader.in_groups(2)) == 3
    assert [item.tolist() for item in loader.in_groups(1)] == [7, 3, 4, 8, 1]


# --- the command line --------------------------------------------------------------------------


def run(folder, monkeypatch, *arguments):
    folder.mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    assert main(["test", "--config", TINY, *arguments]) == 0
    return folder / "lightning_logs/version_0"


def records(run):
    (path,) = (run / "records").iterdir()
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_same_outputs(run, other):
    for one, two in zip(records(run), records(other), strict=True):
        assert one["client"] == two["client"]
        assert one["controls"].keys() == two["controls"].keys()
        for name, control in one["controls"].items():
            assert control["psnr"] == pytest.approx(two["controls"][name]["psnr"], abs=0.05)
    tables = []
    for folder in (run, other):
        with (folder / "clients.csv").open() as file:
            tables.append(list(csv.DictReader(file)))
    assert len(tables[0]) == len(tables[1]) == 5
    for one, two in zip(*tables, strict=True):
        assert one["index"] == two["index"]
        for name in ("psnr", "ssim", "score"):
            assert float(one[name]) == pytest.approx(float(two[name]), rel=0.01)


def test_a_test_of_groups_and_one_that_was_stopped(tmp_path, monkeypatch):
    plain = run(tmp_path / "plain", monkeypatch)
    flag = ["--model.init_args.clients_at_once", "2"]
    grouped = run(tmp_path / "grouped", monkeypatch, *flag)
    assert_same_outputs(grouped, plain)
    assert "noise_only" in records(grouped)[0]["controls"]

    attacked = []
    observe = FedSGD.run

    def stop(client, payload, batch, *, seed):
        attacked.append(batch.indices.tolist())
        if len(attacked) == 4:
            raise RuntimeError("stopped")
        return observe(client, payload, batch, seed=seed)

    folder = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(FedSGD, "run", stop)
        with pytest.raises(RuntimeError, match="stopped"):
            run(folder, monkeypatch, *flag)
    stopped = folder / "lightning_logs/version_0"
    assert [record["client"] for record in records(stopped)] == [0, 1]
    assert main(["test", "--resume", str(stopped)]) == 0
    assert [record["client"] for record in records(stopped)] == [0, 1, 2, 3, 4]
    assert_same_outputs(stopped, grouped)
