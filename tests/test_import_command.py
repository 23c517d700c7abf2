"""``import``: files of other programs become a capture, or one line."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lightning_recon.captures import Capture
from lightning_recon.commands.plain import main

SOURCE = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, width=3):
        super().__init__(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.Flatten())
"""
MODEL = ["--model", "import_nets:Net"]


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    (tmp_path / "import_nets.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)


def states():
    """Before and after, of a network with batch norm."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten())
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    return before, {name: tensor + 1 for name, tensor in before.items()}


def save_npz(state, path):
    np.savez(path, **{name: tensor.numpy() for name, tensor in state.items()})


def save_list(state, path):
    np.savez(path, *[tensor.numpy() for tensor in state.values()])


def prefixed(prefix):
    return lambda state, path: torch.save({prefix + name: t for name, t in state.items()}, path)


def inside(key):
    content = {"epoch": 3, "optimizer": {"lr": 0.1}}
    return lambda state, path: torch.save({**content, key: state}, path)


FORMS = {
    "pt": (torch.save, "s.pt", []),
    "pth": (torch.save, "s.pth", []),
    "bin": (torch.save, "s.bin", []),
    "checkpoint": (inside("state_dict"), "s.ckpt", []),
    "under model": (inside("model"), "s.pt", []),
    "safetensors": (save_file, "s.safetensors", []),
    "npz": (save_npz, "s.npz", []),
    "module.": (prefixed("module."), "s.pt", []),
    "_module.": (prefixed("_module."), "s.pt", []),
    "_orig_mod.": (prefixed("_orig_mod."), "s.pt", []),
    "Lightning": (prefixed("net."), "s.ckpt", MODEL),
    "a list": (lambda state, path: torch.save(list(state.values()), path), "s.pt", MODEL),
    "arrays": (save_list, "s.npz", MODEL),
    "list of arrays": (
        lambda state, path: torch.save([t.numpy() for t in state.values()], path),
        "s.pt",
        MODEL,
    ),
}


def run(*args):
    return main(["import", *map(str, args)])


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_pair(form, capsys):
    save, name, more = FORMS[form]
    before, after = states()
    save(before, f"before_{name}")
    save(after, f"after_{name}")
    assert run("--before", f"before_{name}", "--after", f"after_{name}", *more) == 0
    (reply,) = Capture("capture").replies()
    assert (reply.client, reply.round) == ("after_s", 1)
    assert reply.facts["kind"] == "weights"
    for found, expected in ((reply.payload, before), (reply.tensors, after)):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert all(found[name].dtype == expected[name].dtype for name in expected)
    out = capsys.readouterr().out
    assert "client after_s, round 1: weights, 7 tensors" in out
    assert "float32, int64, kept as they are" in out


def test_forms_may_differ_between_the_two():
    before, after = states()
    save_npz(before, "before.npz")
    prefixed("module.")(after, "after.pt")
    assert run("--before", "before.npz", "--after", "after.pt") == 0
    (reply,) = Capture("capture").replies()
    assert list(reply.tensors) == list(reply.payload)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_is_kept_and_told(kind, capsys):
    before, after = states()
    torch.save({name: tensor.to(kind) for name, tensor in before.items()}, "before.pt")
    torch.save({name: tensor.to(kind) for name, tensor in after.items()}, "after.pt")
    assert run("--before", "before.pt", "--after", "after.pt") == 0
    (reply,) = Capture("capture").replies()
    assert {tensor.dtype for tensor in reply.tensors.values()} == {kind}
    assert str(kind).removeprefix("torch.") in capsys.readouterr().out


def test_a_gradient():
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten())
    torch.save([torch.ones_like(parameter) for parameter in net.parameters()], "gradient.pt")
    torch.save(net.state_dict(), "before.pt")
    assert run("--gradient", "gradient.pt", "--before", "before.pt", *MODEL) == 0
    (reply,) = Capture("capture").replies()
    assert reply.facts["kind"] == "gradient"
    assert list(reply.tensors) == [name for name, _ in net.named_parameters()]
    assert reply.facts["missing"] == [n for n in net.state_dict() if n not in reply.tensors]


def test_further_clients_and_facts():
    before, after = states()
    torch.save(before, "before.pt")
    torch.save(after, "after.pt")
    pair = ["--before", "before.pt", "--after", "after.pt", "--output", "found"]
    facts = ["--learning-rate", "0.1", "--steps", 2, "--batch-size", 4, "--num-examples", 8]
    assert run(*pair, "--client", "a", *facts, "--image-shape", 1, 8, 8) == 0
    assert run(*pair, "--client", "b", "--round", 3) == 0
    first, second = Capture("found").replies()
    assert (first.client, first.round, second.client, second.round) == ("a", 1, "b", 3)
    known = {"learning_rate": 0.1, "steps": 2, "batch_size": 4, "num_examples": 8}
    assert first.facts.items() >= (known | {"image_shape": [1, 8, 8]}).items()
    assert not known.keys() & second.facts.keys()
    assert len(list(Path("found/payloads").iterdir())) == 1


def wrong(name):
    before, after = states()
    changed = {
        "another": {**{n: t for n, t in after.items() if n != "0.bias"}, "0.bios": after["0.bias"]},
        "shape": {**after, "0.bias": torch.ones(4)},
        "same": before,
        "short": list(after.values())[1:],
        "list": list(after.values()),
        "optimizer": {"optimizer": {"lr": 1}},
        "model": nn.Linear(1, 1),
        "text": "weights",
    }
    torch.save(changed.get(name, after), f"{name}.pt")
    return f"{name}.pt"


WRONG = {
    "nothing": ([], "--before W0 --after W1 or as --gradient G"),
    "both": (["--after", "a.pt", "--gradient", "a.pt"], "or as --gradient G"),
    "no before": (["--after", "after.pt"], "--after needs --before"),
    "no file": (["--before", "b.pt", "--after", "no.pt"], "no.pt"),
    "an ending": (["--before", "b.pt", "--after", "import_nets.py"], "should end in one of .pt"),
    "another name": (
        ["--before", "b.pt", "--after", "another.pt"],
        "nothing takes 0.bios",
    ),
    "a shape": (["--before", "b.pt", "--after", "shape.pt"], "0.bias is 4, not 3"),
    "the same": (["--before", "b.pt", "--after", "same.pt"], "it has not been trained"),
    "no names": (["--before", "b.pt", "--after", "list.pt"], "holds 7 arrays without names"),
    "too short": (
        ["--before", "b.pt", "--after", "short.pt", *MODEL], "holds 6 tensors, but the model has 4"
    ),
    "another model": (
        ["--before", "b.pt", "--after", "after.pt", *MODEL, "--model-args", '{"width": 2}'],
        "b.pt does not fit the model: 0.weight is 3x1x3x3, not 2x1x3x3",
    ),
    "no model": (["--before", "b.pt", "--after", "list.pt", "--model", "net"], "names no model"),
    "no weights": (["--before", "b.pt", "--after", "optimizer.pt"], "holds no tensors by name"),
    "text": (["--before", "b.pt", "--after", "text.pt"], "holds no tensors by name"),
    "pickled": (["--before", "b.pt", "--after", "model.pt"], "and is not unpickled"),
    "steps": (["--before", "b.pt", "--after", "after.pt", "--steps", "0"], "--steps must be at"),
    "rate": (["--before", "b.pt", "--after", "a.pt", "--learning-rate", "0"], "above 0, not 0"),
    "folder": (
        ["--before", "b.pt", "--after", "after.pt", "--output", "."], "is no capture and not empty"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_used_is_one_line_and_nothing_is_written(case, capsys):
    args, words = WRONG[case]
    torch.save(states()[0], "b.pt")
    for name in ("another", "shape", "same", "short", "list", "optimizer", "model", "text"):
        wrong(name)
    wrong("after")
    there = set(Path().iterdir())
    assert run(*args) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert words in error
    assert {path for path in Path().iterdir() if path.name != "__pycache__"} == there


def test_a_later_version_of_a_capture_is_left_alone(capsys):
    before, after = states()
    torch.save(before, "before.pt")
    torch.save(after, "after.pt")
    assert run("--before", "before.pt", "--after", "after.pt") == 0
    path = Path("capture/federation.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 2}))
    assert run("--before", "before.pt", "--after", "after.pt") == 2
    assert "is of version 2" in capsys.readouterr().err
    assert len(list(Path("capture/rounds/0001").iterdir())) == 2
