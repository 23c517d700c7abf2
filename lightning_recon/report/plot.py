"""The figure of a sweep, as a picture for papers: leakage along an axis."""

import io
import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_recon.files import write_atomically
from lightning_recon.report.charts import MAX_SERIES
from lightning_recon.report.figures import NULLS, drawn_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_LINES = 12

_COLUMNS = 3  # of panels
_CONTROLS = {"mean_image": "--", "noise_only": ":"}
"""Null controls that are drawn, and their dashes."""

Row = Mapping[str, Any]


def write_sweep_figure(path: Path, rows: Sequence[Row], axes: Sequence[str]) -> Path | None:
    """Draw PSNR over all images against the first numeric axis, a line for each other setting.

    Bands are the 95 % intervals of the mean, where there are enough clients; broken lines are null
    controls.  More than :data:`~lightning_recon.report.charts.MAX_SERIES` lines are drawn in panels
    with common axes.  Where there are none, and the axis fixes the actual epsilon of one update,
    the upper scale tells it.  Lines have the order and so the colours of the rows.

    Args:
        path: of the PNG to write.
        rows: the cells of ``results.csv``, in the order of the sweep's file.
        axes: names of the columns that tell the cells apart.

    Returns:
        The path; None where no axis is numeric, there are more than :data:`MAX_LINES` lines, or
        matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        return None
    from matplotlib.figure import Figure

    axis = next((name for name in axes if _is_numeric(rows, name)), None)
    if axis is None:
        return None
    others = [name for name in axes if name != axis]
    lines: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        lines.setdefault(tuple(repr(row[name]) for name in others), []).append(row)
    if len(lines) > MAX_LINES:
        return None
    labels = [
        ", ".join(_words(name, cells[0][name]) for name in others) or "attack"
        for cells in lines.values()
    ]
    x = sorted({float(row[axis]) for row in rows})
    epsilons: dict[float, float] = {}
    if len(lines) > MAX_SERIES:
        figure = _panels(labels, list(lines.values()), axis)
    else:
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        plot = figure.add_subplot()
        for i, (cells, label) in enumerate(zip(lines.values(), labels, strict=True)):
            _draw(plot, cells, axis, label, f"C{i}")
        _draw_controls(plot, max(lines.values(), key=len), axis)
        epsilons = _actual_epsilons(rows, axis)
    for plot in figure.axes:
        _scale(plot, x)
    if epsilons:
        upper = figure.axes[0].secondary_xaxis("top")
        upper.set_xticks(x, [f"{epsilons[value]:.2g}" for value in x])
        upper.minorticks_off()
        upper.set_xlabel("actual epsilon of one update, client level, delta 1e-5")
    figure.supxlabel(axis, fontsize="medium")
    figure.supylabel("PSNR over all images (dB)", fontsize="medium")
    handles, names = figure.axes[0].get_legend_handles_labels()
    if len(lines) > MAX_SERIES:  # whose lines are named by their panels
        handles, names = handles[1:], names[1:]
    figure.legend(handles, names, loc="outside upper center", ncols=3, fontsize="small")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    write_atomically(path, buffer.getvalue())
    return path


def _panels(labels: Sequence[str], lines: Sequence[Sequence[Row]], axis: str) -> "Figure":
    """Return a panel for each line; all have the same axes."""
    from matplotlib.figure import Figure

    num_rows = math.ceil(len(lines) / _COLUMNS)
    figure = Figure(figsize=(9, 1.5 + 2.2 * num_rows), layout="constrained")
    grid = list(figure.subplots(num_rows, _COLUMNS, sharex=True, sharey=True).flat)
    for unused in grid[len(lines) :]:
        unused.remove()
    for i, (label, cells) in enumerate(zip(labels, lines, strict=True)):
        _draw(grid[i], cells, axis, label, f"C{i}")
        _draw_controls(grid[i], cells, axis)
        grid[i].set_title(label, fontsize="medium")
        grid[i].tick_params(labelbottom=i + _COLUMNS >= len(lines))
    return figure


def _scale(plot: "Axes", x: Sequence[float]) -> None:
    """Set the ticks to the values of the axis."""
    if min(x) > 0 and max(x) / min(x) >= 8:
        plot.set_xscale("log")
    is_small = len(plot.figure.axes) > 1
    rotation = 90 if is_small and len(x) > 4 else 0
    plot.set_xticks(x, [f"{value:g}" for value in x], minor=False, rotation=rotation)
    plot.minorticks_off()
    plot.grid(alpha=0.3)


def _draw(plot: "Axes", cells: Sequence[Row], axis: str, label: str, colour: str) -> None:
    """Draw one line and its band."""
    cells = sorted(cells, key=lambda cell: float(cell[axis]))
    x = [float(cell[axis]) for cell in cells]
    plot.plot(x, [cell["psnr"] for cell in cells], color=colour, marker="o", label=label)
    ends = [
        drawn_interval(cell.get("num_clients"), cell["psnr_ci_low"], cell["psnr_ci_high"])
        for cell in cells
    ]
    if all(None not in end for end in ends):
        low, high = zip(*ends, strict=True)
        plot.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)


def _draw_controls(plot: "Axes", cells: Sequence[Row], axis: str) -> None:
    """Draw the null controls of the cells."""
    for name, dashes in _CONTROLS.items():
        known = [cell for cell in cells if cell.get(f"null_{name}") is not None]
        known.sort(key=lambda cell: float(cell[axis]))
        if known:
            x = [float(cell[axis]) for cell in known]
            null = [cell[f"null_{name}"] for cell in known]
            plot.plot(x, null, color="0.4", linestyle=dashes, label=NULLS[name])


def _is_numeric(rows: Sequence[Mapping[str, Any]], name: str) -> bool:
    values = [row[name] for row in rows]
    return all(map(_is_number, values)) and len(set(values)) > 1


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _words(name: str, value: Any) -> str:
    return f"{name} {value:g}" if _is_number(value) else str(value)


def _actual_epsilons(rows: Sequence[Mapping[str, Any]], axis: str) -> dict[float, float]:
    """Return the actual epsilon at every value of the axis; empty where that is not all it is."""
    found: dict[float, set[float]] = {}
    for row in rows:
        if row.get("epsilon_actual") is None:
            return {}
        found.setdefault(float(row[axis]), set()).add(float(f"{row['epsilon_actual']:.6g}"))
    if any(len(values) > 1 for values in found.values()) or len(
        {next(iter(values)) for values in found.values()}
    ) < len(found):
        return {}
    return {value: next(iter(values)) for value, values in found.items()}
