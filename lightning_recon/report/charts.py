"""Charts as inline SVG, drawn for a width of 420 units so that they can be read on a phone."""

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from lightning_recon.report.drawing import (
    LEFT,
    RIGHT,
    WIDTH,
    Axis,
    Mark,
    Series,
    band_of,
    classes_of,
    colour_of,
    cut,
    dashes_of,
    drawing,
    horizontal_axis,
    point_at,
    room_of,
    sample_of,
    short,
    upright,
    vertical_axis,
    whiskers_of,
)

MAX_SERIES = 5
"""Lines that one pair of axes holds at most; more are drawn in panels."""

MAX_DOTS = 64
"""Values up to which :func:`spread` draws each of them."""

_HEIGHT = 250
_PANEL_WIDTH, _PANEL_HEIGHT = 250, 190
_BOTTOM = 42  # margin


class Group(NamedTuple):
    """Finite values of one kind."""

    label: str
    values: Sequence[float]
    number: int = 0
    """Of its look; see :mod:`.drawing`."""


class Panel(NamedTuple):
    """Series over one pair of axes, and the levels to compare them with, named in the legend."""

    label: str
    series: Sequence[Series]
    marks: Sequence[Mark] = ()


class Dot(NamedTuple):
    """A line of a :func:`ladder`: an estimate, its interval, and the worst case."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    worst: float | None = None
    number: int = 0
    """Of its look; see :mod:`.drawing`."""


class Chart(NamedTuple):
    """A drawing with the words around it."""

    title: str
    drawings: Sequence[tuple[str, Markup]]
    """Name and SVG of each panel; a chart without panels is one drawing without a name."""
    note: str = ""
    legend: Sequence[tuple[Markup, str]] = ()
    """What each look stands for, in the page's order: a sample, and its name."""


def spread(
    title: str,
    groups: Sequence[Group],
    x_label: str,
    marks: Sequence[Mark] = (),
    note: str = "",
) -> Chart:
    """Return where values fall: a point for each where they are few, else stacked bars.

    Args:
        title: of the chart.
        groups: stacked from the first upwards; at least one value or mark in all.
        x_label: what the values are.
        marks: values to compare with.
        note: put below.
    """
    num_values = sum(len(group.values) for group in groups)
    if num_values > MAX_DOTS:
        svg = _bars(title, groups, x_label, marks)
    else:
        svg = _strip(title, groups, x_label, marks)
        note = f"A point for every image. {note}".strip()
    legend = [(sample_of(group.number, has_point=True), group.label) for group in groups]
    return Chart(title, [("", svg)], note, legend if len(groups) > 1 else [])


def _strip(title: str, groups: Sequence[Group], x_label: str, marks: Sequence[Mark]) -> Markup:
    """Return a point for every value, lifted where it would lie on another."""
    values = sorted((value, i) for i, group in enumerate(groups) for value in group.values)
    x = Axis(
        [*(value for value, _ in values), *(mark.value for mark in marks)], LEFT, WIDTH - RIGHT
    )
    size = 9  # of a point, and some room
    ends: list[float] = []  # place of the last point of each row
    rows = []
    for value, _ in values:
        row = next((i for i, end in enumerate(ends) if end + size <= x(value)), len(ends))
        ends[row:] = [x(value), *ends[row + 1 :]]
        rows.append(row)
    step = min(size, 150 / max(1, len(ends)))
    top = room_of(marks)
    bottom = top + max(60, step * len(ends)) + 8
    parts = [horizontal_axis(x, x_label, bottom), upright(marks, x, bottom)]
    for (value, i), row in zip(values, rows, strict=True):
        words = f"{groups[i].label}: {value:.1f}"
        parts.append(point_at(x(value), bottom - 7 - step * row, groups[i].number, words))
    return drawing(title, parts, bottom + _BOTTOM)


