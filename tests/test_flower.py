import json
import logging
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("flwr", reason="Flower is tested in an environment of its own, see .ci/run")

from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod, fixedclipping_mod
from flwr.serverapp import Grid
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg
from flwr.supercore.task_identity import TaskIdentity

from lightning_recon import reconstruct
from lightning_recon.attacks import (
    CuriousAbandonHonesty,
    LinearLayerInversion,
    RobbingTheFed,
    SpectralLDPAttack,
)
from lightning_recon.captures import Capture, read_truth
from lightning_recon.clients import FedAvg as FedAvgClient
from lightning_recon.defenses import QSGD, ClipL2, GaussianNoise, PrivUnitG, TopK
from lightning_recon.errors import InputError
from lightning_recon.integrations import flower
from lightning_recon.privacy.accounting import pld_epsilon
from lightning_recon.privacy.gaussian import gaussian_std
from lightning_recon.targets import MLP, LeNet
from lightning_recon.updates import DataSpec

ROOT = Path(__file__).parents[1]
NODES = (11, 2**63 + 5)


@pytest.fixture(autouse=True)
def _run(monkeypatch):
    """A message asks which run and node it is of."""
    for name, value in (("_run_id", 7), ("_node_id", 1), ("_task_id", 3)):
        monkeypatch.setattr(TaskIdentity, name, value)


class LocalGrid(Grid):
    """Clients within this process; messages have an id once they are sent, as in a real grid."""

    def __init__(self, app, nodes=NODES):
        self.app, self.nodes, self.inbox = app, nodes, {}

    run = None

    def set_run(self, run):
        raise NotImplementedError

    def create_message(self, *args, **kwargs):
        raise NotImplementedError

    def get_node_ids(self):
        return list(self.nodes)

    def push_messages(self, messages):
        ids = []
        for message in messages:
            ids.append(f"message {len(self.inbox)}")
            message.metadata.__dict__["_message_id"] = ids[-1]
            self.inbox[ids[-1]] = self._reply(message)
        return ids

    def pull_messages(self, message_ids):
        return [self.inbox[message_id] for message_id in message_ids]

    def send_and_receive(self, messages, *, timeout=None):
        return self.pull_messages(self.push_messages(messages))

    def _reply(self, message):
        node = message.metadata.dst_node_id
        content = RecordDict(dict(message.content))
        arrived = Message(
            content, node, message.metadata.message_type, group_id=message.metadata.group_id
        )
        arrived.metadata.__dict__["_message_id"] = message.metadata.message_id
        context = Context(7, node, {"partition-id": self.nodes.index(node)}, RecordDict(), {})
        return self.app(arrived, context)


def payload():
    generator = torch.Generator().manual_seed(0)
    return ArrayRecord(
        {
            "weight": Array(torch.randn(3, 4, generator=generator).numpy()),
            "half": Array(torch.randn(5, generator=generator).half().numpy()),
            "scale": Array(np.asarray(0.5, dtype=np.float32)),
            "num_batches_tracked": Array(np.asarray(4, dtype=np.int64)),
        }
    )


def client_app(mods=(), change=0.25, fails=(), metrics=None):
    """A client that adds to every number."""
    app = ClientApp(mods=list(mods))

    @app.train()
    def train(message, context):
        if context.node_id in fails:
            return Message(Error(code=1, reason="no data"), reply_to=message)
        arrays = {
            name: Array(np.asarray(array.numpy() + np.asarray(change).astype(array.numpy().dtype)))
            for name, array in message.content["arrays"].items()
        }
        place = context.node_config["partition-id"]
        told = MetricRecord({"num-examples": 10 + place, "loss": 0.5, **(metrics or {})})
        return Message(RecordDict({"arrays": ArrayRecord(arrays), "m": told}), reply_to=message)

    @app.evaluate()
    def evaluate(message, context):
        told = MetricRecord({"num-examples": 10, "loss": 0.5})
        return Message(RecordDict({"metrics": told}), reply_to=message)

    return app


def run(strategy, grid, rounds=2, config=None):
    random.seed(0)  # Flower draws nodes
    np.random.seed(0)  # and noise
    return strategy.start(
        grid, payload(), num_rounds=rounds, train_config=ConfigRecord(config or {})
    )


