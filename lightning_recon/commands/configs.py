"""The shipped configurations, as the comments at their heads tell of them.

The head is the only record of what a configuration takes and gives: its first line is the command,
and each following one begins a key of :data:`KEYS` or, indented, goes on with the one above.
"""

import json
import re
import textwrap
from pathlib import Path
from typing import NamedTuple

from lightning_recon.commands.shipped import shipped
from lightning_recon.errors import InputError

KEYS = ("Time", "Memory", "Expected", "Paper", "Table")
"""What every head tells; "not measured" and "none" are answers.  ``Note`` may follow."""
_WIDTH = 100
_ENTRY = re.compile(r"# ([A-Z][a-z]+): (.+)")


class Head(NamedTuple):
    """What a configuration says of itself."""

    name: str
    """As ``--config`` takes it, such as ``ldp_imagenet`` or ``sweeps/ldp_small``."""
    command: str
    time: str
    memory: str
    expected: str
    """The figure of a run, and over which images."""
    paper: str
    table: str
    """Where the figure stands in docs: file and heading."""
    note: str = ""


def read_head(path: Path, name: str) -> Head:
    """Read the comments at the head of a configuration.

    Args:
        path: of the YAML file.
        name: as ``--config`` takes it.

    Raises:
        InputError: if the head lacks the command or one of :data:`KEYS`, or holds something else.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    end = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    if not end or f" --config configs/{name}.yaml" not in lines[0]:
        raise InputError(f"{path}: the first line is not the command that runs it")
    found: dict[str, str] = {}
    for number, line in enumerate(lines[1:end], start=2):
        entry = _ENTRY.fullmatch(line)
        if entry and entry[1] in (*KEYS, "Note") and entry[1] not in found:
            found[entry[1]] = entry[2]
        elif line.startswith("#   ") and found:
            found[list(found)[-1]] += f" {line[4:]}"
        else:
            raise InputError(
                f"{path}, line {number}: no key of a head; there are {', '.join(KEYS)}, Note"
            )
    if missing := [key for key in KEYS if key not in found]:
        raise InputError(
            f"{path}: the head lacks {', '.join(missing)}; write 'not measured' or 'none' there"
        )
    told = {key.lower(): value for key, value in found.items()}
    return Head(name, lines[0].removeprefix("# "), **told)


def heads() -> list[Head]:
    """Return the heads of all shipped configurations by name, those in sub-folders last."""
    folder = shipped("configs")
    paths = sorted(folder.rglob("*.yaml"), key=lambda path: (len(path.parts), path))
    return [read_head(path, str(path.relative_to(folder).with_suffix(""))) for path in paths]


def list_configs(*, as_json: bool, as_markdown: bool) -> None:
    """Print the heads: as text, as JSON, or as the table of docs/gallery.md."""
    found = heads()
    if as_json:
        print(json.dumps([head._asdict() for head in found], indent=2))  # noqa: T201
    elif as_markdown:
        print(markdown(found))  # noqa: T201
    else:
        print("\n".join(map(_text, found)))  # noqa: T201


def _text(head: Head) -> str:
    """Return a head for a terminal."""
    lines = [
        f"{head.time}; memory: {head.memory}",
        f"expected: {head.expected}",
        f"paper: {head.paper}; table: {head.table}",
        *([head.note] if head.note else []),
    ]
    wrapped = [
        textwrap.fill(line, _WIDTH, initial_indent="  ", subsequent_indent="    ") for line in lines
    ]
    return "\n".join([head.name, *wrapped])


def markdown(found: list[Head]) -> str:
    """Return the table of docs/gallery.md: a line for each configuration."""
    lines = ["| config | time, memory | expected | paper | table |", "|---|---|---|---|---|"]
    for head in found:
        cells = [
            f"[`{head.name}`](../configs/{head.name}.yaml)",
            f"{head.time}; {head.memory}" if head.memory != "not measured" else head.time,
            head.expected,
            head.paper,
            _link(head.table),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _link(table: str) -> str:
    """Return "docs/x.md, Heading" as a link of a page in docs; other texts as they are."""
    file, comma, heading = table.partition(", ")
    if not comma:
        return table
    anchor = re.sub(r"[^\w\s-]", "", heading.lower()).replace(" ", "-")
    plain = heading.replace("`", "")
    return f"[{plain}]({file.removeprefix('docs/')}#{anchor})"
