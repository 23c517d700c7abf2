"""A sweep as a page: ``report.html`` in its folder, made from ``results.csv``."""

import csv
import io
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning_recon.documents import parse_yaml, read_json, read_text
from lightning_recon.errors import InputError
from lightning_recon.report.charts import (
    MAX_SERIES,
    Chart,
    Dot,
    Mark,
    Panel,
    Series,
    along,
    ladder,
)
from lightning_recon.report.figures import CONTROLS, MIN_CLIENTS, NO_INTERVAL, NULLS, drawn_interval
from lightning_recon.report.findings import Finding, listed
from lightning_recon.report.page import (
    DASH,
    INTERVALS,
    MAX_TABLE_ROWS,
    Table,
    count,
    interval,
    metric_label,
    number,
    share,
    shorten,
    write_page,
)

Cell = dict[str, str]
"""A line of ``results.csv``: texts by column, an empty one where there is no figure."""


class _Axis(NamedTuple):
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


_MAX_PANELS = 24
_MAX_DOTS = 24
_MAX_CONFIG = 100_000  # characters
_NULLS = ("mean_image", "noise_only")  # that charts draw
_REPLICATES = "seed"  # the axis over which a line goes on: no setting, but chance
_SHARES = ("recall", "precision", "identification")
_LABELS = {
    "psnr": "PSNR, dB",
    "psnr_ci_low": "from",
    "psnr_ci_high": "to",
    "psnr_worst": "Worst PSNR, dB",
    "psnr_subject": "Subject PSNR, dB",
    "null_mean_image": "Mean image, dB",
    "null_class_mean": "Class mean, dB",
    "null_nearest_public": "Nearest public, dB",
    "null_noise_only": "Noise only, dB",
    "null_other_client": "Other client, dB",
    "noise_std": "Noise std",
    "clip_norm": "C",
    "epsilon_claimed": "Claimed ε",
    "epsilon_actual": "Actual ε",
    "num_clients": "Clients",
    "num_images": "Images",
    "num_failed": "Failed clients",
    "noise_only_recovered": "Recovered from noise",
    "recovered_convincing": "Convincingly",
    **{name: name.capitalize() for name in ("recovered", *_SHARES, "seconds")},
}


def write_sweep_report(folder: Path) -> Path:
    """Write ``report.html`` into the folder of a sweep.

    Args:
        folder: the sweep's, with ``results.csv``, and with ``sweep.yaml`` and ``run.json`` where
            there are any.  The axes are the columns left of ``psnr``.

    Returns:
        The path of the page.

    Raises:
        InputError: if there is no ``results.csv``, or it has no rows or no column ``psnr``.
    """
    cells, names = _read(folder / "results.csv")
    text = _plan(folder)
    record = _record(folder / "run.json")
    axes = _axes(cells, names, text)
    charts, charts_note = _axis_charts(cells, axes)
    recovered = [cell for cell in cells if (_value(cell, "recovered") or 0) > 0]
    content = {
        "title": f"{_title(folder)}: sweep",
        "kind": "Sweep of privacy audits of federated learning",
        "heading": _title(folder),
        "about": " × ".join(f"{len(axis.values)} {axis.name}" for axis in axes),  # noqa: RUF001
        "is_leak": bool(recovered),
        "status": f"Images leak in {len(recovered)} of {count(len(cells), 'cell')}",
        "verdict": _verdict(cells, names),
        "caveat": (
            f"{INTERVALS} An attack that fails does not prove that "
            "nothing leaked; a stronger one may not fail."
        ),
        "warnings": _findings(cells, names, text, record),
        "sections": {
            **({"axes": "Leakage along the axes"} if charts else {}),
            "privacy": "Privacy against leakage",
            "cells": "All cells",
            "reproduce": "Reproduce",
        },
        "source": "Made from results.csv; nothing here is fetched.",
        "charts": charts,
        "charts_note": charts_note,
        "leakage": [*_against_privacy(cells, axes), _ranking(cells, axes)],
        "cells": _table(cells, axes),
        "command": str(record.get("command") or "not recorded"),
        "versions": ", ".join(f"{k} {v}" for k, v in (record.get("versions") or {}).items()),
        "config": shorten(text, _MAX_CONFIG),
    }
    return write_page(folder / "report.html", "sweep.html", content)


