"""The figure of a sweep, as a picture for papers: leakage along an axis."""

import io
import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lightning_recon.files import write_atomically
from lightning_recon.report.charts import MAX_SERIES
from lightning_recon.report.figures import NULLS, drawn_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_LINES = 12

_COLUMNS = 3  # of panels
_NARROW = 5.0  # inches up to which there are two
_CONTROLS = {"mean_image": "--", "noise_only": ":"}
"""Null controls that are drawn, and their dashes."""

Row = Mapping[str, Any]


class _Line(NamedTuple):
    """The cells of one setting, along the axis."""

    label: str
    colour: str
    cells: Sequence[Row]


def write_sweep_figure(path: Path, rows: Sequence[Row], axes: Sequence[str]) -> Path | None:
    """Draw :func:`sweep_figure` along the first numeric axis, as a PNG.

    Args:
        path: of the PNG to write.
        rows: the cells of ``results.csv``, in the order of the sweep's file.
        axes: names of the columns that tell the cells apart.

    Returns:
        The path; None where no axis is numeric, there are more than :data:`MAX_LINES` lines, or
        matplotlib is not installed.
    """
    axis = next((name for name in axes if is_numeric(rows, name)), None)
    if axis is None or find_spec("matplotlib") is None:
        return None
    others = [name for name in axes if name != axis]
    if len(_settings(rows, others)) > MAX_LINES:
        return None
    figure = sweep_figure(rows, axis, others)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    write_atomically(path, buffer.getvalue())
    return path


def sweep_figure(
    rows: Sequence[Row],
    axis: str,
    others: Sequence[str],
    panels: str | None = None,
    width: float | None = None,
) -> "Figure":
    """Draw PSNR over all images against a numeric axis, a line for each other setting.

    Bands are the 95 % intervals of the mean, where there are enough clients; broken lines are null
    controls.  More than :data:`~lightning_recon.report.charts.MAX_SERIES` lines are drawn in panels
    with common axes.  Where there are none, and the axis fixes the actual epsilon of one update,
    the upper scale tells it.  Lines have the order and so the colours of the rows.

    Args:
        rows: the cells of ``results.csv``, in the order of the sweep's file.
        axis: name of the column to draw along.
        others: those that tell the lines apart.
        panels: one of these, which gets a panel for each of its values.
        width: of the figure in inches; by default 7, with panels 9.
    """
    within = [name for name in others if name != panels]
    lines = [
        _Line(
            ", ".join(_words(name, cells[0][name]) for name in within) or "attack", f"C{i}", cells
        )
        for i, cells in enumerate(_settings(rows, within).values())
    ]
    if panels is not None:
        values = list(dict.fromkeys(row[panels] for row in rows))
        drawn = {
            _words(panels, value): [
                line._replace(cells=[cell for cell in line.cells if cell[panels] == value])
                for line in lines
            ]
            for value in values
        }
    elif len(lines) > MAX_SERIES:
        drawn = {line.label: [line] for line in lines}
    else:
        drawn = {"": lines}
    figure = _drawn(drawn, axis, width)
    x = sorted({float(row[axis]) for row in rows})
    for plot in figure.axes:
        _scale(plot, x)
    epsilons = {} if panels or "" not in drawn else _actual_epsilons(rows, axis)
    if epsilons:
        upper = figure.axes[0].secondary_xaxis("top")
        upper.set_xticks(x, [f"{epsilons[value]:.2g}" for value in x])
        upper.minorticks_off()
        upper.set_xlabel("actual epsilon of one update, client level, delta 1e-5")
    figure.supxlabel(axis, fontsize="medium")
    figure.supylabel("PSNR over all images (dB)", fontsize="medium")
    named = {
        label: handle
        for plot in figure.axes
        for handle, label in zip(*plot.get_legend_handles_labels(), strict=True)
        if label not in drawn  # a line that its panel names
    }
    ncols = 3 if figure.get_figwidth() > _NARROW else 2
    figure.legend(named.values(), named, loc="outside upper center", ncols=ncols, fontsize="small")
    return figure


def _settings(rows: Sequence[Row], names: Sequence[str]) -> dict[tuple[str, ...], list[Row]]:
    """Return the rows by their values of some columns."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(repr(row[name]) for name in names), []).append(row)
    return found


def _drawn(drawn: Mapping[str, Sequence[_Line]], axis: str, width: float | None) -> "Figure":
    """Return a panel for each title; all have the same axes."""
    from matplotlib.figure import Figure

    if "" in drawn:
        size = width or 7.0
        figure = Figure(figsize=(size, 4.5 / 7 * size), layout="constrained")
        plots = [figure.add_subplot()]
    else:
        size = width or 9.0
        columns = min(len(drawn), _COLUMNS if size > _NARROW else 2)
        num_rows = math.ceil(len(drawn) / columns)
        height = (1.5 + 2.2 * num_rows) / 9 * max(size, 5.0)
        figure = Figure(figsize=(size, height), layout="constrained")
        grid = figure.subplots(num_rows, columns, sharex=True, sharey=True, squeeze=False)
        plots = list(grid.flat)
        for unused in plots[len(drawn) :]:
            unused.remove()
        for i, plot in enumerate(plots[: len(drawn)]):
            plot.tick_params(labelbottom=i + columns >= len(drawn))
    for plot, (title, lines) in zip(plots, drawn.items(), strict=False):
        plot.set_title(title, fontsize="medium")
        for line in lines:
            if line.cells:
                _draw(plot, line.cells, axis, line.label, line.colour)
        _draw_controls(plot, max((line.cells for line in lines), key=len), axis)
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
        drawn_interval(*map(cell.get, ("num_clients", "psnr_ci_low", "psnr_ci_high")))
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


def is_numeric(rows: Sequence[Mapping[str, Any]], name: str) -> bool:
    """Return whether a column has several values, all of them numbers."""
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