def bits(result):
    return {name: array.numpy().tobytes() for name, array in result.arrays.items()}


def replies_of(folder):
    found = list(Capture(folder).replies())
    assert not [reply for reply in found if isinstance(reply, InputError)]
    return found


STRATEGIES = {
    "FedAvg": FedAvg,
    "clips on the server": lambda: DifferentialPrivacyServerSideFixedClipping(
        FedAvg(), noise_multiplier=0.5, clipping_norm=0.1, num_sampled_clients=2
    ),
}


# --- the recorder ------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_results_are_the_same_bit_for_bit_and_all_is_recorded(strategy, tmp_path):
    app = client_app()
    if "clip" in str(strategy()):  # its clipping takes no whole numbers
        app = ClientApp()
        app.train()(floats_only)
    alone = run(strategy(), LocalGrid(app))
    recorded = run(flower.Recorder(strategy(), tmp_path / "capture"), LocalGrid(app))
    assert bits(recorded) == bits(alone)
    assert recorded.train_metrics_clientapp == alone.train_metrics_clientapp
    found = replies_of(tmp_path / "capture")
    assert [(reply.round, reply.client) for reply in found] == [
        (number, str(node)) for number in (1, 2) for node in sorted(NODES, key=str)
    ]
    for reply in found:
        change = reply.tensors["weight"] - reply.payload["weight"]
        torch.testing.assert_close(change, torch.full((3, 4), 0.25))  # as returned: not clipped


def floats_only(message, context):
    arrays = {
        name: Array(np.asarray(array.numpy() + np.asarray(0.25, array.numpy().dtype)))
        if array.numpy().dtype.kind == "f"
        else array
        for name, array in message.content["arrays"].items()
    }
    told = MetricRecord({"num-examples": 10})
    return Message(RecordDict({"arrays": ArrayRecord(arrays), "m": told}), reply_to=message)


def test_every_array_is_kept_bit_for_bit_of_its_type(tmp_path):
    def poison(message, context):
        reply = floats_only(message, context)
        arrays = dict(reply.content["arrays"])
        arrays["weight"] = Array(np.array([[np.nan, np.inf, -np.inf, -0.0]] * 3, np.float32))
        reply.content["arrays"] = ArrayRecord(arrays)
        return reply

    app = ClientApp()
    app.train()(poison)
    grid = LocalGrid(app)
    strategy = flower.Recorder(FedAvg(fraction_evaluate=0.0), tmp_path)
    run(strategy, grid, rounds=1)
    sent = {name: torch.from_numpy(array.numpy().copy()) for name, array in payload().items()}
    for reply in replies_of(tmp_path):
        assert list(reply.payload) == list(reply.tensors) == list(sent)
        for name, tensor in sent.items():
            assert reply.payload[name].dtype == reply.tensors[name].dtype == tensor.dtype
            assert reply.payload[name].shape == reply.tensors[name].shape == tensor.shape
            assert reply.payload[name].numpy().tobytes() == tensor.numpy().tobytes()
        returned = reply.tensors["weight"].numpy()
        assert (
            returned.tobytes()
            == np.array([[np.nan, np.inf, -np.inf, -0.0]] * 3, np.float32).tobytes()
        )


def test_a_payload_is_stored_once_and_facts_stand_under_the_formats_names(tmp_path):
    strategy = flower.Recorder(
        FedAvg(), tmp_path, image_shape=(3, 8, 8), run_config={"local-epochs": 9, "momentum": 0.9}
    )
    config = {"lr": 0.1, "local-epochs": 2, "batch-size": 4, "secret": b"1234"}
    run(strategy, LocalGrid(client_app()), config=config)
    assert len(list((tmp_path / "payloads").iterdir())) == 2  # one a round, for two clients
    reply = replies_of(tmp_path)[0]
    told = {"lr": 0.1, "local-epochs": 2, "batch-size": 4, "secret": "4 bytes", "server-round": 1}
    assert reply.facts["config"] == told
    assert reply.facts["metrics"] == {"num-examples": 10, "loss": 0.5}
    wanted = {"learning_rate": 0.1, "epochs": 2, "batch_size": 4, "momentum": 0.9, "steps": 6}
    wanted |= {"num_examples": 10, "kind": "weights", "image_shape": [3, 8, 8], "mods": None}
    assert {name: reply.facts[name] for name in wanted} == wanted
    assert Capture(tmp_path).facts["source"].startswith("flower 1.")
    assert Capture(tmp_path).facts["strategy"] == "FedAvg"


