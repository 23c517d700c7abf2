"""Of all keys of a configuration none is read twice, and none is read not at all."""

import ast
import importlib
import inspect
import textwrap
from pathlib import Path

import pytest
import yaml
from jsonargparse import capture_parser

from lightning_recon.commands.early import SECTIONS
from lightning_recon.commands.lightning import command_line, main
from lightning_recon.commands.names import LIGHTNING, LISTS
from lightning_recon.runs import cells
from lightning_recon.runs.callback import Audit

PACKAGE = Path(cells.__file__).parents[1]
TINY = Path(__file__).parent / "conf/ldp_tiny.yaml"
CLASSES = [
    found
    for room in LISTS
    for name, found in vars(importlib.import_module(f"lightning_recon.{room}")).items()
    if inspect.isclass(found) and found.__module__.startswith(f"lightning_recon.{room}")
]


@pytest.mark.parametrize("kind", [*CLASSES, Audit], ids=lambda kind: kind.__name__)
def test_every_argument_is_read(kind):
    """One that a constructor takes and never looks at would be a setting that does nothing."""
    making = vars(kind).get("__init__")
    if not inspect.isfunction(making) or making.__module__ != kind.__module__:
        return
    tree = ast.parse(textwrap.dedent(inspect.getsource(making)))
    read = {
        node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }
    given = {name.lstrip("*") for name in inspect.signature(making).parameters} - {"self"}
    assert given - read == set()


def test_what_a_constructor_keeps_is_read_somewhere():
    """One that is kept and never looked at again would do nothing either."""
    trees = [ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")]
    read = {
        node.attr
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    for kind in [*CLASSES, Audit]:
        making = vars(kind).get("__init__")
        if not inspect.isfunction(making) or making.__module__ != kind.__module__:
            continue
        given = set(inspect.signature(making).parameters)
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(making)))):
            if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Attribute):
                continue
            used = {part.id for part in ast.walk(node.value) if isinstance(part, ast.Name)}
            assert not used & given or node.targets[0].attr in read, (kind, node.targets[0].attr)


@pytest.mark.parametrize("word", ["--model.init_args.seed", "--data.seed=3", "--model.seed"])
def test_a_seed_beside_the_one_that_is_read(word, capfd):
    assert main(["test", "--config", str(TINY), word, "3"]) == 2
    assert "would not be read" in capfd.readouterr().err


@pytest.mark.parametrize("section", ["model", "data"])
def test_a_seed_of_a_file_that_would_not_be_read(section, tmp_path, capfd):
    content = yaml.safe_load(TINY.read_text())
    content[section]["init_args"]["seed"] = 3
    path = tmp_path / "given.yaml"
    path.write_text(yaml.safe_dump(content))
    assert main(["test", "--config", str(path)]) == 2
    assert f"given.yaml: {section}.init_args.seed is 3, but all random" in capfd.readouterr().err


@pytest.fixture(scope="module")
def parser():
    return capture_parser(command_line)


@pytest.mark.parametrize("command", LIGHTNING)
def test_the_sections_of_a_file_are_those_of_the_parser(parser, command):
    words = parser._subcommands_action.choices[command]._actions
    keys = [action.dest for action in words if action.dest not in ("help", "print_config")]
    assert len(keys) == len(set(keys)), "a key is read twice"
    known = {key.partition(".")[0] for key in keys} - {"resume"}
    assert known <= set(SECTIONS)


def test_every_section_is_read_by_some_command(parser):
    choices = parser._subcommands_action.choices
    known = {
        action.dest.partition(".")[0] for name in LIGHTNING for action in choices[name]._actions
    }
    assert set(SECTIONS) <= known


def test_every_key_of_a_sweep_is_read():
    folder = Path(cells.__file__).parent
    files = ("cells.py", "cell_command.py", "sweep.py")
    text = "".join((folder / name).read_text() for name in files)
    for key in cells._KEYS:
        assert f'get("{key}")' in text or f'content["{key}"]' in text, key
