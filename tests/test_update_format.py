"""The format of captures is what its page says, and readers do what the page asks."""

import hashlib
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from lightning_recon.captures import (
    FORMAT,
    VERSION,
    Capture,
    CaptureWriter,
    FederationJson,
    ModJson,
    ReplyJson,
    read_truth,
    write_truth,
)
from lightning_recon.errors import InputError

PAGE = (Path(__file__).parents[1] / "docs/update-format.md").read_text()
WEIGHTS = {"b": torch.ones(2), "a": torch.arange(3.0, dtype=torch.bfloat16), "n": torch.tensor(4)}
FACTS = {
    "config": {"lr": 0.1},
    "metrics": {"loss": 2.5},
    "num_examples": 8,
    "batch_size": 4,
    "steps": 2,
    "learning_rate": 0.1,
    "momentum": 0.9,
    "mods": [
        {"name": "LocalDpMod", "clip_norm": 1.0, "noise_std": 0.1, "epsilon": 1, "delta": 0.1}
    ],
    "image_shape": [1, 2, 3],
}


def tables():
    """The page's tables: type and whether it is needed, by key."""
    found, rows = [], None
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and cells[0].startswith("key"):
            found.append(rows := {})
        elif len(cells) == 4 and rows is not None and cells[0].startswith("`"):
            rows[cells[0].strip("`")] = (cells[1], cells[2] == "yes")
    return found


FEDERATION, REPLY, MOD = tables()
CHECKS = {
    "text": lambda value: isinstance(value, str),
    "integer": lambda value: type(value) is int,
    "number": lambda value: type(value) in (int, float),
    "object": lambda value: isinstance(value, dict),
    "list of texts": lambda value: all(isinstance(part, str) for part in value),
    "list of integers": lambda value: all(type(part) is int for part in value),
    "list of objects": lambda value: all(isinstance(part, dict) for part in value),
}


def problems(content, table):
    """What of a JSON object is not as the page has it."""
    wrong = [key for key, (_, needed) in table.items() if needed and key not in content]
    for key, value in content.items():
        kind = table[key][0]
        is_null = value is None and kind.endswith("?")
        if not is_null and not CHECKS[kind.removesuffix("?")](value):
            wrong.append(key)
    return wrong


@pytest.fixture
def capture(tmp_path):
    writer = CaptureWriter(tmp_path / "a", "a test")
    payload = writer.add_payload(WEIGHTS)
    writer.add_reply(3, "a/b", {"b": torch.zeros(2)}, "delta", payload, **FACTS)
    return tmp_path / "a"


def change(path, **keys):
    content = json.loads(path.read_text())
    content |= keys
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def test_the_page_has_the_keys_of_the_types():
    assert FEDERATION.keys() == FederationJson.__annotations__.keys()
    assert REPLY.keys() == ReplyJson.__annotations__.keys()
    assert MOD.keys() == ModJson.__annotations__.keys()
    assert f"The version of the format is {VERSION}." in PAGE
    assert f"`{FORMAT}`" in PAGE


def test_a_capture_is_as_the_page_says(capture):
    assert problems(json.loads((capture / "federation.json").read_text()), FEDERATION) == []
    content = json.loads((capture / "rounds/0003/a_b.json").read_text())
    assert content.keys() == REPLY.keys()
    assert problems(content, REPLY) == []
    assert problems(content["mods"][0], MOD) == []
    assert content["missing"] == ["a", "n"]
    reply = (capture / "rounds/0003/a_b.safetensors").read_bytes()
    assert content["sha256"] == hashlib.sha256(reply).hexdigest()
    (payload,) = (capture / "payloads").iterdir()
    assert payload.name == f"{hashlib.sha256(payload.read_bytes()).hexdigest()}.safetensors"
    assert content["payload"] == payload.stem
    with safe_open(payload, "pt") as file:
        assert json.loads(file.metadata()["names"]) == ["b", "a", "n"]
    (reply,) = Capture(capture).replies()
    assert list(reply.payload) == ["b", "a", "n"]
    assert all(torch.equal(reply.payload[name], WEIGHTS[name]) for name in WEIGHTS)


def test_the_example_is_as_the_page_says():
    example = json.loads(re.search(r"```json\n(.*?)```", PAGE, re.DOTALL)[1])
    assert problems(example, REPLY) == []
    assert problems({**example, "steps": "2"}, REPLY) == ["steps"]


@pytest.mark.parametrize("key", REPLY)
def test_what_is_needed_of_a_reply(capture, key):
    path = capture / "rounds/0003/a_b.json"
    change(path, **{key: ...})
    (reply,) = Capture(capture).replies()
    assert isinstance(reply, InputError) is REPLY[key][1]


@pytest.mark.parametrize("key", FEDERATION)
def test_what_is_needed_of_a_federation(capture, key):
    change(capture / "federation.json", **{key: ...})
    if FEDERATION[key][1]:
        with pytest.raises(InputError, match=key):
            Capture(capture)
    else:
        assert len(list(Capture(capture).replies())) == 1


def test_unknown_keys_are_kept(capture):
    change(capture / "federation.json", colour="green")
    change(capture / "rounds/0003/a_b.json", colour="blue")
    read = Capture(capture)
    (reply,) = read.replies()
    assert read.facts["colour"] == "green"
    assert reply.facts["colour"] == "blue"
    CaptureWriter(capture, "another").add_reply(4, "c", {"b": torch.ones(1)}, "gradient", mine=1)
    assert Capture(capture).facts["colour"] == "green"