def test_what_nobody_says_is_not_guessed(tmp_path):
    run(flower.Recorder(FedAvg(), tmp_path), LocalGrid(client_app()), rounds=1)
    facts = replies_of(tmp_path)[0].facts
    assert not {"learning_rate", "momentum", "batch_size", "epochs", "steps"} & facts.keys()
    assert facts["num_examples"] == 10


def test_a_client_with_an_error_is_passed_over(tmp_path, caplog):
    app = client_app(fails=NODES[:1])
    alone = run(FedAvg(fraction_evaluate=0.0), LocalGrid(app))
    recorded = run(flower.Recorder(FedAvg(fraction_evaluate=0.0), tmp_path), LocalGrid(app))
    assert bits(recorded) == bits(alone)
    assert {reply.client for reply in replies_of(tmp_path)} == {str(NODES[1])}
    assert "not recorded" not in caplog.text  # it is no fault of the recorder


def test_a_fault_of_the_recorder_is_a_warning_and_the_round_goes_on(tmp_path, monkeypatch, caplog):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lightning_recon.captures.writer.write_atomically", full)
    alone = run(FedAvg(), LocalGrid(client_app()))
    with caplog.at_level(logging.WARNING, "lightning_recon"):
        recorded = run(flower.Recorder(FedAvg(), tmp_path), LocalGrid(client_app()))
    assert bits(recorded) == bits(alone)
    lines = [r.getMessage() for r in caplog.records if r.name.startswith("lightning_recon")]
    assert len(lines) == 8  # two rounds, two clients, sent and received
    reason = "OSError: [Errno 28] No space left on device"
    assert set(lines) == {
        f"not recorded: {what} node {node}: {reason}"
        for what in ("what was sent to", "the reply of")
        for node in NODES
    }


def test_a_loop_of_ones_own_around_the_strategys_methods(tmp_path):
    strategy = flower.Recorder(FedAvg(), tmp_path)
    grid = LocalGrid(client_app())
    messages = strategy.configure_train(3, payload(), ConfigRecord(), grid)
    arrays, metrics = strategy.aggregate_train(3, grid.send_and_receive(messages))
    assert metrics["loss"] == 0.5
    torch.testing.assert_close(arrays["scale"].numpy(), np.asarray(0.75, np.float32))
    assert {reply.round for reply in replies_of(tmp_path)} == {3}
    assert strategy.fraction_train == 1.0  # the strategy's


def test_the_strategys_own_loop_is_kept(tmp_path):
    class Own(FedAvg):
        def start(self, *args, **kwargs):
            result = super().start(*args, **kwargs)
            result.mine = "kept"
            return result

    result = run(flower.Recorder(Own(), tmp_path), LocalGrid(client_app()), rounds=1)
    assert result.mine == "kept"
    assert len(replies_of(tmp_path)) == 2


def asking(node, **config):
    content = RecordDict({"arrays": payload(), "config": ConfigRecord(config)})
    return Message(content, node, MessageType.TRAIN)


def test_a_grid_without_a_strategy_counts_rounds_and_finds_late_replies(tmp_path):
    grid = flower.recording_grid(LocalGrid(client_app()), tmp_path, image_shape=(1, 2, 2))
    first = grid.push_messages([asking(NODES[0], lr=1.0), asking(NODES[1], lr=1.0)])
    second = grid.push_messages([asking(NODES[0], lr=2.0)])
    assert len(grid.pull_messages([*second, *first])) == 3
    found = [(r.round, r.client, r.facts["learning_rate"]) for r in replies_of(tmp_path)]
    assert found == [
        (1, str(NODES[0]), 1.0),
        (1, str(NODES[1]), 1.0),
        (2, str(NODES[0]), 2.0),
    ]
    grid.send_and_receive([asking(NODES[1], **{"server-round": 9})])
    assert replies_of(tmp_path)[-1].round == 9
    assert list(grid.get_node_ids()) == list(NODES)


