"""The default that a class of one's own gives an option holds from a configuration, too."""

import importlib
import pkgutil
import sys
import textwrap

import pytest
import torch
import yaml
from pytorch_lightning import LightningDataModule

import lightning_recon
from lightning_recon.attacks import GradientMatching
from lightning_recon.commands.lightning import main
from lightning_recon.errors import InputError
from lightning_recon.runs.hidden_defaults import check_defaults
from lightning_recon.runs.items import cell_parser
from lightning_recon.targets import LeNet

HEAD = """
from typing import Any
from lightning_recon.attacks import GradientMatching
from lightning_recon.functional.gradient_distance import Distance
from lightning_recon.targets import Target

class Mine(GradientMatching):
    citation = "none"
"""
HIDDEN = {
    "setdefault": "kwargs.setdefault('distance', 'cosine')",
    "assigned": "kwargs['distance'] = kwargs.get('distance', 'cosine')",
    "if it is not there": "if 'distance' not in kwargs:\n    kwargs['distance'] = 'cosine'",
    "merged": "kwargs = {'distance': 'cosine', **kwargs}",
    "or": "kwargs |= {'distance': kwargs.get('distance', 'cosine')}",
    "update": "kwargs.update(distance=kwargs.get('distance', 'cosine'))",
}
SEEN = {
    "in the signature": (
        "distance: Distance = 'cosine', **kwargs: Any", "",
        "super().__init__(target, distance=distance, **kwargs)",
    ),
    "popped": (
        "**kwargs: Any", "",
        "super().__init__(target, distance=kwargs.pop('distance', 'cosine'), **kwargs)",
    ),
    "not to be changed": (
        "**kwargs: Any", "", "super().__init__(target, distance='cosine', **kwargs)",
    ),
}  # fmt: skip


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a module with an attack whose __init__ has these parameters and lines."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(parameters, first, last):
        body = textwrap.indent(f"{first}\n{last}\n", " " * 8)
        making = f"    def __init__(self, target: Target, {parameters}) -> None:\n{body}"
        (tmp_path / "own_attack.py").write_text(HEAD + making)
        sys.modules.pop("own_attack", None)
        importlib.invalidate_caches()
        return importlib.import_module("own_attack").Mine

    yield write
    sys.modules.pop("own_attack", None)


@pytest.mark.parametrize("form", HIDDEN)
def test_a_default_that_the_command_line_does_not_see_is_found(form, write):
    mine = write("**kwargs: Any", HIDDEN[form], "super().__init__(target, **kwargs)")
    assert mine(LeNet(8, 16)).matcher.distance == "cosine", "from Python it holds"
    with pytest.raises(InputError, match=r"^model: own_attack\.Mine changes .* the signature"):
        check_defaults(mine, "model")


def test_a_run_refuses_it_in_one_line(write, tmp_path, capfd):
    write("**kwargs: Any", HIDDEN["setdefault"], "super().__init__(target, **kwargs)")
    target = {"class_path": "LeNet", "init_args": {"num_classes": 20, "image_size": 16}}
    arguments = {"target": target, "iterations": 1}
    config = {
        "model": {"class_path": "own_attack.Mine", "init_args": arguments},
        "data": {"class_path": "SampleImagesDataModule", "init_args": {"image_size": 16}},
    }
    (tmp_path / "audit.yaml").write_text(yaml.safe_dump(config))
    assert main(["test", "--config", "audit.yaml"]) == 2
    (line,) = (line for line in capfd.readouterr().err.splitlines() if line.startswith("error: "))
    assert "(kwargs.setdefault('distance', 'cosine'))" in line
    assert not (tmp_path / "lightning_logs").exists()


@pytest.mark.parametrize("form", SEEN)
def test_a_default_that_the_command_line_sees_holds(form, write):
    mine = write(*SEEN[form])
    check_defaults(mine)
    target = {"class_path": "LeNet", "init_args": {"num_classes": 8, "image_size": 16}}
    parser = cell_parser()
    cell = {
        "model": {"class_path": "own_attack.Mine", "init_args": {"target": target}},
        "data": {"class_path": "SampleImagesDataModule"},
    }
    made = parser.instantiate_classes(parser.parse_object(cell)).model
    assert made.matcher.distance == mine(LeNet(8, 16)).matcher.distance == "cosine"


def test_a_class_below_the_one_that_hides_is_refused_too(write):
    mine = write(
        "**kwargs: Any", "kwargs.setdefault('seed', 3)", "super().__init__(target, **kwargs)"
    )
    with pytest.raises(InputError, match=r"own_attack\.Mine changes"):
        check_defaults(type("Below", (mine,), {}))


def test_no_class_of_the_package_hides_a_default():
    for module in pkgutil.walk_packages(lightning_recon.__path__, "lightning_recon."):
        if ".integrations." not in module.name:
            importlib.import_module(module.name)
    ours = [
        found
        for base in (torch.nn.Module, LightningDataModule)
        for found in below(base)
        if found.__module__.startswith("lightning_recon.")
    ]
    assert GradientMatching in ours
    for found in ours:
        check_defaults(found)


def below(base):
    for child in base.__subclasses__():
        yield child
        yield from below(child)
