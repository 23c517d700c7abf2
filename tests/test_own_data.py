"""Runs on anyone's own data as docs/data.md writes them, to be copied."""

import csv
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from data_helpers import picture
from test_stored_pictures import fashion_mnist

from lightning_recon.commands.lightning import main

DOCS = Path(__file__).parents[1] / "docs/data.md"
BLOCKS = re.findall(r"```yaml\n(.*?)```", DOCS.read_text(), flags=re.DOTALL)
FOLDER, ARRAYS, GREY = BLOCKS
COMMAND = next(
    line.split()[2:] for line in DOCS.read_text().splitlines() if "--data ArrayDataModule" in line
)
SHORT = [
    *("--model.init_args.iterations", "1", "--trainer.accelerator", "cpu"),
    *("--audit.null_controls", "false", "--audit.num_candidates", "8"),
    *("--trainer.enable_progress_bar", "false", "--trainer.logger", "false"),
]
GREY_NET = """
from torch import nn

class GreyNet(nn.Sequential):
    def __init__(self, num_classes=10):
        super().__init__(nn.Flatten(), nn.Linear(784, num_classes))
"""


@pytest.fixture(autouse=True)
def _own_data(tmp_path, monkeypatch):
    """Ten pictures of two classes as files, arrays and a data set of torchvision."""
    monkeypatch.chdir(tmp_path)
    for number in range(10):
        file = Path("my_pictures", "cat" if number % 2 else "dog", f"{number}.jpg")
        file.parent.mkdir(parents=True, exist_ok=True)
        picture(number, 32, 32).save(file)
    arrays = np.random.default_rng(0).integers(0, 256, (2, 10, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(10)
    np.savez("my_pictures", x_test=arrays[0], y_test=labels, x_train=arrays[1], y_train=labels)
    fashion_mnist(tmp_path / "data")


def run(text, *more):
    Path("my_run.yaml").write_text(text)
    assert main([*(more or ("test", "--config", "my_run.yaml")), *SHORT]) == 0
    folder = max(Path("lightning_logs").iterdir())
    with (folder / "clients.csv").open() as file:
        return json.loads((folder / "results.json").read_text())["data"], list(csv.DictReader(file))


def test_a_folder_with_a_broken_file():
    broken = Path("my_pictures/cat/5.jpg")
    broken.write_bytes(broken.read_bytes()[:300])
    data, rows = run(FOLDER)
    assert data["classes"] == ["cat", "dog"]
    assert data["skipped"] == ["cat/5.jpg"]
    assert "9 images in" in data["description"]
    assert "1 more skipped, for they cannot be used (cat/5.jpg)" in data["description"]
    assert "5 public images, not 32: no more are left" in data["description"]
    for row in rows:
        assert row["file"].split("/")[0] == data["classes"][int(row["label"])]
        assert Path("my_pictures", row["file"]).is_file()


def test_arrays_by_the_command_line_and_by_a_file():
    swapped, rows = run(FOLDER, *COMMAND)
    assert swapped["name"] == "arrays"
    assert [row["file"] for row in rows] == [f"test/{int(row['index']):05d}" for row in rows]
    written, others = run(ARRAYS)
    assert "10 public images of train" in written["description"]
    assert [row["index"] for row in others] == [row["index"] for row in rows]


def test_a_grey_model_of_ones_own(monkeypatch):
    Path("my_model.py").write_text(GREY_NET)
    monkeypatch.syspath_prepend(".")
    monkeypatch.delitem(sys.modules, "my_model", raising=False)
    raw = Path("data/FashionMNIST/raw/train-images-idx3-ubyte")
    content = raw.read_bytes()  # the same as those of test, and so refused
    raw.write_bytes(content[:16] + bytes(255 - byte for byte in content[16:]))
    data, rows = run(GREY)
    assert data["classes"][9] == "Ankle boot"
    assert "5 public images of train" in data["description"]
    assert rows[0]["file"].startswith("FashionMNIST/0000")
