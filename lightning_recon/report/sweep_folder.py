"""Reads a sweep again from its folder: ``results.csv``, ``sweep.yaml``, ``run.json``."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning_recon.documents import parse_yaml, read_json, read_text
from lightning_recon.errors import InputError

Cell = dict[str, str]
"""A line of ``results.csv``: texts by column, an empty one where there is no figure."""


class Axis(NamedTuple):
    """An axis of the sweep: the one order of its values, and their looks, on the whole page."""

    name: str
    values: list[str]
    """As the sweep's file lists them, those without results included."""
    is_numeric: bool
    first: int
    """Number of the first value; the others follow."""

    def number(self, value: str) -> int:
        """Return the number by which charts draw a value."""
        return self.first + self.values.index(value)


class SweepFolder(NamedTuple):
    """What a sweep left behind."""

    cells: list[Cell]
    axes: list[Axis]
    plan: str
    """The text of ``sweep.yaml``, empty where there is none."""
    record: dict[str, Any]
    """``run.json``: command, versions, and how many clients of how many."""


def is_sweep(folder: Path) -> bool:
    """Return whether a folder is a sweep's, done or not."""
    return any((folder / name).is_file() for name in ("results.csv", "sweep.yaml"))


def read_sweep(folder: Path) -> SweepFolder:
    """Read a sweep.

    Args:
        folder: with ``results.csv``, whose columns left of ``psnr`` are the axes.

    Raises:
        InputError: if there is no ``results.csv``, or it has no rows or no column ``psnr``.
    """
    cells, names = read_cells(folder / "results.csv")
    plan = read_plan(folder)
    return SweepFolder(cells, axes_of(cells, names, plan), plan, read_record(folder / "run.json"))


def title(folder: Path) -> str:
    """Return ``sweep_NAME`` for a folder ``sweep_NAME/version_0``, else the folder's name."""
    name = folder.resolve().name
    return folder.resolve().parent.name if name.startswith("version_") else name


def read_cells(path: Path) -> tuple[list[Cell], list[str]]:
    """Return the cells and the names of the axes."""
    if not path.is_file():
        raise InputError(
            f"{path.parent} holds no results.csv; name the folder of a sweep; one that was stopped "
            "writes it when it is resumed"
        )
    reader = csv.DictReader(io.StringIO(read_text(path)))
    try:
        columns = list(reader.fieldnames or [])
        cells = [{name: row.get(name) or "" for name in columns} for row in reader]
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num} is no row: {error}") from error
    if "psnr" not in columns or not cells:
        raise InputError(f"{path} has no rows with a column psnr; run the sweep again")
    return cells, columns[: columns.index("psnr")]


def read_plan(folder: Path) -> str:
    """Return the text of ``sweep.yaml``, empty where there is none."""
    plan = folder / "sweep.yaml"
    return plan.read_text(encoding="utf-8", errors="replace") if plan.is_file() else ""


def read_record(path: Path) -> dict[str, Any]:
    """Return what is known of how the sweep was run."""
    try:
        record, _ = read_json(path, "run the sweep again")
    except InputError:  # the page can do without
        return {}
    return record


def value_of(cell: Cell, name: str) -> float | None:
    """Return a figure of a cell, None where it is missing or not finite."""
    return number_of(cell.get(name, ""))


def number_of(text: str) -> float | None:
    """Return a text's number, None where it is none, or not finite."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def axes_of(cells: Sequence[Cell], names: Sequence[str], plan: str) -> list[Axis]:
    """Return the axes; no two values of them have one number, those of words have the first."""
    planned = planned_labels(plan)
    values = {
        name: list(
            dict.fromkeys(
                [*(label[name] for label in planned if name in label), *(c[name] for c in cells)]
            )
        )
        for name in names
    }
    numeric = {name: all(number_of(value) is not None for value in values[name]) for name in names}
    first, taken = {}, 0
    for name in sorted(names, key=lambda name: numeric[name]):
        first[name] = taken
        taken += len(values[name])
    return [Axis(name, values[name], numeric[name], first[name]) for name in names]


def at(config: Any, *keys: str) -> Any:
    """Return what stands at a path of keys, None where there is nothing."""
    for key in keys:
        config = config.get(key) if isinstance(config, dict) else None
    return config


def planned_labels(plan: str) -> list[dict[str, str]]:
    """Return the labels of the cells that were asked for, as ``results.csv`` writes them."""
    labels = [cell.get("labels") for cell in planned_cells(plan)]
    return [
        {str(axis): "" if value is None else str(value) for axis, value in label.items()}
        for label in labels
        if isinstance(label, dict)
    ]


def planned_cells(plan: str) -> list[dict[str, Any]]:
    """Return the cells of ``sweep.yaml``, what it holds beside them left out."""
    try:
        content = parse_yaml(plan, "sweep.yaml")
    except InputError:
        return []
    cells = content.get("cells") if isinstance(content, dict) else None
    return [cell for cell in cells if isinstance(cell, dict)] if isinstance(cells, list) else []
