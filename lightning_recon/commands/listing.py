"""What there is of attacks, defenses, data, targets, clients, priors and refiners."""

import importlib
import inspect
import json
from typing import Any, TypeVar

from lightning_recon.commands.names import LISTS

T = TypeVar("T")


def list_classes(kind: str, *, as_json: bool) -> None:
    """Print what there is of one kind: name, first sentence, citation."""
    package = importlib.import_module(f"lightning_recon.{kind}")
    bases = tuple(getattr(package, name) for name in LISTS[kind])
    classes = {found for base in bases for found in concrete_subclasses(base)}
    entries = [
        {
            "name": found.__name__,
            "class_path": f"{found.__module__}.{found.__name__}",
            "summary": _first_sentence(found.__doc__ or ""),
            "citation": _citation_of(found, kind),
        }
        for found in sorted(classes, key=lambda found: found.__name__)
        if found.__name__ in package.__all__ and found not in bases  # no parts of these
    ]
    if as_json:
        print(json.dumps(entries, indent=2))  # noqa: T201
        return
    for entry in entries:
        print(f"{entry['name']}\n  {entry['summary']}")  # noqa: T201
        if entry["citation"]:
            print(f"  {entry['citation']}")  # noqa: T201


def _citation_of(found: type[Any], kind: str) -> str | None:
    """Return where a class was published; None for kinds of which that is not told."""
    is_told = kind in ("attacks", "defenses", "data")
    return getattr(found, "citation", None) or ("no publication" if is_told else None)


def _first_sentence(docstring: str) -> str:
    return inspect.cleandoc(docstring).split("\n\n")[0].replace("\n", " ").replace("``", "")


def concrete_subclasses(base: type[T]) -> set[type[T]]:
    """All classes of the package below ``base`` that can be built."""
    below: set[type[T]] = set()
    for child in base.__subclasses__():
        below |= concrete_subclasses(child)
    if not inspect.isabstract(base) and base.__module__.startswith("lightning_recon."):
        below.add(base)
    return below