def test_a_later_version_is_refused(capture):
    change(capture / "rounds/0003/a_b.json", version=2)
    (reply,) = Capture(capture).replies()
    assert "is of version 2 of the format, and this program knows 1" in str(reply)
    change(capture / "federation.json", version=2)
    with pytest.raises(InputError, match=r"is of version 2 .* knows 1"):
        Capture(capture)


FAULTS = {
    "changed": (lambda a: spoil(next((a / "payloads").iterdir())), "SHA-256 is not its name"),
    "edited": (
        lambda a: spoil(a / "rounds/0003/a_b.safetensors"),
        "SHA-256 is not that of a_b.json",
    ),
    "cut off": (lambda a: cut(a / "rounds/0003/a_b.safetensors"), "is truncated or was changed"),
    "no JSON": (lambda a: cut(a / "rounds/0003/a_b.json"), "truncated or no JSON"),
    "a kind": (lambda a: change(a / "rounds/0003/a_b.json", kind="update"), "kind should be one"),
    "no payload": (lambda a: next((a / "payloads").iterdir()).unlink(), "no file at"),
}


def spoil(path):
    path.write_bytes(path.read_bytes()[:-1] + b"\1")


def cut(path):
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_read_is_told_and_the_others_are_read(capture, fault):
    CaptureWriter(capture, "a test").add_reply(5, "c", {"b": torch.ones(1)}, "gradient")
    spoil_it, words = FAULTS[fault]
    spoil_it(capture)
    first, second = Capture(capture).replies()
    assert isinstance(first, InputError)
    assert words in str(first)
    assert second.name == "client c, round 5"


def test_of_a_reply_without_a_checksum_the_bits_are_not_checked(capture):
    """As earlier versions and other programs write them."""
    change(capture / "rounds/0003/a_b.json", sha256=...)
    spoil(capture / "rounds/0003/a_b.safetensors")
    (reply,) = Capture(capture).replies()
    assert reply.tensors["b"][1] != 0
    cut(capture / "rounds/0003/a_b.safetensors")
    (reply,) = Capture(capture).replies()
    assert "truncated or no safetensors" in str(reply)


def test_a_reply_without_its_json_does_not_count(capture):
    (capture / "rounds/0003/a_b.json").unlink()
    with pytest.raises(InputError, match="holds no reply"):
        Capture(capture)


def test_a_second_reply_gets_a_number(capture):
    path = CaptureWriter(capture, "x").add_reply(3, "a/b", {"b": torch.ones(2)}, "gradient")
    assert path.name == "a_b-2.json"
    assert len(list(Capture(capture).replies())) == 2


def test_a_capture_that_another_process_is_beginning_is_gone_on_with(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/.federation.json.x1").write_text("{")  # half written
    CaptureWriter(tmp_path / "a", "a test")
    (tmp_path / "b").mkdir()
    (tmp_path / "b/notes.txt").write_text("of someone else")
    with pytest.raises(InputError, match="no capture and not empty"):
        CaptureWriter(tmp_path / "b", "a test")


def test_the_truth_stands_apart(capture, tmp_path):
    images = torch.rand(2, 1, 2, 3)
    path = write_truth(tmp_path / "truth", 3, "a/b", images, torch.tensor([1, 0]))
    assert path == tmp_path / "truth/0003/a_b.safetensors"
    (reply,) = Capture(capture).replies()
    truth = read_truth(tmp_path / "truth", reply)
    assert torch.equal(truth.images, images)
    assert truth.labels.tolist() == [1, 0]
    assert read_truth(tmp_path / "nowhere", reply) is None


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (torch.rand(2, 2, 3), torch.tensor([1, 0]), "B C H W"),
        (torch.rand(2, 1, 2, 3), torch.tensor([1]), "B C H W"),
        (torch.rand(2, 1, 2, 3), torch.tensor([[1, 0]]), "B C H W"),
        (torch.rand(2, 1, 2, 3), torch.tensor([1.5, 0]), "whole numbers from 0"),
        (torch.rand(2, 1, 2, 3), torch.tensor([1, -1]), "whole numbers from 0"),
        (2 + torch.rand(2, 1, 2, 3), torch.tensor([1, 0]), r"in \[0, 1\]"),
        (torch.full((2, 1, 2, 3), torch.nan), torch.tensor([1, 0]), r"in \[0, 1\]"),
    ],
)
def test_a_truth_that_cannot_be_one_is_refused(images, labels, said, capture, tmp_path):
    path = tmp_path / "truth/0003/a_b.safetensors"
    path.parent.mkdir(parents=True)
    save_file({"images": images, "labels": labels}, path)
    (reply,) = Capture(capture).replies()
    with pytest.raises(InputError, match=f"a_b.safetensors should hold .*{said}"):
        read_truth(tmp_path / "truth", reply)


def test_what_the_page_runs_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net = nn.Linear(2, 2)
    before = {name: part + 1 for name, part in net.state_dict().items()}
    hooks = []
    ddp = SimpleNamespace(
        named_parameters=net.named_parameters,
        register_comm_hook=lambda state, hook: hooks.append(hook),
    )
    exec(
        re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1],
        {"before": before, "net": net, "ddp": ddp},
    )
    assert len(list(Capture("capture").replies())) == len(hooks) == 1