def _title(folder: Path) -> str:
    """Return ``sweep_NAME`` for a folder ``sweep_NAME/version_0``, else the folder's name."""
    name = folder.resolve().name
    return folder.resolve().parent.name if name.startswith("version_") else name


def _read(path: Path) -> tuple[list[Cell], list[str]]:
    """Return the cells and the names of the axes."""
    if not path.is_file():
        raise InputError(f"{path.parent} holds no results.csv; name the folder of a sweep")
    reader = csv.DictReader(io.StringIO(read_text(path)))
    try:
        columns = list(reader.fieldnames or [])
        cells = [{name: row.get(name) or "" for name in columns} for row in reader]
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num} is no row: {error}") from error
    if "psnr" not in columns or not cells:
        raise InputError(f"{path} has no rows with a column psnr; run the sweep again")
    return cells, columns[: columns.index("psnr")]


def _plan(folder: Path) -> str:
    """Return the text of ``sweep.yaml``, empty where there is none."""
    plan = folder / "sweep.yaml"
    return plan.read_text(encoding="utf-8", errors="replace") if plan.is_file() else ""


def _record(path: Path) -> dict[str, Any]:
    """Return what is known of how the sweep was run."""
    try:
        record, _ = read_json(path, "run the sweep again")
    except InputError:  # the page can do without
        return {}
    return record


def _value(cell: Cell, name: str) -> float | None:
    """Return a figure of a cell, None where it is missing or not finite."""
    return _number(cell.get(name, ""))


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _axes(cells: Sequence[Cell], names: Sequence[str], plan: str) -> list[_Axis]:
    """Return the axes; no two values of them have one number, those of words have the first."""
    planned = _planned(plan)
    values = {
        name: list(
            dict.fromkeys(
                [*(label[name] for label in planned if name in label), *(c[name] for c in cells)]
            )
        )
        for name in names
    }
    numeric = {name: all(_number(value) is not None for value in values[name]) for name in names}
    first, taken = {}, 0
    for name in sorted(names, key=lambda name: numeric[name]):
        first[name] = taken
        taken += len(values[name])
    return [_Axis(name, values[name], numeric[name], first[name]) for name in names]


def _varying(axes: Sequence[_Axis]) -> list[_Axis]:
    """Return the axes along which something is set."""
    return [axis for axis in axes if len(axis.values) > 1 and axis.name != _REPLICATES]


def _name(cell: Cell, axes: Sequence[str]) -> str:
    """Return what a cell is called, such as "epsilon 10, attack spectral"."""
    return ", ".join(f"{axis} {cell[axis]}" for axis in axes) or "the only cell"


