"""The filter of NVIDIA FLARE's server: what it records, and that it changes nothing.

Where NVIDIA FLARE is not installed, its classes are stood in for, as its documentation has them.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from lightning_recon.captures import Capture

INTEGRATION = "lightning_recon.integrations.nvflare"


class DXO:
    def __init__(self, data_kind, data, meta=None):
        self.data_kind, self.data, self.meta = data_kind, data, meta or {}

    def get_meta_prop(self, key, default=None):
        return self.meta.get(key, default)

    def get_filter_history(self):
        return self.get_meta_prop("filter_history")

    def to_shareable(self):
        shareable = Shareable()
        shareable.dxo = self
        return shareable


class Shareable(dict):
    def set_header(self, key, value):
        self[key] = value

    def get_header(self, key, default=None):
        return self.get(key, default)


class DXOFilter:
    def __init__(self, supported_data_kinds, data_kinds_to_filter):
        self.data_kinds = data_kinds_to_filter or supported_data_kinds
        self.logged = []

    def set_prop(self, key, value):
        setattr(self, key, value)

    def get_prop(self, key, default=None):
        return getattr(self, key, default)

    def log_error(self, fl_ctx, message):
        self.logged.append(message)

    def process(self, shareable, fl_ctx):
        if shareable.dxo.data_kind in self.data_kinds:
            result = self.process_dxo(shareable.dxo, shareable, fl_ctx)
            assert result is None
        return shareable


class FLContext:
    def __init__(self):
        self.props = {}

    def set_prop(self, key, value, private=True, sticky=True):
        self.props[key] = value

    def get_prop(self, key, default=None):
        return self.props.get(key, default)

    def set_peer_context(self, peer):
        self.props["__peer_ctx__"] = peer

    def get_peer_context(self):
        return self.props.get("__peer_ctx__")

    def get_identity_name(self, default=""):
        return self.props.get("__identity_name__", default)


def stand_in():
    kinds = SimpleNamespace(WEIGHTS="WEIGHTS", WEIGHT_DIFF="WEIGHT_DIFF", METRICS="METRICS")
    keys = SimpleNamespace(
        NUM_STEPS_CURRENT_ROUND="NUM_STEPS_CURRENT_ROUND",
        INITIAL_METRICS="initial_metrics",
        PROCESSED_ALGORITHM="PROCESSED_ALGORITHM",
        FILTER_HISTORY="filter_history",
    )
    chains = SimpleNamespace(TASK_DATA_CHAIN="task_data", TASK_RESULT_CHAIN="task_result")
    contents = {
        "dxo": {"DXO": DXO, "DataKind": kinds, "MetaKey": keys},
        "dxo_filter": {"DXOFilter": DXOFilter},
        "filter": {
            "FilterChainType": chains,
            "FilterContextKey": SimpleNamespace(CHAIN_TYPE="__chain_type"),
        },
        "fl_context": {"FLContext": FLContext},
        "shareable": {"Shareable": Shareable},
    }
    modules = {"nvflare": ModuleType("nvflare"), "nvflare.apis": ModuleType("nvflare.apis")}
    for name, parts in contents.items():
        module = modules[f"nvflare.apis.{name}"] = ModuleType(name)
        vars(module).update(parts)
    return modules


@pytest.fixture
def flare(monkeypatch):
    """The integration, and FLARE's classes or what stands in for them."""
    if find_spec("nvflare") is None:
        for name, module in stand_in().items():
            monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, INTEGRATION, raising=False)
    integration = import_module(INTEGRATION)
    yield SimpleNamespace(
        filter=integration.CaptureFilter,
        dxo=import_module("nvflare.apis.dxo").DXO,
        context=import_module("nvflare.apis.fl_context").FLContext,
    )
    sys.modules.pop(INTEGRATION, None)


class Server:
    """Sends tasks and receives results, as a server's runner does."""

    def __init__(self, flare, folder):
        self.flare = flare
        self.filters = {}
        for chain in ("task_data", "task_result"):
            self.filters[chain] = flare.filter(str(folder))
            self.filters[chain].set_prop("__chain_type", chain)

    def passes(self, chain, client, kind, data, number=None, **meta):
        peer, context = self.flare.context(), self.flare.context()
        peer.set_prop("__identity_name__", client, private=False, sticky=False)
        context.set_peer_context(peer)
        dxo = self.flare.dxo(kind, data=data, meta=meta)
        shareable = dxo.to_shareable()
        if number is not None:
            shareable.set_header("current_round", number)
        before = {name: part.copy() for name, part in data.items()}
        assert self.filters[chain].process(shareable, context) is shareable
        assert data.keys() == before.keys()
        assert all(np.array_equal(data[name], before[name]) for name in before)


WEIGHTS = {"conv.weight": np.ones((2, 3), np.float32), "conv.bias": np.zeros(2, np.float32)}


def test_a_round(flare, tmp_path):
    server = Server(flare, tmp_path / "a")
    for client in ("site-1", "site-2"):
        server.passes("task_data", client, "WEIGHTS", WEIGHTS, number=3)
    after = {name: part + 1 for name, part in WEIGHTS.items()}
    meta = {"NUM_STEPS_CURRENT_ROUND": 5, "initial_metrics": {"accuracy": 0.5}}
    server.passes("task_result", "site-1", "WEIGHTS", after, number=3, **meta)
    # ExcludeVars left out the bias, and the round is not told again
    difference = {"conv.weight": np.full((2, 3), 0.5, np.float32)}
    server.passes(
        "task_result", "site-2", "WEIGHT_DIFF", difference, filter_history=["ExcludeVars"]
    )
    first, second = Capture(tmp_path / "a").replies()
    assert (first.client, first.round, first.facts["kind"]) == ("site-1", 3, "weights")
    assert (first.facts["steps"], first.facts["metrics"]) == (5, {"accuracy": 0.5})
    assert torch.equal(first.tensors["conv.weight"], torch.full((2, 3), 2.0))
    assert torch.equal(first.payload["conv.weight"], torch.ones(2, 3))
    assert "mods" not in first.facts
    assert (second.client, second.round, second.facts["kind"]) == ("site-2", 3, "delta")
    assert second.facts["missing"] == ["conv.bias"]
    assert second.facts["mods"] == [{"name": "ExcludeVars"}]
    assert len(list((tmp_path / "a/payloads").iterdir())) == 1


def test_other_data_pass_unseen(flare, tmp_path):
    server = Server(flare, tmp_path / "a")
    server.passes("task_result", "site-1", "METRICS", {"accuracy": np.ones(1)}, number=1)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("fault", ["encrypted", "folder"])
def test_what_cannot_be_recorded_does_not_stop_the_federation(flare, tmp_path, fault, caplog):
    (tmp_path / "a").mkdir()
    meta = {"PROCESSED_ALGORITHM": "HE"}
    if fault == "folder":
        (tmp_path / "a/notes.txt").write_text("of someone else")
        meta = {}
    server = Server(flare, tmp_path / "a")
    server.passes("task_result", "site-1", "WEIGHTS", WEIGHTS, number=1, **meta)
    assert not (tmp_path / "a/rounds").exists()
    logged = getattr(server.filters["task_result"], "logged", None) or [caplog.text]
    assert {"encrypted": "processed by HE", "folder": "not empty"}[fault] in logged[0]


def test_without_flare_the_package_to_install_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "nvflare", None)
    monkeypatch.delitem(sys.modules, INTEGRATION, raising=False)
    for name in [name for name in sys.modules if name.startswith("nvflare.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match="pip install nvflare"):
        import_module(INTEGRATION)
