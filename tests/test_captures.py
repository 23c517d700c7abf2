"""What a federation sent, written and read again: bit for bit, or a line that says why not."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from lightning_recon.captures import Capture, CaptureWriter, Reply, read_truth, write_truth
from lightning_recon.errors import InputError

STATE = {
    "z.weight": torch.randn(4, 3, generator=torch.Generator().manual_seed(0)),
    "a.weight": torch.tensor([1.5, -2.0], dtype=torch.float16),
    "b.weight": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "num_batches_tracked": torch.tensor(7),
    "numpy": np.array([[1.0, 2.0]], dtype=np.float64),
}


@pytest.fixture
def capture(tmp_path):
    writer = CaptureWriter(tmp_path / "capture", "a test", image_shape=[3, 8, 8])
    payload = writer.add_payload(STATE)
    writer.add_reply(1, "first", STATE, "weights", payload, num_examples=5, note="kept")
    del payload
    return tmp_path / "capture"


def equal(found, wanted):
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        tensor = torch.as_tensor(value)
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert torch.equal(found[name], tensor)


class TestRoundTrip:
    def test_tensors_keep_their_bits_types_shapes_and_order(self, capture):
        (reply,) = Capture(capture).replies()
        equal(reply.tensors, STATE)
        equal(reply.payload, STATE)
        assert reply.name == "client first, round 1"
        assert reply.facts["num_examples"] == 5
        assert reply.facts["note"] == "kept"

    def test_a_payload_is_stored_once_under_its_own_digest(self, capture):
        writer = CaptureWriter(capture, "a test")
        payload = writer.add_payload(STATE)
        (file,) = (capture / "payloads").iterdir()
        assert file.stem == payload == hashlib.sha256(file.read_bytes()).hexdigest()

    def test_a_client_that_answers_twice_is_kept_twice(self, capture):
        writer = CaptureWriter(capture, "a test")
        writer.add_reply(1, "first", {"w": torch.ones(1)}, "delta")
        assert len(Capture(capture).files) == 2

    def test_names_that_were_not_sent_are_said(self, capture):
        writer = CaptureWriter(capture, "a test")
        some = {"z.weight": STATE["z.weight"]}
        path = writer.add_reply(2, -5, some, "delta", writer.add_payload(STATE))
        assert json.loads(path.read_text())["missing"] == [n for n in STATE if n != "z.weight"]
        assert Capture(capture).read(path).client == "-5"

    def test_a_name_that_would_leave_the_folder_stays_inside(self, capture):
        writer = CaptureWriter(capture, "a test")
        path = writer.add_reply(1, "../../x/y", {"w": torch.ones(1)}, "delta")
        assert path.parent == capture / "rounds" / "0001"

    def test_truth(self, tmp_path):
        images, labels = torch.rand(2, 1, 4, 4), torch.tensor([3, 1])
        write_truth(tmp_path, 3, "c", images, labels)
        reply = Reply(3, "c", {}, None, {})
        found = read_truth(tmp_path, reply)
        assert torch.equal(found.images, images)
        assert found.labels.tolist() == [3, 1]
        assert read_truth(tmp_path, reply._replace(round=4)) is None
        with pytest.raises(InputError, match="before they are normalised"):
            write_truth(tmp_path, 3, "c", 2 * images - 1, labels)


def spoil_truncated(capture):
    path = next(capture.glob("rounds/*/*.safetensors"))
    path.write_bytes(path.read_bytes()[:-4])
    return "truncated"


def spoil_json(capture):
    next(capture.glob("rounds/*/*.json")).write_text('{"round": 1, ')
    return "no JSON"


def spoil_future(capture):
    path = next(capture.glob("rounds/*/*.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 99}))
    return "version 99 .* update it"


def spoil_payload(capture):
    path = next(capture.glob("payloads/*"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    return "was changed"


def spoil_no_payload(capture):
    next(capture.glob("payloads/*")).unlink()
    return "no file"


def spoil_kind(capture):
    path = next(capture.glob("rounds/*/*.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"kind": "model"}))
    return "kind should be one of weights, delta, gradient, not 'model'"


@pytest.mark.parametrize(
    "spoil",
    [spoil_truncated, spoil_json, spoil_future, spoil_payload, spoil_no_payload, spoil_kind],
)
def test_what_cannot_be_read_is_told_in_a_line_and_the_rest_is_read(capture, spoil):
    reason = spoil(capture)
    CaptureWriter(capture, "a test").add_reply(2, "second", {"w": torch.ones(1)}, "delta")
    broken, whole = Capture(capture).replies()
    assert isinstance(broken, InputError)
    assert "\n" not in str(broken)
    with pytest.raises(InputError, match=reason):
        raise broken
    assert whole.client == "second"


class TestRefused:
    def test_no_capture(self, tmp_path):
        with pytest.raises(InputError, match=r"no capture: it has no federation\.json"):
            Capture(tmp_path)

    def test_a_capture_of_the_future(self, capture):
        path = capture / "federation.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 2}))
        with pytest.raises(InputError, match="version 2"):
            Capture(capture)
        with pytest.raises(InputError, match="version 2"):
            CaptureWriter(capture, "a test")

    def test_a_folder_of_something_else_is_not_written_into(self, tmp_path):
        (tmp_path / "thesis.txt").write_text("mine")
        with pytest.raises(InputError, match="not empty"):
            CaptureWriter(tmp_path, "a test")
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]

    def test_a_reply_to_a_payload_that_is_not_there(self, capture):
        with pytest.raises(InputError, match="no payload"):
            CaptureWriter(capture, "t").add_reply(1, "c", {"w": torch.ones(1)}, "delta", "0" * 64)

    def test_what_is_no_array(self, capture):
        with pytest.raises(InputError, match="w is a str"):
            CaptureWriter(capture, "t").add_reply(1, "c", {"w": "text"}, "delta")


def test_a_server_loads_neither_lightning_nor_matplotlib():
    code = (
        "import sys, lightning_recon.captures\n"
        "assert not {'pytorch_lightning', 'matplotlib', 'torchvision'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
