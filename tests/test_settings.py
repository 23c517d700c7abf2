"""Of all keys of a configuration none is read twice, and none is read not at all."""

import ast
import importlib
import inspect
import textwrap
from pathlib import Path

import pytest
from jsonargparse import capture_parser

from lightning_recon.commands.early import SECTIONS
from lightning_recon.commands.lightning import command_line
from lightning_recon.commands.names import LIGHTNING, LISTS
from lightning_recon.runs import cells
from lightning_recon.runs.callback import Audit

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
