"""What stands outside the package is named by class path, through the real command line."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lightning_recon.commands.lightning import main

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
    assert (results["attack"], results["target"]) == ("GreyStart", "Net")
    assert results["num_images"] == 2
    assert results["communication"]["bits_per_parameter"] == 16, "that of the defense"
    assert results["communication"]["num_parameters"] == 15444, "those of the model"


@pytest.mark.parametrize("name", ["my_attack", "my_defense", "my_model"])
def test_examples_are_what_contributing_says_to_copy(name):
    assert f"examples/{name}.py" in (ROOT / "CONTRIBUTING.md").read_text()


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