def _scored(cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells with a PSNR, worst leak first."""
    there = [cell for cell in cells if _value(cell, "psnr") is not None]
    return sorted(there, key=lambda cell: _value(cell, "psnr") or 0.0, reverse=True)


def _figure(cell: Cell, axes: Sequence[str]) -> str:
    ends = interval(_value(cell, "psnr_ci_low"), _value(cell, "psnr_ci_high"))
    certainty = "no interval" if ends == DASH else f"95 % interval {ends}"
    return f"{number(_value(cell, 'psnr'), 1)} dB ({certainty}) at {_name(cell, axes)}"


def _verdict(cells: Sequence[Cell], axes: Sequence[str]) -> str:
    """Return the range of what leaks, as one sentence."""
    scored = _scored(cells)
    if not scored:
        return "No cell has a score."
    null = _mean(_value(cell, "null_mean_image") for cell in scored)
    end = f", where guessing the mean image gives {number(null, 1)} dB" if null is not None else ""
    if len(scored) == 1:
        return f"PSNR {_figure(scored[0], axes)}{end}."
    return f"PSNR from {_figure(scored[-1], axes)} to {_figure(scored[0], axes)}{end}."


def _mean(values: Iterable[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


def sweep_findings(folder: Path) -> list[Finding]:
    """Return what keeps a sweep's figures from meaning what they seem to mean, alarms first.

    Args:
        folder: see :func:`write_sweep_report`.

    Raises:
        InputError: see :func:`write_sweep_report`.
    """
    cells, axes = _read(folder / "results.csv")
    return _findings(cells, axes, _plan(folder), _record(folder / "run.json"))


def _findings(
    cells: Sequence[Cell], axes: Sequence[str], plan: str, record: Mapping[str, Any]
) -> list[Finding]:
    found = []
    done, whole = (record.get(name) for name in ("num_clients", "num_clients_planned"))
    if isinstance(done, int) and isinstance(whole, int) and done < whole:
        text = f"Partial sweep: {done:,} of {count(whole, 'client')} of all cells."
        found.append(Finding("alarm", text))
    if failed := _with(cells, "num_failed"):
        total = sum(int(_value(cell, "num_failed") or 0) for cell in failed)
        text = (
            f"The attack failed on {count(total, 'client')} in {_cells(failed, axes)}. Their "
            "images count with the mean image, which says nothing about what they leak."
        )
        found.append(Finding("alarm", text))
    if imagined := _with(cells, "noise_only_recovered"):
        total = sum(int(_value(cell, "noise_only_recovered") or 0) for cell in imagined)
        text = (
            f"The attack also recovers {count(total, 'image')} from noise alone, with no client "
            f"behind it, in {_cells(imagined, axes)}: that is its prior and no leak."
        )
        found.append(Finding("alarm", text))
    if nothing := [cell for cell in cells if _value(cell, "recovered") == 0]:
        found.append(Finding("note", f"No image was recovered in {_cells(nothing, axes)}."))
    planned = _planned(plan)
    there = {tuple(cell[axis] for axis in axes) for cell in cells}
    missing = [
        labels for labels in planned if tuple(labels.get(axis) for axis in axes) not in there
    ]
    if missing:
        names = [
            ", ".join(f"{axis} {labels.get(axis, DASH)}" for axis in axes) for labels in missing
        ]
        text = (
            f"Without results: {len(missing)} of {count(len(planned), 'cell')} "
            f"({listed(names, '; ')})."
        )
        found.append(Finding("note", text))
    if differing := _differing(plan):
        text = (
            f"The cells differ in {' and in '.join(differing)}: one is no measure of another, and "
            "each has null controls of its own (all cells, below)."
        )
        found.append(Finding("note", text))
    return found


def _differing(plan: str) -> list[str]:
    """Return what of the cells is not the same beside the attack and the defenses."""
    configs = [cell["config"] for cell in _cells_of(plan) if isinstance(cell.get("config"), dict)]
    parts = {
        "the model under attack": [
            _at(config, "model", "init_args", "target") for config in configs
        ],
        "their data": [_at(config, "data") for config in configs],
    }
    return [name for name, values in parts.items() if any(value != values[0] for value in values)]


def _at(config: Any, *keys: str) -> Any:
    for key in keys:
        config = config.get(key) if isinstance(config, dict) else None
    return config


def _with(cells: Sequence[Cell], column: str) -> list[Cell]:
    """Return the cells whose count is above 0."""
    return [cell for cell in cells if (_value(cell, column) or 0) > 0]


def _cells(cells: Sequence[Cell], axes: Sequence[str]) -> str:
    """Return how many cells, and which."""
    names = [_name(cell, axes) for cell in cells]
    return f"{count(len(cells), 'cell')} ({listed(names, '; ')})"


def _planned(plan: str) -> list[dict[str, str]]:
    """Return the labels of the cells that were asked for, as ``results.csv`` writes them."""
    labels = [cell.get("labels") for cell in _cells_of(plan)]
    return [
        {str(axis): "" if value is None else str(value) for axis, value in label.items()}
        for label in labels
        if isinstance(label, dict)
    ]


def _cells_of(plan: str) -> list[dict[str, Any]]:
    """Return the cells of ``sweep.yaml``, what it holds beside them left out."""
    try:
        content = parse_yaml(plan, "sweep.yaml")
    except InputError:
        return []
    cells = content.get("cells") if isinstance(content, dict) else None
    return [cell for cell in cells if isinstance(cell, dict)] if isinstance(cells, list) else []


def _axis_charts(cells: Sequence[Cell], axes: Sequence[_Axis]) -> tuple[list[Chart], str]:
    """Return PSNR against every numeric axis: lines by another, panels by the rest."""
    scored = [cell for cell in cells if _value(cell, "psnr") is not None]
    varying = _varying(axes)
    charts = [
        _axis_chart(scored, axis, [other for other in varying if other != axis])
        for axis in varying
        if axis.is_numeric and scored
    ]
    if not charts:
        return [], ""
    band = "Band: 95 % interval of the mean; over several seeds from the lowest to the highest end."
    few = [_has_few_clients(cell) for cell in scored]
    words = " ".join([*([] if all(few) else [band]), *([NO_INTERVAL] if any(few) else [])])
    return charts, f"{words} Dashed: null controls. All panels of a chart have the same axes."


def _has_few_clients(cell: Cell) -> bool:
    num_clients = _value(cell, "num_clients")
    return num_clients is not None and num_clients < MIN_CLIENTS


def _line_axis(others: Sequence[_Axis]) -> _Axis | None:
    """Return the axis whose values are lines of one panel: words if there are, and many."""
    few = [other for other in others if len(other.values) <= MAX_SERIES]
    return max(few, key=lambda other: (not other.is_numeric, len(other.values)), default=None)


def _cell_axis(axes: Sequence[_Axis]) -> _Axis | None:
    """Return the axis by whose value a single cell is drawn."""
    varying = _varying(axes)
    words = next((axis for axis in varying if not axis.is_numeric), None)
    if words is None and len(varying) == 1:  # along which there is one line
        return None
    return words or _line_axis(varying) or next(iter(varying), None)


def _axis_chart(cells: Sequence[Cell], axis: _Axis, others: Sequence[_Axis]) -> Chart:
    by = _line_axis(others)
    rest = [other for other in others if other != by]
    panels = []
    for setting in itertools.product(*(other.values for other in rest)):
        where = list(zip(rest, setting, strict=True))
        chosen = [c for c in cells if all(c[other.name] == value for other, value in where)]
        if not chosen:
            continue
        label = ", ".join(f"{other.name} {value}" for other, value in where)
        if by is None:
            number = where[0][0].number(where[0][1]) if where else 0
            series = [_line(chosen, axis, label or "mean over all images", number)]
        else:
            of_value = {v: [c for c in chosen if c[by.name] == v] for v in by.values}
            series = [
                _line(mine, axis, f"{by.name} {value}", by.number(value))
                for value, mine in of_value.items()
                if mine
            ]
        panels.append(Panel(label, series, _null_marks(chosen)))
    places = [float(value) for value in axis.values]
    shown = panels[:_MAX_PANELS]
    left = f"The first {len(shown)} of {len(panels)} panels are shown."
    return along(
        *(f"PSNR against {axis.name}", shown, axis.name, "PSNR, dB"),
        note=left if len(shown) < len(panels) else "",
        is_x_log=min(places) > 0 and max(places) >= 8 * min(places),
        has_points=True,
    )


def _null_marks(cells: Sequence[Cell]) -> list[Mark]:
    means = {name: _mean(_value(cell, f"null_{name}") for cell in cells) for name in _NULLS}
    return [
        Mark(NULLS[name], mean, CONTROLS[name]) for name, mean in means.items() if mean is not None
    ]


def _line(cells: Sequence[Cell], axis: _Axis, label: str, number: int) -> Series:
    """Return the mean PSNR at every value of the axis, with its interval where all have one."""
    points = []
    for value in sorted(axis.values, key=float):
        here = [cell for cell in cells if cell[axis.name] == value]
        if not here:
            continue
        ends = [_ends(cell) for cell in here]
        lows, highs = zip(*ends, strict=True)
        points.append(
            (
                float(value),
                _mean(_value(cell, "psnr") for cell in here) or 0.0,
                min((low for low in lows if low is not None), default=math.nan),
                max((high for high in highs if high is not None), default=math.nan),
                None not in lows and None not in highs,
            )
        )
    has_band = all(point[4] for point in points)
    return Series(
        label,
        [point[0] for point in points],
        [point[1] for point in points],
        [point[2] for point in points] if has_band else (),
        [point[3] for point in points] if has_band else (),
        number,
    )


def _ends(cell: Cell) -> tuple[float | None, float | None]:
    """Return the ends of the interval that charts draw."""
    names = ("num_clients", "psnr_ci_low", "psnr_ci_high")
    return drawn_interval(*(_value(cell, name) for name in names))


def _against_privacy(cells: Sequence[Cell], axes: Sequence[_Axis]) -> list[Chart]:
    """Return all cells by the epsilon that holds, or else by the noise."""
    by = _cell_axis(axes)
    for column, label in (
        ("epsilon_actual", "actual ε of one update"),
        ("noise_std", "standard deviation of the noise"),
    ):
        there = [cell for cell in _scored(cells) if (_value(cell, column) or 0) > 0]
        places = {_value(cell, column) or 0.0 for cell in there}
        if len(places) < 2:
            continue
        series = []
        for value in by.values if by else [""]:
            mine = [cell for cell in there if not by or cell[by.name] == value]
            x = [_value(cell, column) or 0.0 for cell in mine]
            y = [_value(cell, "psnr") or 0.0 for cell in mine]
            name, number = (f"{by.name} {value}", by.number(value)) if by else ("", 0)
            if mine:
                series.append(Series(name, x, y, number=number))
        left = len(cells) - len(there)
        chart = along(
            f"PSNR against the {label}",
            [Panel("", series, _null_marks(there)[:1])],
            *(label, "PSNR, dB"),
            note=f"{count(left, 'cell')} without it left out."
            if left
            else "A point for every cell.",
            is_x_log=max(places) >= 8 * min(places),
            has_points=True,
            is_joined=False,
        )
        return [chart]
    return []


def _ranking(cells: Sequence[Cell], axes: Sequence[_Axis]) -> Chart:
    """Return the cells from the worst leak to the least, in the looks of one axis' values."""
    scored = _scored(cells)
    varying = [axis for axis in axes if len(axis.values) > 1]
    title = "Cells, worst leak first"
    if not scored:
        return Chart(title, [("", ladder(title, [Dot("no score", 0.0)], "PSNR, dB"))])
    by = _cell_axis(axes)
    dots = [
        Dot(
            ", ".join(cell[axis.name] for axis in varying) or "the only cell",
            _value(cell, "psnr") or 0.0,
            *_ends(cell),
            _value(cell, "psnr_worst"),
            by.number(cell[by.name]) if by else 0,
        )
        for cell in scored[:_MAX_DOTS]
    ]
    few = [_has_few_clients(cell) for cell in scored]
    note = f"Named by {', '.join(axis.name for axis in varying)}" if varying else ""
    note += f", coloured by {by.name}. " if by else ". " if varying else ""
    note += "Point: mean. "
    note += "" if all(few) else "Bar: 95 % interval. "
    note += f"{NO_INTERVAL} " if any(few) else ""
    note += "Thin line: up to the worst leak."
    if len(scored) > len(dots):
        note += f" The {len(dots)} worst of {len(scored)} are shown."
    return Chart(title, [("", ladder(title, dots, "PSNR, dB", _null_marks(scored)[:1]))], note)


def _table(cells: Sequence[Cell], axes: Sequence[_Axis]) -> Table:
    """Return every cell's figures."""
    facets = {axis.name: axis.values for axis in axes}
    columns = [name for name in cells[0] if any(cell[name] for cell in cells)]
    body = [
        [cell[name] or DASH if name in facets else _shown(cell, name) for name in columns]
        for cell in cells[:MAX_TABLE_ROWS]
    ]
    heads = [
        name if name in facets else _LABELS.get(name, metric_label(name)[0]) for name in columns
    ]
    caption = "One line for every cell; results.csv holds the same figures."
    if len(cells) > len(body):
        caption = f"The first {len(body):,} of {len(cells):,} cells; results.csv holds all."
    return Table(caption, heads, body, is_sortable=True, facets=facets)


def _shown(cell: Cell, name: str) -> str:
    """Return one figure for people."""
    value = _value(cell, name)
    if value is None:
        return cell[name] or DASH
    if name in _SHARES:
        return share(value)
    if name.startswith(("psnr", "null_")):
        return number(value, 1)
    return number(value)