def _bars(title: str, groups: Sequence[Group], x_label: str, marks: Sequence[Mark]) -> Markup:
    """Return stacked bars of how many values fall where."""
    values = [value for group in groups for value in group.values]
    top = room_of(marks)
    bottom = _HEIGHT + top - _BOTTOM
    x = Axis([*values, *(mark.value for mark in marks)], LEFT, WIDTH - RIGHT)
    num_bins = min(40, max(10, round(2 * len(values) ** 0.5)))
    width = (x.high - x.low) / num_bins
    counts = [[0] * num_bins for _ in groups]
    for count, group in zip(counts, groups, strict=True):
        for value in group.values:
            count[min(num_bins - 1, int((value - x.low) / width))] += 1
    y = Axis([0, max(4, *(sum(bars) for bars in zip(*counts, strict=True)))], bottom, top + 8)
    parts = [vertical_axis(y, "images"), horizontal_axis(x, x_label, bottom)]
    for i in range(num_bins):
        below, left, right = 0, x.low + i * width, x.low + (i + 1) * width
        for group, count in zip(groups, counts, strict=True):
            if count[i]:
                words = f"{short(left)} to {short(right)}: {count[i]} {group.label}"
                box = (x(left), y(below + count[i]), x(right) - x(left) - 0.6)
                height = y(below) - y(below + count[i])
                parts.append(
                    Markup(
                        '<rect class="s{}" x="{}" y="{}" width="{:.1f}" height="{:.1f}">'
                        "<title>{}</title></rect>"
                    ).format(colour_of(group.number), *box, height, words)
                )
                below += count[i]
    parts.append(upright(marks, x, bottom))
    return drawing(title, parts, _HEIGHT + top)


def along(
    title: str,
    panels: Sequence[Panel],
    x_label: str,
    y_label: str,
    *,
    note: str = "",
    is_x_log: bool = False,
    is_y_log: bool = False,
    has_points: bool = False,
    is_joined: bool = True,
) -> Chart:
    """Return lines, or points alone, over common axes: side by side where there are panels.

    Args:
        title: of the chart.
        panels: at least one point in all; places are finite, and positive on a logarithmic axis.
            All have the same axes.  Where series are joined, a panel with more than
            :data:`MAX_SERIES` of them becomes one for each.
        x_label: what runs to the right.
        y_label: what runs upwards.
        note: put below.
        is_x_log: whether the horizontal axis is logarithmic.
        is_y_log: whether the vertical axis is.
        has_points: whether every point has a marker and, where there are few, its place a tick;
            without, the lines are thin.
        is_joined: whether the points of a series are joined by its line; where they are not, what
            would be its band are their whiskers.
    """
    split = []
    for panel in panels:
        if is_joined and len(panel.series) > MAX_SERIES:
            split += [
                Panel(", ".join(filter(None, (panel.label, one.label))), [one], panel.marks)
                for one in panel.series
            ]
        else:
            split.append(panel)
    drawings = []
    for panel in split:
        svg = _lines(
            f"{title}, {panel.label}" if panel.label else title,
            panel,
            split,
            x_label,
            y_label,
            is_x_log=is_x_log,
            is_y_log=is_y_log,
            has_points=has_points,
            is_joined=is_joined,
        )
        drawings.append((panel.label, svg))
    legend = []  # of what the panels do not name themselves
    if not all(one.label in panel.label for panel in split for one in panel.series):
        named = {one.number: one.label for panel in panels for one in panel.series}
        paths = {one.number for panel in panels for one in panel.series if one.is_path}
        numbers = sorted(named, key=lambda number: (number < 0, abs(number)))
        for number in numbers:
            is_path = number in paths
            looks = {"has_point": has_points and not is_path, "has_line": is_joined or is_path}
            legend.append((sample_of(number, **looks), named[number]))
    for mark in dict.fromkeys(mark._replace(value=0.0) for panel in panels for mark in panel.marks):
        words = mark.label
        if len(split) == 1:  # else it may be another in each panel
            words += "".join(f" {short(m.value)}" for m in split[0].marks if m.label == mark.label)
        legend.append((sample_of(mark.number, is_mark=True), words))
    return Chart(title, drawings, note, legend)


