"""What stands outside the package is named by class path, through the real command line."""

import ast
import copy
import importlib
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
import yaml

from lightning_recon.commands.lightning import main
from lightning_recon.contract import IMAGE_SIZE, NUM_CLASSES, sample_clients
from lightning_recon.targets import LeNet

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
QUICK = ("--model.init_args.iterations", "2", "--trainer.accelerator", "cpu")


def command(folder, *words):
    """Run the command line in a folder, the examples on the path."""
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES), "XDG_CACHE_HOME": str(folder)}
    return subprocess.run(
        [sys.executable, str(ROOT / "cli.py"), *words],
        cwd=folder,
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def test_examples_run(tmp_path):
    done = command(tmp_path, "test", "--config", str(EXAMPLES / "audit.yaml"), *QUICK)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "lightning_logs/version_0/results.json").read_text())
    assert (results["attack"], results["target"]) == ("LayerByLayer", "Net")
    assert results["num_images"] == 2
    assert results["unsimulated"] == []
    sent = results["communication"]
    assert sent["num_bits"] == 16 * sent["num_parameters"] + 64, "that of the defense"
    assert sent["num_parameters"] == 15444, "those of the model"
    assert results["command"].startswith(f"PYTHONPATH={EXAMPLES} python "), "it runs again"


@pytest.mark.parametrize("name", ["my_attack", "my_defense", "my_model", "my_data"])
def test_examples_are_what_contributing_says_to_copy(name):
    assert f"examples/{name}.py" in (ROOT / "CONTRIBUTING.md").read_text()


@pytest.fixture
def _examples(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))


def tests_of_examples():
    tree = ast.parse((EXAMPLES / "test_my_classes.py").read_text())
    return [part.name for part in tree.body if part.__dict__.get("name", "").startswith("test_")]


@pytest.mark.usefixtures("_examples")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", tests_of_examples())
def test_the_tests_of_the_examples_pass(name, tmp_path):
    test = getattr(importlib.import_module("test_my_classes"), name)
    test(*([tmp_path] if "tmp_path" in inspect.signature(test).parameters else []))


@pytest.mark.usefixtures("_examples")
def test_the_attack_smooths_every_so_many_iterations_but_not_at_the_end():
    kind = importlib.import_module("my_attack").LayerByLayer
    data = sample_clients()
    data.setup()
    images = {}
    for smooth_every in (2, 3, 4):
        attack = kind(
            LeNet(NUM_CLASSES, IMAGE_SIZE), iterations=4, smooth_every=smooth_every, seed=1
        )
        attack.bind(data.spec, data.public_images())
        observation = attack.federation.play(data.client(0), 0)
        images[smooth_every] = attack.reconstruct(observation).images
        assert attack.iteration == 3
    assert not torch.equal(images[2], images[4])
    assert not torch.equal(images[3], images[4])


@pytest.mark.usefixtures("_examples")
def test_the_last_layer_counts_as_often_as_asked():
    kind = importlib.import_module("my_attack").LayerByLayer
    zeros = {name: torch.zeros(3) for name in ("conv", "weight", "bias")}
    ones = {name: torch.ones(3) for name in zeros}
    attack = kind(LeNet(NUM_CLASSES, IMAGE_SIZE), distance="squared", last_weight=2.0)
    assert float(attack.compare(zeros, ones)) == 5.0  # (3 + 2 * 3 + 2 * 3) / 3
    assert kind(LeNet(NUM_CLASSES, IMAGE_SIZE)).matcher.distance == "cosine"


