"""A user's model by name."""

import sys

import pytest
import torch
from torch import nn

from lightning_recon.errors import InputError
from lightning_recon.targets.importing import imported_module

SOURCE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes, width=4):
        super().__init__()
        self.fc = nn.Linear(width, num_classes)

class Strict(nn.Module):
    def __init__(self, path, /):
        super().__init__()

class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        raise KeyError("no such layer")

class Plain:
    pass

def make_net(depth=2):
    from mine_helper import WIDTH  # as a constructor that imports late
    return nn.Sequential(*[nn.Linear(WIDTH, WIDTH) for _ in range(depth)])

def make_dict():
    return {}

ready = nn.Linear(2, 3)
size = 3
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/__init__.py").write_text("")
    (tmp_path / "mine/nets.py").write_text(SOURCE)
    (tmp_path / "mine_helper.py").write_text("WIDTH = 5\n")
    (tmp_path / "mine_needs.py").write_text("import no_such_package\n")
    (tmp_path / "mine_script.py").write_text("import sys\nsys.exit('usage: train.py')\n")
    (tmp_path / "mine_wrong.py").write_text("x = 1\nx +\n")
    (tmp_path / "mine_raises.py").write_text("import torch\ntorch.load('no.pt')\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0].startswith("mine")]:
        del sys.modules[name]


def test_a_class_a_function_and_a_module():
    net = imported_module("mine.nets:Net", {"num_classes": 7})()
    assert net.fc.out_features == 7
    assert len(imported_module("mine.nets:make_net", {"depth": 3})()) == 3
    make = imported_module("mine.nets:ready")
    first, second = make(), make()
    assert isinstance(first, nn.Linear)
    assert torch.equal(first.weight, second.weight)
    assert first is not second


def test_the_path_is_left_as_it_was(folder):
    before = list(sys.path)
    imported_module("mine.nets:make_net")()
    with pytest.raises(InputError):
        imported_module("mine_wrong:Net")
    assert sys.path == before


WRONG = {
    "no colon": ("mine.nets.Net", {}, "put a colon before the class or function: mine.nets:Net"),
    "a file": ("mine/nets.py:Net", {}, "as it is imported: mine.nets:Net"),
    "nothing": ("", {}, "package.module:Net"),
    "no module": ("mime:Net", {}, "there is no module mime in"),
    "one like it": ("mine_helpre:Net", {}, "did you mean mine_helper?"),
    "none in a package": (
        "mine.net:Net", {}, "no module net in the package mine; did you mean nets?"
    ),
    "no class": ("mine.nets:Nett", {}, "mine.nets holds no Nett; did you mean Net?"),
    "no class like it": ("mine.nets:ResNet18", {}, "there are Broken, Net"),
    "what it imports": ("mine_needs:Net", {}, "mine_needs imports no_such_package, which is not"),
    "a script": ("mine_script:Net", {}, "mine_script ends the program"),
    "syntax": ("mine_wrong:Net", {}, "mine_wrong raises SyntaxError"),
    "raises": ("mine_raises:Net", {}, "mine_raises raises FileNotFoundError"),
    "arguments": ("mine.nets:Net", {}, "mine.nets:Net needs the argument num_classes"),
    "no such argument": (
        "mine.nets:Net",
        {"num_clases": 3},
        "no argument num_clases; did you mean num_classes?",
    ),
    "by position": ("mine.nets:Strict", {}, "needs the argument path"),
    "no module class": ("mine.nets:Plain", {}, "is a class, but no torch.nn.Module"),
    "a number": ("mine.nets:size", {}, "is a value of type int, but no torch.nn.Module"),
    "made already": ("mine.nets:ready", {"bias": False}, "made already"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_imported_is_told_in_one_line(case):
    name, arguments, words = WRONG[case]
    with pytest.raises(InputError) as error:
        imported_module(name, arguments)
    assert words in str(error.value)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mine.nets:Broken", r"mine\.nets:Broken raises KeyError: 'no such layer' \(.*line 17\)"),
        ("mine.nets:make_dict", "gave a dict"),
    ],
)
def test_what_cannot_be_made_is_told_in_one_line(name, words):
    with pytest.raises(InputError, match=words):
        imported_module(name)()
