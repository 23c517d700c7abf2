"""The figure of a sweep, as a picture for papers: leakage along an axis."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lightning_recon.files import write_atomically

MAX_LINES = 12


def write_sweep_figure(
    path: Path, rows: Sequence[Mapping[str, Any]], axes: Sequence[str]
) -> Path | None:
    """Draw PSNR over all images against the first numeric axis, a line for each other setting.

    Bands are the 95 % intervals of the mean, the dashed line is the mean image.  Where the axis
    fixes the actual epsilon of one update, the upper scale tells it.

    Args:
        path: of the PNG to write.
        rows: the cells of ``results.csv``.
        axes: names of the columns that tell the cells apart.

    Returns:
        The path; None where no axis is numeric or there are more than :data:`MAX_LINES` lines.
    """
    axis = next((name for name in axes if _is_numeric(rows, name)), None)
    if axis is None:
        return None
    others = [name for name in axes if name != axis]
    lines: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: float(row[axis])):
        lines.setdefault(tuple(repr(row[name]) for name in others), []).append(row)
    if len(lines) > MAX_LINES:
        return None

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    plot = figure.add_subplot()
    for cells in lines.values():
        x = [float(cell[axis]) for cell in cells]
        label = ", ".join(_words(name, cells[0][name]) for name in others)
        (line,) = plot.plot(
            x, [cell["psnr"] for cell in cells], marker="o", label=label or "attack"
        )
        if all(cell["psnr_ci_low"] is not None for cell in cells):
            low, high = ([cell[f"psnr_ci_{end}"] for cell in cells] for end in ("low", "high"))
            plot.fill_between(x, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    cells = max(lines.values(), key=len)
    null = [cell["null_mean_image"] for cell in cells]
    x = [float(cell[axis]) for cell in cells]
    plot.plot(x, null, color="0.4", linestyle="--", label="mean image")
    if min(x) > 0 and max(x) / min(x) >= 8:
        plot.set_xscale("log")
    plot.set_xticks(x, [f"{value:g}" for value in x], minor=False)
    plot.minorticks_off()
    plot.set(xlabel=axis, ylabel="PSNR over all images (dB)")
    plot.grid(alpha=0.3)
    plot.legend(fontsize="small")
    epsilons = _actual_epsilons(rows, axis)
    if epsilons:
        upper = plot.secondary_xaxis("top")
        upper.set_xticks(x, [f"{epsilons[value]:.2g}" for value in x])
        upper.minorticks_off()
        upper.set_xlabel("actual epsilon of one update, client level, delta 1e-5")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    write_atomically(path, buffer.getvalue())
    return path


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