def test_messages_that_are_no_training_are_passed_over(tmp_path):
    grid = flower.recording_grid(LocalGrid(client_app()), tmp_path)
    content = RecordDict({"arrays": payload()})
    grid.send_and_receive([Message(content, NODES[0], MessageType.EVALUATE)])
    with pytest.raises(InputError, match="holds no reply"):
        Capture(tmp_path)


def test_arrays_of_several_records_keep_apart(tmp_path):
    def train(message, context):
        arrays = ArrayRecord({"weight": Array(np.ones(2, np.float32))})
        content = RecordDict({"arrays": arrays, "control": arrays})
        return Message(content, reply_to=message)

    app = ClientApp()
    app.train()(train)
    grid = flower.recording_grid(LocalGrid(app), tmp_path)
    grid.send_and_receive([asking(NODES[0])])
    assert list(replies_of(tmp_path)[0].tensors) == ["weight", "control:weight"]


def test_a_folder_that_holds_something_else_is_told_before_the_federation_starts(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(InputError, match="no capture and not empty"):
        flower.Recorder(FedAvg(), tmp_path)


def test_an_older_strategy(tmp_path):
    from flwr.common import Code, FitRes, Status, ndarrays_to_parameters
    from flwr.server.client_manager import SimpleClientManager
    from flwr.server.client_proxy import ClientProxy
    from flwr.server.strategy import DifferentialPrivacyServerSideFixedClipping as Clipping
    from flwr.server.strategy import FedAvg as OldFedAvg

    class Proxy(ClientProxy):
        get_properties = get_parameters = fit = evaluate = reconnect = None

    Proxy.__abstractmethods__ = frozenset()
    manager = SimpleClientManager()
    for cid in ("11", "12"):
        manager.register(Proxy(cid))
    weights = [np.arange(6, dtype=np.float32).reshape(2, 3), np.zeros(2, np.float32)]

    def play(strategy):
        np.random.seed(0)
        sent = ndarrays_to_parameters(weights)
        results = []
        for proxy, fit in strategy.configure_fit(1, sent, manager):
            assert fit.parameters is sent
            returned = ndarrays_to_parameters([array + 1 for array in weights])
            told = FitRes(Status(Code.OK, ""), returned, 8, {"loss": 0.25})
            results.append((proxy, told))
        return strategy.aggregate_fit(1, results, [])

    def strategy():
        return Clipping(OldFedAvg(on_fit_config_fn=lambda _: {"lr": 0.1}), 0.5, 0.1, 2)

    alone = play(strategy())
    names = ["fc.weight", "fc.bias"]
    assert play(flower.Recorder(strategy(), tmp_path, names=names)) == alone
    found = replies_of(tmp_path)
    assert [(reply.round, reply.client) for reply in found] == [(1, "11"), (1, "12")]
    assert list(found[0].tensors) == list(found[0].payload) == names
    torch.testing.assert_close(found[0].payload["fc.weight"], torch.from_numpy(weights[0]))
    torch.testing.assert_close(found[0].tensors["fc.bias"], torch.ones(2))  # not clipped
    assert found[0].facts["learning_rate"] == 0.1
    assert found[0].facts["num_examples"] == 8
    assert found[0].facts["metrics"] == {"loss": 0.25}


def test_importing_it_loads_neither_lightning_nor_matplotlib():
    code = (
        "import sys, lightning_recon.integrations.flower\n"
        "print([m for m in ('pytorch_lightning', 'lightning', 'matplotlib') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout.strip() == "[]", found.stderr


@pytest.mark.slow
@pytest.mark.alone
def test_a_simulation_of_flower_gives_the_same_with_and_without_recorder(tmp_path):
    program = tmp_path / "simulate.py"
    program.write_text(SIMULATION)
    command = [sys.executable, program, tmp_path]
    where = os.environ | {"PYTHONPATH": str(ROOT)}
    found = subprocess.run(command, capture_output=True, text=True, timeout=300, env=where)
    assert found.returncode == 0, found.stderr[-3000:]
    assert (tmp_path / "alone.bin").read_bytes() == (tmp_path / "recorded.bin").read_bytes()
    replies = replies_of(tmp_path / "capture")
    assert sorted(reply.round for reply in replies) == [1, 1, 2, 2]
    assert len({reply.client for reply in replies}) == 2
    for reply in replies:
        torch.testing.assert_close(reply.tensors["weight"], reply.payload["weight"] * 2 + 1)
        assert reply.facts["mods"] == []
        truth = read_truth(tmp_path / "truth", reply)
        assert truth.images.shape == (1, 3, 2, 2)


@pytest.mark.slow
@pytest.mark.alone
def test_the_example_captures_and_audits_a_deployed_federation(sample_data, tmp_path):
    pytest.importorskip("opacus")
    batch = sample_data.client(0)
    pixels = (255 * batch.images).round().byte().permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "data.npz", x_test=pixels, y_test=(batch.labels % 10).numpy())
    program = str(ROOT / "examples" / "flower_audit" / "run.py")
    options = ["--data", tmp_path / "data.npz", "--output", tmp_path / "out", "--runs", "plain"]
    found = subprocess.run(
        [sys.executable, program, *options], capture_output=True, text=True, timeout=300
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stdout.count("by the truth: ") == 2  # of the audit, a client each
    assert "plain: LinearLayerInversion: 4 of 4 images right" in found.stdout
    assert (tmp_path / "out" / "plain" / "by_hand.png").is_file()
    replies = replies_of(tmp_path / "out" / "plain" / "capture")
    assert [reply.facts["mods"] for reply in replies] == [[], []]
    assert replies[0].facts["steps"] == 5
    assert "lightning_recon" not in (tmp_path / "out" / "plain.log").read_text()  # no warning


SIMULATION = """
import random
import sys
from pathlib import Path

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from lightning_recon.integrations import flower

folder = Path(sys.argv[1])


def data(message, context):
    return torch.full((1, 3, 2, 2), 0.5), torch.tensor([0])


app = ClientApp(mods=[flower.truth_mod(folder / "truth", data), *flower.declared()])


@app.train()
def train(message, context):
    weight = message.content["arrays"]["weight"].numpy()
    told = MetricRecord({"num-examples": 3})
    arrays = ArrayRecord({"weight": Array(weight * 2 + 1)})
    return Message(RecordDict({"arrays": arrays, "m": told}), reply_to=message)


def simulate(wrap, name):
    server = ServerApp()

    @server.main()
    def main(grid, context):
        strategy = wrap(FedAvg(fraction_evaluate=0.0))
        arrays = ArrayRecord({"weight": Array(np.linspace(0, 1, 7, dtype=np.float32))})
        result = strategy.start(grid, arrays, num_rounds=2)
        (folder / name).write_bytes(result.arrays["weight"].numpy().tobytes())

    backend = {
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        "init_args": {"num_cpus": 1, "include_dashboard": False},
    }
    run_simulation(server, app, num_supernodes=2, backend_config=backend)


if __name__ == "__main__":
    simulate(lambda strategy: strategy, "alone.bin")
    simulate(lambda strategy: flower.Recorder(strategy, folder / "capture"), "recorded.bin")
"""


# --- what clients declare ----------------------------------------------------------------------


def mods_of(tmp_path, mods, config=None):
    app = ClientApp(mods=mods)
    app.train()(floats_only)
    strategy = flower.Recorder(FedAvg(fraction_evaluate=0.0), tmp_path)
    run(strategy, LocalGrid(app), rounds=1, config=config)
    found = replies_of(tmp_path)
    assert len({json.dumps(reply.facts["mods"]) for reply in found}) == 1
    return found[0].facts["mods"]


def test_mods_are_declared_in_the_order_in_which_the_update_passes_them(tmp_path):
    def own_mod(message, context, call_next):
        return call_next(message, context)

    mods = flower.declared(LocalDpMod(1.0, 0.5, 10.0, 1e-5), own_mod, fixedclipping_mod)
    found = mods_of(tmp_path, mods, {"clipping_norm": 3.0})
    assert [mod["name"] for mod in found] == ["fixedclipping_mod", "own_mod", "LocalDpMod"]
    assert found[0]["clip_norm"] == 3.0
    assert found[2]["noise_std"] == pytest.approx(0.5 * (2 * np.log(1.25e5)) ** 0.5 / 10)
    assert (found[2]["clip_norm"], found[2]["epsilon"], found[2]["delta"]) == (1.0, 10.0, 1e-5)


def test_no_mods_and_nothing_said_differ(tmp_path):
    assert mods_of(tmp_path / "none", flower.declared()) == []
    assert mods_of(tmp_path / "silent", []) is None


def test_a_declaration_leaves_the_results_as_they_are():
    plain, declaring = client_app(), client_app(flower.declared())
    assert bits(run(FedAvg(), LocalGrid(plain))) == bits(run(FedAvg(), LocalGrid(declaring)))


def test_a_declaration_that_is_none_is_a_warning(tmp_path, caplog):
    def lie(message, context, call_next):
        reply = call_next(message, context)
        reply.content["lightning_recon.mods"] = ConfigRecord({"lightning_recon.mods": "7"})
        return reply

    app = client_app([lie])
    with caplog.at_level(logging.WARNING, "lightning_recon"):
        run(flower.Recorder(FedAvg(), tmp_path), LocalGrid(app), rounds=1)
    assert "should hold a list of objects" in caplog.text
    assert replies_of(tmp_path)[0].facts["mods"] is None


# --- truth -------------------------------------------------------------------------------------


def test_truth_lies_apart_and_belongs_to_its_reply(tmp_path, caplog):
    def data(message, context):
        place = context.node_config["partition-id"]
        return torch.full((2, 3, 4, 4), 0.25 + place / 2), torch.tensor([place, 3])

    app = client_app([flower.truth_mod(tmp_path / "truth", data)])
    run(flower.Recorder(FedAvg(), tmp_path / "capture"), LocalGrid(app))
    for reply in replies_of(tmp_path / "capture"):
        truth = read_truth(tmp_path / "truth", reply)
        place = NODES.index(int(reply.client))
        assert truth.images.unique().tolist() == [0.25 + place / 2]
        assert truth.labels.tolist() == [place, 3]
    assert not list((tmp_path / "capture").rglob("*truth*"))


def test_truth_that_cannot_be_written_is_a_warning(tmp_path, caplog):
    app = client_app([flower.truth_mod(tmp_path, lambda *_: (torch.full((1, 3, 2, 2), 7.0), [1]))])
    with caplog.at_level(logging.WARNING, "lightning_recon"):
        result = run(FedAvg(), LocalGrid(app), rounds=1)
    assert result.arrays is not None
    assert "images must lie in [0, 1]" in caplog.text


# --- defending ---------------------------------------------------------------------------------


def defended(tmp_path, chain):
    app = ClientApp(mods=[flower.defense_mod(chain)])
    app.train()(floats_only)
    strategy = flower.Recorder(FedAvg(fraction_evaluate=0.0), tmp_path)
    run(strategy, LocalGrid(app), rounds=1)
    return replies_of(tmp_path)


def change_of(reply):
    floats = [name for name, tensor in reply.tensors.items() if tensor.is_floating_point()]
    changes = [(reply.tensors[n].float() - reply.payload[n].float()).flatten() for n in floats]
    return torch.cat(changes)


def test_all_floats_are_clipped_together_and_whole_numbers_are_left(tmp_path):
    for reply in defended(tmp_path, [ClipL2(0.1)]):
        change = change_of(reply)
        assert len(change) == 12 + 5 + 1  # the 0-d one, too
        assert float(change.norm()) == pytest.approx(0.1, rel=2e-2)  # half precision
        assert float(reply.tensors["scale"] - 0.5) == pytest.approx(0.1 / 18**0.5, rel=1e-3)
        assert reply.tensors["scale"].shape == ()
        assert reply.tensors["half"].dtype == torch.float16
        assert reply.tensors["num_batches_tracked"] == 4
        assert reply.facts["mods"] == [{"name": "ClipL2", "clip_norm": 0.1}]


def test_noise_is_on_every_float_the_0_d_one_too_and_never_the_same(tmp_path):
    std = gaussian_std(epsilon=1.0, sensitivity=2 * 0.1, delta=1e-5)
    first, second = defended(tmp_path, [ClipL2(0.1), GaussianNoise(noise_std=std)])
    noise = change_of(first) - change_of(second)
    assert (noise != 0).all()
    assert 0.5 < float(noise.std()) / (2**0.5 * std) < 2
    assert first.facts["mods"][1] == {"name": "GaussianNoise", "noise_std": std}


def test_the_other_defenses_of_the_project_run(tmp_path):
    reply = defended(tmp_path / "topk", [TopK(sparsity=0.5)])[0]
    assert int((change_of(reply) == 0).sum()) == 6 + 2 + 0
    reply = defended(tmp_path / "qsgd", [QSGD(num_levels=2)])[0]
    assert len((reply.tensors["weight"] - reply.payload["weight"]).unique()) <= 6  # 0 or 1, rounded
    reply = defended(tmp_path / "privunit", [PrivUnitG(epsilon=4.0, clip_norm=0.1)])[0]
    assert reply.facts["mods"] == [
        {"name": "PrivUnitG", "epsilon": 4.0, "clip_norm": 0.1, "delta": 0.0}
    ]


def test_a_reply_that_cannot_be_protected_is_not_sent():
    app = client_app([flower.defense_mod([ClipL2(1.0)])], change=float("nan"))
    context = Context(7, NODES[0], {"partition-id": 0}, RecordDict(), {})
    with (
        pytest.raises(InputError, match=r"defense_mod: \w+ is not finite"),
        np.errstate(invalid="ignore"),
    ):
        app(asking(NODES[0]), context)


@pytest.mark.parametrize("dtype", [np.int8, np.complex64])
def test_arrays_of_other_numbers_are_sent_only_if_they_did_not_change(dtype):
    def reply_of(change):
        def train(message, context):
            array = message.content["arrays"]["quantised"].numpy()
            content = RecordDict({"a": ArrayRecord({"quantised": Array(array + dtype(change))})})
            return Message(content, reply_to=message)

        app = ClientApp(mods=[flower.defense_mod([ClipL2(1.0)])])
        app.train()(train)
        sent = ArrayRecord({"quantised": Array(np.arange(4).astype(dtype))})
        message = Message(RecordDict({"arrays": sent}), NODES[0], MessageType.TRAIN)
        return app(message, Context(7, NODES[0], {}, RecordDict(), {}))

    assert reply_of(0).content["a"]["quantised"].numpy().tolist() == [0, 1, 2, 3]
    with pytest.raises(InputError, match=r"quantised changed, holds .* cannot be protected"):
        reply_of(1)


def test_a_chain_that_lacks_a_bound_is_told_when_the_app_is_made():
    noise = GaussianNoise(calibration="record_mean", epsilon=1.0, num_records=1)
    with pytest.raises(InputError, match="needs the norm bound"):
        flower.defense_mod([noise])


# --- Opacus ------------------------------------------------------------------------------------


def test_opacus_protects_records_as_its_accountant_and_ours_say(sample_data, tmp_path):
    opacus = pytest.importorskip("opacus")
    torch.manual_seed(0)
    batch = sample_data.client(0)
    net = MLP(20, image_size=32, hidden=(64,))
    made = {}

    def train(message, context):
        model = MLP(20, image_size=32, hidden=(64,))
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loader = torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(batch.images, batch.labels), batch_size=4
        )
        if message.content["config"]["private"]:
            engine = opacus.PrivacyEngine(accountant="prv")
            model, optimizer, loader = engine.make_private(
                module=model,
                optimizer=optimizer,
                data_loader=loader,
                noise_multiplier=1.0,
                max_grad_norm=1.0,
            )
            made["engine"] = engine
        for images, labels in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
        model = getattr(model, "_module", model)
        told = MetricRecord({"num-examples": 8})
        content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "m": told})
        reply = Message(content, reply_to=message)
        if message.content["config"]["private"]:
            flower.declare(reply, "Opacus", noise_multiplier=1.0, clip_norm=1.0)
        return reply

    app = ClientApp(mods=flower.declared())
    app.train()(train)
    found = {}
    for private in (False, True):
        folder = tmp_path / str(private)
        strategy = flower.Recorder(FedAvg(fraction_evaluate=0.0), folder)
        config = ConfigRecord({"private": private})
        strategy.start(
            LocalGrid(app), ArrayRecord(net.state_dict()), num_rounds=1, train_config=config
        )
        reply = replies_of(folder)[0]
        attack = LinearLayerInversion(net, client=FedAvgClient(learning_rate=0.1))
        found[private] = reconstruct(
            attack, reply.tensors, before=reply.payload, image_shape=(3, 32, 32), num_samples=8
        ).images
    errors = (found[False][:, None] - batch.images).square().mean((2, 3, 4))
    assert (errors < 1e-4).any()
    if len(found[True]):
        assert ((found[True][:, None] - batch.images).square().mean((2, 3, 4)) > 0.02).all()
    assert reply.facts["mods"] == [{"name": "Opacus", "noise_multiplier": 1.0, "clip_norm": 1.0}]

    theirs = made["engine"].get_epsilon(1e-5)
    assert made["engine"].accountant.history == [(1.0, 0.5, 2)]
    ours = pld_epsilon(1.0, 1e-5, num_rounds=2, sampling_rate=0.5)
    assert theirs == pytest.approx(ours, rel=0.02)


