"""The classes of a room, read from its source: nothing of it is imported, least of all torch."""

import ast
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

PACKAGE = Path(__file__).parents[1]


class SourceClass(NamedTuple):
    """What the source says of a class."""

    name: str
    module: str
    bases: tuple[str, ...]
    docstring: str
    assigned: Mapping[str, Any]
    """Class attributes that are plain values, by name."""
    defined: frozenset[str]
    abstract: frozenset[str]


def offered_classes(room: str, bases: tuple[str, ...]) -> list[SourceClass]:
    """Return the classes that a room exports and that can be built, by name.

    Args:
        room: name of a package below ``lightning_recon``.
        bases: what they are below; these are left out.
    """
    known = _classes(room)
    tree = ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8"))
    exported: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Assign) and _names(node) == ["__all__"]:
            exported = set(ast.literal_eval(node.value))
    return [
        known[name]
        for name in sorted(exported & known.keys() - set(bases))
        if set(ancestors(name, known)) & set(bases) and not _left_abstract(name, known)
    ]


def known_names(room: str) -> frozenset[str]:
    """Return the names of all classes of a room, parts of others included."""
    return frozenset(_classes(room))


def ancestors(name: str, known: Mapping[str, SourceClass]) -> list[str]:
    """Return a class and what it is below, the nearest first."""
    found = [name]
    for base in known[name].bases if name in known else ():
        found += [one for one in ancestors(base, known) if one not in found]
    return found


def attribute(found: SourceClass, name: str, room: str) -> Any:
    """Return a class attribute that is a plain value, its own or inherited; None without any."""
    known = _classes(room)
    for one in ancestors(found.name, known):
        if one in known and name in known[one].assigned:
            return known[one].assigned[name]
    return None


def _left_abstract(name: str, known: Mapping[str, SourceClass]) -> set[str]:
    """Return the abstract methods that a class leaves open."""
    if name not in known:
        return set()
    inherited = set().union(*(_left_abstract(base, known) for base in known[name].bases))
    return (inherited - known[name].defined) | known[name].abstract


@cache
def _classes(room: str) -> Mapping[str, SourceClass]:
    found = {}
    for path in sorted((PACKAGE / room).rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                found[node.name] = _class(node, ".".join(parts))
    return found


def _class(node: ast.ClassDef, module: str) -> SourceClass:
    functions = [one for one in node.body if isinstance(one, ast.FunctionDef)]
    abstract = {
        one.name
        for one in functions
        if any(ast.unparse(mark) == "abstractmethod" for mark in one.decorator_list)
    }
    assigned: dict[str, Any] = {}
    defined = {one.name for one in functions} - abstract
    for one in node.body:
        if isinstance(one, ast.Assign | ast.AnnAssign) and one.value is not None:
            defined |= set(_names(one))
            if isinstance(one.value, ast.Constant):
                assigned |= dict.fromkeys(_names(one), one.value.value)
    return SourceClass(
        node.name,
        module,
        tuple(ast.unparse(base).partition("[")[0].rpartition(".")[2] for base in node.bases),
        ast.get_docstring(node) or "",
        assigned,
        frozenset(defined),
        frozenset(abstract),
    )


def _names(node: ast.Assign | ast.AnnAssign) -> list[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return [target.id for target in targets if isinstance(target, ast.Name)]