BROKEN = """
from lightning_recon.data import ArraySource, ClientDataModule
import numpy as np

class Broken(ClientDataModule):
    name, expected, num_classes = "broken", "anything", 10

    def open_source(self, root):
        return {source}
"""


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("ArraySource(np.zeros((4, 28, 28), 'uint8'), [0] * 4)", "'prefix'"),
        ("{}['images']", "KeyError"),
        ("np.zeros(4).reshape(3, 3)", "ValueError"),
        ("np.linalg.inv(np.zeros((2, 3)))", "LinAlgError"),
        ("(_ for _ in ()).throw(TypeError('two\\nlines'))", "TypeError: two lines"),
    ],
)
def test_what_fails_in_a_data_set_of_ones_own_gets_one_line(
    source, said, tmp_path, monkeypatch, capfd
):
    (tmp_path / "own_data.py").write_text(BROKEN.format(source=source))
    content = yaml.safe_load((EXAMPLES / "my_data.yaml").read_text())
    content["data"] = {"class_path": "own_data.Broken", "init_args": {"root": str(tmp_path)}}
    (tmp_path / "audit.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_data", raising=False)
    importlib.invalidate_caches()
    assert main(["test", "--config", "audit.yaml", *QUICK]) == 2
    (line,) = (line for line in capfd.readouterr().err.splitlines() if line.startswith("error: "))
    assert line.startswith("error: own_data.Broken.open_source failed with ")
    assert said in line
    assert f"{tmp_path / 'own_data.py'}, line 9" in line
    assert not Path("lightning_logs").exists()


def test_own_arrays_run_from_the_command_line(tmp_path, monkeypatch):
    numpy.save(
        tmp_path / "images.npy", numpy.arange(12 * 28 * 28, dtype="uint8").reshape(12, 28, 28)
    )
    numpy.save(tmp_path / "labels.npy", numpy.arange(12) % 10)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    words = ["--config", str(EXAMPLES / "my_data.yaml"), "--data.init_args.root", str(tmp_path)]
    assert main(["test", *words, *QUICK]) == 0
    results = json.loads(Path("lightning_logs/version_0/results.json").read_text())
    assert results["data"]["name"] == "grey arrays"
    assert results["num_images"] == 2


MODULES = {
    "a function": ("torchvision.models.resnet18", "resnet18"),
    "a function by class path": ({"class_path": "torch.hub.load", "init_args": {}}, "a function"),
    "code": ({"class_path": "os.system", "init_args": {"command": "touch marker"}}, "os.system"),
    "another kind of class": ({"class_path": "my_defense.Net"}, "there is no Net in my_defense"),
    "no module": ({"class_path": "collections.Counter"}, "collections.Counter"),
    "a typing error": ({"class_path": "my_model.Nett"}, "did you mean Net?"),
    "a file that is not there": ({"class_path": "elsewhere.Net"}, "there is no module elsewhere"),
    "an argument it has not": (
        {"class_path": "my_model.Net", "init_args": {"depth": 3}}, "there is no option depth",
    ),
    "other classes": (
        {"class_path": "my_model.Net", "init_args": {"num_classes": 7}}, "set num_classes to 7",
    ),
}  # fmt: skip


def audit(tmp_path, target):
    content = copy.deepcopy(yaml.safe_load((EXAMPLES / "audit.yaml").read_text()))
    content["model"]["init_args"]["target"] = target
    (tmp_path / "audit.yaml").write_text(yaml.safe_dump(content))
    return ["test", "--config", str(tmp_path / "audit.yaml"), *QUICK]


def refused(tmp_path, monkeypatch, capfd, target):
    """The one line on a target, before anything is written."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    assert main(audit(tmp_path, target)) == 2
    assert not list(Path().rglob("*.pt")) + list(Path().glob("marker"))
    (line,) = (line for line in capfd.readouterr().err.splitlines() if line.startswith("error: "))
    return line


@pytest.mark.parametrize("case", MODULES)
def test_what_no_module_is_gets_one_line(case, tmp_path, monkeypatch, capfd):
    module, words = MODULES[case]
    arguments = {"module": module, "num_classes": 20}
    target = {"class_path": "ModuleTarget", "init_args": arguments}
    assert words in refused(tmp_path, monkeypatch, capfd, target)


def test_a_module_in_the_place_of_a_target_is_told_where_it_belongs(tmp_path, monkeypatch, capfd):
    target = {"class_path": "my_model.Net", "init_args": {"num_classes": 20}}
    assert "ModuleTarget as its module" in refused(tmp_path, monkeypatch, capfd, target)
