"""A sweep as a page: ``report.html`` in its folder, made from ``results.csv``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
from lightning_recon.report.sweep_charts import (
    against_privacy,
    axis_charts,
    by_leak,
    known_mean,
    ranking,
)
from lightning_recon.report.sweep_folder import (
    Axis,
    Cell,
    at,
    planned_cells,
    planned_labels,
    read_sweep,
    title,
    value_of,
)

_MAX_CONFIG = 100_000  # characters
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
    "local_estimate": "Local estimate, dB",
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
    cells, axes, text, record = read_sweep(folder)
    names = [axis.name for axis in axes]
    charts, charts_note = axis_charts(cells, axes)
    recovered = [cell for cell in cells if (value_of(cell, "recovered") or 0) > 0]
    content = {
        "title": f"{title(folder)}: sweep",
        "kind": "Sweep of privacy audits of federated learning",
        "heading": title(folder),
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
        "leakage": [*against_privacy(cells, axes), ranking(cells, axes)],
        "cells": cells_table(cells, axes),
        "command": str(record.get("command") or "not recorded"),
        "versions": ", ".join(f"{k} {v}" for k, v in (record.get("versions") or {}).items()),
        "config": shorten(text, _MAX_CONFIG),
    }
    return write_page(folder / "report.html", "sweep.html", content)


def _name(cell: Cell, axes: Sequence[str]) -> str:
    """Return what a cell is called, such as "epsilon 10, attack spectral"."""
    return ", ".join(f"{axis} {cell[axis]}" for axis in axes) or "the only cell"


def _figure(cell: Cell, axes: Sequence[str]) -> str:
    ends = interval(value_of(cell, "psnr_ci_low"), value_of(cell, "psnr_ci_high"))
    certainty = "no interval" if ends == DASH else f"95 % interval {ends}"
    return f"{number(value_of(cell, 'psnr'), 1)} dB ({certainty}) at {_name(cell, axes)}"


def _verdict(cells: Sequence[Cell], axes: Sequence[str]) -> str:
    """Return the range of what leaks, as one sentence."""
    scored = by_leak(cells)
    if not scored:
        return "No cell has a score."
    null = known_mean(value_of(cell, "null_mean_image") for cell in scored)
    end = f", where guessing the mean image gives {number(null, 1)} dB" if null is not None else ""
    if len(scored) == 1:
        return f"PSNR {_figure(scored[0], axes)}{end}."
    return f"PSNR from {_figure(scored[-1], axes)} to {_figure(scored[0], axes)}{end}."


def sweep_findings(folder: Path) -> list[Finding]:
    """Return what keeps a sweep's figures from meaning what they seem to mean, alarms first.

    Args:
        folder: see :func:`write_sweep_report`.

    Raises:
        InputError: see :func:`write_sweep_report`.
    """
    cells, axes, plan, record = read_sweep(folder)
    return _findings(cells, [axis.name for axis in axes], plan, record)


def _findings(
    cells: Sequence[Cell], axes: Sequence[str], plan: str, record: Mapping[str, Any]
) -> list[Finding]:
    found = []
    done, whole = (record.get(name) for name in ("num_clients", "num_clients_planned"))
    if isinstance(done, int) and isinstance(whole, int) and done < whole:
        text = f"Partial sweep: {done:,} of {count(whole, 'client')} of all cells."
        found.append(Finding("alarm", text))
    if failed := _with(cells, "num_failed"):
        total = sum(int(value_of(cell, "num_failed") or 0) for cell in failed)
        text = (
            f"The attack failed on {count(total, 'client')} in {_cells(failed, axes)}. Their "
            "images count with the mean image, which says nothing about what they leak."
        )
        found.append(Finding("alarm", text))
    if imagined := _with(cells, "noise_only_recovered"):
        total = sum(int(value_of(cell, "noise_only_recovered") or 0) for cell in imagined)
        text = (
            f"The attack also recovers {count(total, 'image')} from noise alone, with no client "
            f"behind it, in {_cells(imagined, axes)}: that is its prior and no leak."
        )
        found.append(Finding("alarm", text))
    if nothing := [cell for cell in cells if value_of(cell, "recovered") == 0]:
        found.append(Finding("note", f"No image was recovered in {_cells(nothing, axes)}."))
    planned = planned_labels(plan)
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
    cells = planned_cells(plan)
    configs = [cell["config"] for cell in cells if isinstance(cell.get("config"), dict)]
    parts = {
        "the model under attack": [
            at(config, "model", "init_args", "target") for config in configs
        ],
        "their data": [at(config, "data") for config in configs],
    }
    return [name for name, values in parts.items() if any(value != values[0] for value in values)]


def _with(cells: Sequence[Cell], column: str) -> list[Cell]:
    """Return the cells whose count is above 0."""
    return [cell for cell in cells if (value_of(cell, column) or 0) > 0]


def _cells(cells: Sequence[Cell], axes: Sequence[str]) -> str:
    """Return how many cells, and which."""
    names = [_name(cell, axes) for cell in cells]
    return f"{count(len(cells), 'cell')} ({listed(names, '; ')})"


def cells_table(cells: Sequence[Cell], axes: Sequence[Axis]) -> Table:
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
    value = value_of(cell, name)
    if value is None:
        return cell[name] or DASH
    if name in _SHARES:
        return share(value)
    if name.startswith(("psnr", "null_", "local_estimate")):
        return number(value, 1)
    return number(value)
