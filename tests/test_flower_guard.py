"""Flower: a client that looks before it trains, and a server that measures what leaks."""

import logging

import pytest
import torch
from torch import nn

pytest.importorskip("flwr", reason="Flower is tested in an environment of its own, see .ci/run")

from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity
from test_detect import SIZE, pictures
from test_flower import LocalGrid

from lightning_recon.errors import InputError
from lightning_recon.integrations import flower
from lightning_recon.leakage import Leakage
from lightning_recon.targets import MLP


@pytest.fixture(autouse=True)
def _run(monkeypatch):
    for name, value in (("_run_id", 7), ("_node_id", 1), ("_task_id", 3)):
        monkeypatch.setattr(TaskIdentity, name, value)


def net(seed=0):
    return MLP(10, SIZE, (128,), seed=seed)


def record(model):
    return ArrayRecord({name: Array(part.numpy()) for name, part in model.state_dict().items()})


def message(model):
    return Message(RecordDict({"arrays": record(model)}), 1, "train", group_id="1")


def trained(message, context):
    return "trained"


def set_biases(model):
    """Return a model whose first rows fire for an eighth of all images."""
    with torch.no_grad():
        layer = model.layers[1]
        seen = layer.weight @ pictures().flatten(1).T
        layer.bias.copy_(-seen.quantile(0.875, dim=1))
    return model


class TestDetectMod:
    context = staticmethod(lambda: Context(7, 11, {}, RecordDict(), {}))

    def test_an_honest_payload_is_trained_on_and_kept(self):
        context = self.context()
        mod = flower.detect_mod(net())
        assert mod(message(net()), context, trained) == "trained"
        assert mod(message(net()), context, trained) == "trained"
        assert len(context.state.array_records) == 1

    @pytest.mark.parametrize("model", [None, net()])
    def test_a_suspicious_one_is_not(self, model):
        context = self.context()
        mod = flower.detect_mod(model)
        with pytest.raises(InputError, match="biases take away"):
            mod(message(set_biases(net())), context, trained)
        assert not context.state.array_records

    def test_a_layer_that_was_not_declared(self):
        sent = nn.Sequential(net(), nn.Linear(10, 10))
        with pytest.raises(InputError, match="not declared"):
            flower.detect_mod(net())(message(sent), self.context(), trained)

    def test_one_that_differs_from_the_last_round(self):
        context = self.context()
        mod = flower.detect_mod()
        mod(message(net()), context, trained)
        model = net()
        with torch.no_grad():
            model.layers[1].bias.add_(0.5 * torch.randn(128))
        with pytest.raises(InputError, match="differ from the last round's"):
            mod(message(model), context, trained)

    def test_a_warning_is_a_warning(self, caplog):
        mod = flower.detect_mod(refuses=False)
        with caplog.at_level(logging.WARNING, "lightning_recon"):
            assert mod(message(set_biases(net())), self.context(), trained) == "trained"
        assert "the payload is suspicious" in caplog.text


class TestMeasuring:
    @staticmethod
    def app():
        app = ClientApp()

        @app.train()
        def train(message, context):
            content = RecordDict(
                {"arrays": message.content["arrays"], "m": MetricRecord({"num-examples": 4})}
            )
            return Message(content, reply_to=message)

        return app

    def run(self, leakage, **settings):
        strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1)
        strategy = flower.measuring(strategy, leakage, net(), **settings)
        return strategy.start(LocalGrid(self.app()), record(net()), num_rounds=3)

    def test_figures_stand_beside_the_metrics_of_their_rounds(self):
        images = pictures()
        leakage = Leakage(images[:1], torch.zeros(1), images[1:], 10, num_directions=8)
        found = self.run(leakage, every_n_rounds=2).train_metrics_clientapp
        assert "leakage/LinearLayerInversion" in found[1]
        assert "leakage/LinearLayerInversion" not in found[2]
        assert found[3]["leakage/LinearLayerInversion"] > 60

    def test_a_fault_is_a_warning_and_the_round_goes_on(self, caplog):
        class Broken:
            def measure(self, model, round_=0):
                raise RuntimeError("no room")

        with caplog.at_level(logging.WARNING, "lightning_recon"):
            assert self.run(Broken()).arrays
        assert "no room" in caplog.text

    def test_every_n_rounds_is_checked(self):
        with pytest.raises(InputError, match="every_n_rounds"):
            flower.measuring(FedAvg(), None, net(), 0)