# --- red team ----------------------------------------------------------------------------------


def test_nothing_is_injected_without_the_flag():
    with pytest.raises(InputError, match="red_team=True"):
        flower.inject(FedAvg(), nn.Linear(2, 2))


def spectral(noise_std):
    return SpectralLDPAttack(
        LeNet(10), clip_norm=1.0, noise_std=noise_std, num_bins=64, shrinkage_steps=0
    )


PAYLOADS = {
    "RobbingTheFed": lambda noise_std: RobbingTheFed(
        LeNet(10), num_bins=64, location=0.45, scale=0.15, sparse=True
    ),
    "CuriousAbandonHonesty": lambda noise_std: CuriousAbandonHonesty(
        LeNet(10), num_rows=1000, scaling=0.996
    ),
    "SpectralLDPAttack": spectral,
}

RECOVERED = {
    ("RobbingTheFed", None): 8,
    ("CuriousAbandonHonesty", None): 7,
    ("SpectralLDPAttack", None): 8,
    ("SpectralLDPAttack", 1000.0): 7,
}
"""Of eight images, at least, by attack and LocalDpMod's epsilon; none of all others."""


def bound(attack):
    attack.bind(DataSpec((3, 32, 32), 10, 4), torch.empty(0, 3, 32, 32))
    return attack


