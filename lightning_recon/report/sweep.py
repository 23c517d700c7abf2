"""A sweep as a page: ``report.html`` in its folder, made from ``results.csv``."""

import csv
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lightning_recon.errors import InputError
from lightning_recon.report.charts import MAX_LINES, Chart, Dot, Mark, Series, ladder, lines
from lightning_recon.report.findings import Finding, listed, texts
from lightning_recon.report.page import (
    DASH,
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

_MAX_CHARTS = 24
_MAX_DOTS = 24
_MAX_CONFIG = 100_000  # characters
_NULLS = {"null_mean_image": "mean image", "null_noise_only": "noise-only update"}
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
    "num_images": "Images",
    "num_failed": "Failed clients",
    "noise_only_recovered": "Recovered from noise",
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
    cells, axes = _read(folder / "results.csv")
    text = _plan(folder)
    record = _record(folder / "run.json")
    charts, charts_note = _axis_charts(cells, axes)
    recovered = [cell for cell in cells if (_value(cell, "recovered") or 0) > 0]
    content = {
        "title": f"{_title(folder)}: sweep",
        "kind": "Sweep of privacy audits of federated learning",
        "heading": _title(folder),
        "about": " × ".join(f"{len(_distinct(cells, axis))} {axis}" for axis in axes),  # noqa: RUF001
        "is_leak": bool(recovered),
        "status": f"Images leak in {len(recovered)} of {count(len(cells), 'cell')}",
        "verdict": _verdict(cells, axes),
        "caveat": (
            "Intervals are at 95 %, with whole clients resampled. An attack that fails does not "
            "prove that nothing leaked; a stronger one may not fail."
        ),
        "warnings": texts(_findings(cells, axes, text, record)),
        "sections": {
            "axes": "Leakage along the axes",
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
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        reader = csv.DictReader(file)
        columns = list(reader.fieldnames or [])
        cells = [{name: row.get(name) or "" for name in columns} for row in reader]
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
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        return {}
    return record if isinstance(record, dict) else {}


def _value(cell: Cell, name: str) -> float | None:
    """Return a figure of a cell, None where it is missing or not finite."""
    try:
        value = float(cell.get(name, ""))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _distinct(cells: Sequence[Cell], axis: str) -> list[str]:
    """Return the values of an axis: numbers in their order, texts in that of the file."""
    values = list(dict.fromkeys(cell[axis] for cell in cells))
    return sorted(values, key=float) if _is_numeric(cells, axis) else values


def _is_numeric(cells: Sequence[Cell], axis: str) -> bool:
    return all(_value(cell, axis) is not None for cell in cells)


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
    return found


def _with(cells: Sequence[Cell], column: str) -> list[Cell]:
    """Return the cells whose count is above 0."""
    return [cell for cell in cells if (_value(cell, column) or 0) > 0]


def _cells(cells: Sequence[Cell], axes: Sequence[str]) -> str:
    """Return how many cells, and which."""
    names = [_name(cell, axes) for cell in cells]
    return f"{count(len(cells), 'cell')} ({listed(names, '; ')})"


def _planned(plan: str) -> list[dict[str, str]]:
    """Return the labels of the cells that were asked for, as ``results.csv`` writes them."""
    try:
        content = yaml.safe_load(plan)
    except yaml.YAMLError:
        return []
    cells = content.get("cells") if isinstance(content, dict) else None
    if not isinstance(cells, list):
        return []
    labels = [cell.get("labels") for cell in cells if isinstance(cell, dict)]
    return [
        {str(axis): "" if value is None else str(value) for axis, value in label.items()}
        for label in labels
        if isinstance(label, dict)
    ]


def _axis_charts(cells: Sequence[Cell], axes: Sequence[str]) -> tuple[list[Chart], str]:
    """Return PSNR against every numeric axis, a chart for each setting of the others."""
    scored = _scored(cells)
    varying = [axis for axis in axes if len(_distinct(cells, axis)) > 1]
    charts = []
    for axis in varying:
        if axis == _REPLICATES or not _is_numeric(cells, axis):
            continue
        others = [other for other in varying if other not in (axis, _REPLICATES)]
        few = [other for other in others if len(_distinct(cells, other)) <= MAX_LINES]
        by = max(few, key=lambda other: len(_distinct(cells, other)), default=None)
        fixed = [other for other in others if other != by]
        for setting in itertools.product(*(_distinct(cells, other) for other in fixed)):
            chosen = [
                c for c in scored if all(c[a] == v for a, v in zip(fixed, setting, strict=True))
            ]
            if chosen:
                where = ", ".join(f"{a} {v}" for a, v in zip(fixed, setting, strict=True))
                charts.append(_axis_chart(chosen, axis, by, where))
    note = (
        "Band: 95 % interval of the mean; over several seeds from the lowest to the highest end. "
        "Dashed: null controls."
    )
    if not charts:
        note = "No axis is numeric: see the ranking below."
    if len(charts) > _MAX_CHARTS:
        note += f" The first {_MAX_CHARTS} of {len(charts)} charts are shown."
    return charts[:_MAX_CHARTS], note


def _axis_chart(cells: Sequence[Cell], axis: str, by: str | None, where: str) -> Chart:
    series = []
    for value in _distinct(cells, by) if by else [""]:
        mine = [cell for cell in cells if not by or cell[by] == value]
        series.append(_line(mine, axis, f"{by} {value}" if by else "mean over all images"))
    places = [float(cell[axis]) for cell in cells]
    title = f"PSNR against {axis}" + (f" at {where}" if where else "")
    means = {label: _mean(_value(cell, null) for cell in cells) for null, label in _NULLS.items()}
    chart = lines(
        *(title, series, axis, "PSNR, dB"),
        marks=[Mark(label, mean) for label, mean in means.items() if mean is not None],
        is_x_log=min(places) > 0 and max(places) >= 8 * min(places),
        has_points=True,
    )
    return Chart(title, chart, "", [one.label for one in series])


def _line(cells: Sequence[Cell], axis: str, label: str) -> Series:
    """Return the mean PSNR at every value of the axis, with its interval where all have one."""
    points = []
    for value in _distinct(cells, axis):
        here = [cell for cell in cells if cell[axis] == value]
        lows = [_value(cell, "psnr_ci_low") for cell in here]
        highs = [_value(cell, "psnr_ci_high") for cell in here]
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
    )


def _against_privacy(cells: Sequence[Cell], axes: Sequence[str]) -> list[Chart]:
    """Return all cells by the epsilon that holds, or else by the noise."""
    words = [axis for axis in axes if not _is_numeric(cells, axis)]
    by = next((axis for axis in words if 1 < len(_distinct(cells, axis)) <= MAX_LINES), None)
    for column, label in (
        ("epsilon_actual", "actual ε of one update"),
        ("noise_std", "standard deviation of the noise"),
    ):
        there = [cell for cell in _scored(cells) if (_value(cell, column) or 0) > 0]
        places = {_value(cell, column) or 0.0 for cell in there}
        if len(places) < 2:
            continue
        series = []
        for value in _distinct(there, by) if by else [""]:
            mine = [cell for cell in there if not by or cell[by] == value]
            x = [_value(cell, column) or 0.0 for cell in mine]
            y = [_value(cell, "psnr") or 0.0 for cell in mine]
            series.append(Series(f"{by} {value}" if by else "cells", x, y))
        title = f"PSNR against the {label}"
        null = _mean(_value(cell, "null_mean_image") for cell in there)
        chart = lines(
            *(title, series, label, "PSNR, dB"),
            marks=[Mark("mean image", null)] if null is not None else [],
            is_x_log=max(places) >= 8 * min(places),
            has_points=True,
            is_joined=False,
        )
        left = len(cells) - len(there)
        note = f"{count(left, 'cell')} without it left out." if left else "A point for every cell."
        return [Chart(title, chart, note, [one.label for one in series] if by else [])]
    return []


def _ranking(cells: Sequence[Cell], axes: Sequence[str]) -> Chart:
    """Return the cells from the worst leak to the least."""
    scored = _scored(cells)
    varying = [axis for axis in axes if len(_distinct(cells, axis)) > 1]
    title = "Cells, worst leak first"
    if not scored:
        return Chart(title, ladder(title, [Dot("no score", 0.0)], "PSNR, dB"))
    dots = [
        Dot(
            ", ".join(cell[axis] for axis in varying) or "the only cell",
            _value(cell, "psnr") or 0.0,
            _value(cell, "psnr_ci_low"),
            _value(cell, "psnr_ci_high"),
            _value(cell, "psnr_worst"),
        )
        for cell in scored[:_MAX_DOTS]
    ]
    null = _mean(_value(cell, "null_mean_image") for cell in scored)
    marks = [Mark("mean image", null)] if null is not None else []
    named = f"Named by {', '.join(varying)}. " if varying else ""
    note = f"{named}Point: mean. Bar: 95 % interval. Thin line: up to the worst leak."
    if len(scored) > len(dots):
        note += f" The {len(dots)} worst of {len(scored)} are shown."
    return Chart(title, ladder(title, dots, "PSNR, dB", marks), note)


def _table(cells: Sequence[Cell], axes: Sequence[str]) -> Table:
    """Return every cell's figures."""
    columns = [name for name in cells[0] if any(cell[name] for cell in cells)]
    body = [
        [cell[name] or DASH if name in axes else _shown(cell, name) for name in columns]
        for cell in cells[:MAX_TABLE_ROWS]
    ]
    heads = [name if name in axes else _LABELS.get(name, metric_label(name)[0]) for name in columns]
    caption = "One line for every cell; results.csv holds the same figures."
    if len(cells) > len(body):
        caption = f"The first {len(body):,} of {len(cells):,} cells; results.csv holds all."
    return Table(caption, heads, body, is_sortable=True, facets=tuple(axes))


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
