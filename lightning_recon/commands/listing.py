"""What there is of attacks, defenses, data, targets, clients, priors and refiners."""

import json

from lightning_recon.commands.names import LISTS
from lightning_recon.commands.sources import SourceClass, attribute, offered_classes


def list_classes(kind: str, *, as_json: bool) -> None:
    """Print what there is of one kind: name, first sentence, citation."""
    entries = [
        {
            "name": found.name,
            "class_path": f"{found.module}.{found.name}",
            "summary": _first_sentence(found.docstring),
            "citation": _citation_of(found, kind),
        }
        for found in offered_classes(kind, LISTS[kind])
    ]
    if as_json:
        print(json.dumps(entries, indent=2))  # noqa: T201
        return
    for entry in entries:
        print(f"{entry['name']}\n  {entry['summary']}")  # noqa: T201
        if entry["citation"]:
            print(f"  {entry['citation']}")  # noqa: T201


def _citation_of(found: SourceClass, kind: str) -> str | None:
    """Return where a class was published; None for kinds of which that is not told."""
    is_told = kind in ("attacks", "defenses", "data")
    return attribute(found, "citation", kind) or ("no publication" if is_told else None)


def _first_sentence(docstring: str) -> str:
    return docstring.split("\n\n")[0].replace("\n", " ").replace("``", "")