def _lines(
    title: str,
    panel: Panel,
    panels: Sequence[Panel],
    x_label: str,
    y_label: str,
    *,
    is_x_log: bool,
    is_y_log: bool,
    has_points: bool,
    is_joined: bool,
) -> Markup:
    """Return one of the panels, over axes that hold all of them."""
    all_series = [one for other in panels for one in other.series]
    marks = [mark.value for other in panels for mark in other.marks]
    is_alone = len(panels) == 1
    width, height = (WIDTH, _HEIGHT) if is_alone else (_PANEL_WIDTH, _PANEL_HEIGHT)
    bottom = height - _BOTTOM
    places = sorted({value for one in all_series for value in one.x})
    heights = [value for one in all_series for value in (*one.y, *one.low, *one.high)]
    x = Axis(places, LEFT, width - RIGHT, is_log=is_x_log)
    y = Axis([*heights, *marks], bottom, 12, is_log=is_y_log)
    at = places if has_points and len(places) <= 10 else None
    parts = [vertical_axis(y, y_label, width - RIGHT), horizontal_axis(x, x_label, bottom, at)]
    parts += [
        band_of(one, x, y) if is_joined and len(one.x) > 1 else whiskers_of(one, x, y)
        for one in panel.series
    ]
    for mark in panel.marks:
        line = Markup('<path class="mark {}" d="M{} {}H{}"><title>{} {}</title></path>')
        ends = LEFT, y(mark.value), x.stop
        parts.append(line.format(dashes_of(mark.number), *ends, mark.label, short(mark.value)))
    for one in panel.series:
        points = list(zip(one.x, one.y, strict=True))
        if is_joined or one.is_path:
            path = " ".join(f"{x(a)},{y(b)}" for a, b in points)
            kind = "line" if has_points else "line thin"
            line = Markup('<polyline class="{} {}" points="{}"><title>{}</title></polyline>')
            parts.append(line.format(kind, classes_of(one.number), path, one.label))
        if has_points and not one.is_path:
            parts += [
                point_at(x(a), y(b), one.number, f"{one.label}: {short(b)} at {short(a)}")
                for a, b in points
            ]
    return drawing(title, parts, height, width)


def ladder(title: str, dots: Sequence[Dot], x_label: str, marks: Sequence[Mark] = ()) -> Markup:
    """Return estimates one below the other, each with its interval and its worst case.

    Args:
        title: for those who do not see the chart.
        dots: from top to bottom; at least one.
        x_label: what the values are.
        marks: values to compare with.
    """
    spacing, top = 38, room_of(marks)
    bottom = top + spacing * len(dots) + 8
    values = [v for d in dots for v in (d.value, d.low, d.high, d.worst) if v is not None]
    x = Axis([*values, *(mark.value for mark in marks)], 14, WIDTH - 20)
    parts = [horizontal_axis(x, x_label, bottom, top=top), upright(marks, x, bottom)]
    for i, dot in enumerate(dots):
        y = top + spacing * i + 29
        colour = colour_of(dot.number)
        words = f"{dot.value:.1f}"
        if dot.worst is not None:
            parts.append(
                Markup('<path class="tail s{}" d="M{} {}H{}m0-5v10"/>').format(
                    colour, x(dot.value), y, x(dot.worst)
                )
            )
        if dot.low is not None and dot.high is not None:
            words += f" ({dot.low:.1f} to {dot.high:.1f})"
            parts.append(
                Markup('<path class="whisker s{}" d="M{} {}H{}"/>').format(
                    colour, x(dot.low), y, x(dot.high)
                )
            )
        if dot.worst is not None:
            words += f", worst {dot.worst:.1f}"
        parts.append(point_at(x(dot.value), y, dot.number, f"{dot.label}: {words}"))
        parts.append(
            Markup(
                '<text class="halo" x="18" y="{}">{} <tspan class="soft">{}</tspan></text>'
            ).format(y - 11, cut(dot.label, max(20, 55 - len(words))), words)
        )
    return drawing(title, parts, bottom + _BOTTOM)
