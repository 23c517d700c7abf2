"""One voice: the descriptions of arguments and errors begin in lower case."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lightning_recon"
NAMES = {
    "Adam",
    "Gaussian",
    "Hungarian",
    "Laplace",
    "Lightning",
    "Pillow",
    "Poisson",
    "TensorBoard",
}
NAMES |= {f"{name}'s" for name in NAMES}
SYMBOL = re.compile(r"[A-Z]+[A-Z0-9_-]*\b|[A-Z][a-z]*[A-Z0-9_]")  # B C H W, JSON, FedSGD, S_f


def loud(source):
    """Return the descriptions that begin in upper case."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
            continue
        section = ""
        for line in (ast.get_docstring(node) or "").splitlines():
            if heading := re.match(r"(\w+):$", line):
                section = heading[1]
            entry = re.match(r"    \*{0,2}[\w.]+: (\S+)", line)
            if section in ("Args", "Raises") and entry and entry[1][0].isupper():
                word = entry[1].rstrip(".,;:")
                if word not in NAMES and not SYMBOL.match(word):
                    found.append(line.strip())
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.name)
def test_descriptions_begin_in_lower_case(path):
    assert loud(path.read_text()) == []


def test_what_is_loud_is_heard():
    source = (
        'def f(x):\n    """Do.\n\n    Args:\n        x: The thing.\n        y: B C H W.\n    """'
    )
    assert loud(source) == ["x: The thing."]
