"""The charts of a sweep: PSNR along every axis, against the privacy, and cell by cell."""

import itertools
import math
from collections.abc import Iterable, Sequence

from lightning_recon.report.charts import MAX_SERIES, Chart, Dot, Panel, along, ladder
from lightning_recon.report.drawing import Mark, Series
from lightning_recon.report.figures import CONTROLS, MIN_CLIENTS, NO_INTERVAL, NULLS, drawn_interval
from lightning_recon.report.page import (
    count,
)
from lightning_recon.report.sweep_folder import (
    Axis,
    Cell,
    value_of,
)

_MAX_PANELS = 24
_MAX_DOTS = 24
_NULLS = ("mean_image", "noise_only")  # that charts draw
_REPLICATES = "seed"  # the axis over which a line goes on: no setting, but chance


def _varying(axes: Sequence[Axis]) -> list[Axis]:
    """Return the axes along which something is set."""
    return [axis for axis in axes if len(axis.values) > 1 and axis.name != _REPLICATES]


def by_leak(cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells with a PSNR, worst leak first."""
    there = [cell for cell in cells if value_of(cell, "psnr") is not None]
    return sorted(there, key=lambda cell: value_of(cell, "psnr") or 0.0, reverse=True)


def known_mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are known; None if none is."""
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


def axis_charts(cells: Sequence[Cell], axes: Sequence[Axis]) -> tuple[list[Chart], str]:
    """Return PSNR against every numeric axis: lines by another, panels by the rest."""
    scored = [cell for cell in cells if value_of(cell, "psnr") is not None]
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
    num_clients = value_of(cell, "num_clients")
    return num_clients is not None and num_clients < MIN_CLIENTS


def _line_axis(others: Sequence[Axis]) -> Axis | None:
    """Return the axis whose values are lines of one panel: words if there are, and many."""
    few = [other for other in others if len(other.values) <= MAX_SERIES]
    return max(few, key=lambda other: (not other.is_numeric, len(other.values)), default=None)


def _cell_axis(axes: Sequence[Axis]) -> Axis | None:
    """Return the axis by whose value a single cell is drawn."""
    varying = _varying(axes)
    words = next((axis for axis in varying if not axis.is_numeric), None)
    if words is None and len(varying) == 1:  # along which there is one line
        return None
    return words or _line_axis(varying) or next(iter(varying), None)


def _axis_chart(cells: Sequence[Cell], axis: Axis, others: Sequence[Axis]) -> Chart:
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
    means = {name: known_mean(value_of(cell, f"null_{name}") for cell in cells) for name in _NULLS}
    return [
        Mark(NULLS[name], mean, CONTROLS[name]) for name, mean in means.items() if mean is not None
    ]


def _line(cells: Sequence[Cell], axis: Axis, label: str, number: int) -> Series:
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
                known_mean(value_of(cell, "psnr") for cell in here) or 0.0,
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
    return drawn_interval(*(value_of(cell, name) for name in names))


def against_privacy(cells: Sequence[Cell], axes: Sequence[Axis]) -> list[Chart]:
    """Return all cells by the epsilon that holds, or else by the noise."""
    by = _cell_axis(axes)
    for column, label in (
        ("epsilon_actual", "actual ε of one update"),
        ("noise_std", "standard deviation of the noise"),
    ):
        there = [cell for cell in by_leak(cells) if (value_of(cell, column) or 0) > 0]
        places = {value_of(cell, column) or 0.0 for cell in there}
        if len(places) < 2:
            continue
        series = []
        for value in by.values if by else [""]:
            mine = [cell for cell in there if not by or cell[by.name] == value]
            x = [value_of(cell, column) or 0.0 for cell in mine]
            y = [value_of(cell, "psnr") or 0.0 for cell in mine]
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


def ranking(cells: Sequence[Cell], axes: Sequence[Axis]) -> Chart:
    """Return the cells from the worst leak to the least, in the looks of one axis' values."""
    scored = by_leak(cells)
    varying = [axis for axis in axes if len(axis.values) > 1]
    title = "Cells, worst leak first"
    if not scored:
        return Chart(title, [("", ladder(title, [Dot("no score", 0.0)], "PSNR, dB"))])
    by = _cell_axis(axes)
    dots = [
        Dot(
            ", ".join(cell[axis.name] for axis in varying) or "the only cell",
            value_of(cell, "psnr") or 0.0,
            *_ends(cell),
            value_of(cell, "psnr_worst"),
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