@pytest.mark.parametrize("epsilon", [None, 1000.0, 1.0])
@pytest.mark.parametrize("name", PAYLOADS)
def test_a_payload_goes_through_flower_and_its_images_come_back(
    name, epsilon, sample_data, tmp_path, caplog
):
    noise_std = (2 * np.log(1.25e5)) ** 0.5 / (epsilon or 1e6)
    mods = [] if epsilon is None else [LocalDpMod(1.0, 1.0, epsilon, 1e-5)]
    app = ClientApp(mods=flower.declared(*mods))
    batches = [sample_data.client(place) for place in (0, 1)]

    @app.train()
    def train(message, context):
        # the app's code is the attacker's: it makes the payload as the server made its own
        made = bound(PAYLOADS[name](noise_std)).federation.payload
        net = flower.load_payload(made, message.content["arrays"])
        batch = batches[context.node_config["partition-id"]]
        optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
        nn.functional.cross_entropy(net(batch.images[:4]), batch.labels[:4] % 10).backward()
        optimizer.step()
        told = MetricRecord({"num-examples": 4})
        content = RecordDict({"arrays": flower.payload_arrays(net), "m": told})
        return Message(content, reply_to=message)

    attack = bound(PAYLOADS[name](noise_std))
    honest = FedAvg(fraction_evaluate=0.0)
    strategy = flower.inject(honest, attack.federation.payload, red_team=True)
    with caplog.at_level(logging.WARNING, "lightning_recon"):
        run(flower.Recorder(strategy, tmp_path), LocalGrid(app), rounds=1)
    kind = type(attack.federation.payload).__name__
    assert f"RED TEAM: round 1: {kind} is sent to 2 clients" in caplog.text
    best = []
    for reply in replies_of(tmp_path):
        gradient = {n: reply.payload[n] - reply.tensors[n] for n in reply.payload}  # lr 1
        found = reconstruct(
            PAYLOADS[name](noise_std), gradient, image_shape=(3, 32, 32), num_samples=4
        )
        truth = batches[NODES.index(int(reply.client))].images[:4]
        errors = (found.images[:, None] - truth).square().mean((2, 3, 4))
        best += (-10 * errors.log10()).amax(0).tolist() if len(found.images) else [0.0] * 4
    recovered = sum(psnr >= 19 for psnr in best)
    assert recovered >= RECOVERED.get((name, epsilon), 0)
    assert recovered == 0 or (name, epsilon) in RECOVERED
