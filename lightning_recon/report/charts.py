"""Charts as inline SVG, drawn for a width of 420 units so that they can be read on a phone.

Whatever a page draws twice has a number, its place in the page's order, and the number alone
decides how it looks: its colour, from the page's style sheet (classes ``s0`` to ``s7``), so that it
follows the reader's light or dark preference, and the shape of its markers.  Below 0 are controls,
in grey.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

MAX_SERIES = 5
"""Lines that one pair of axes holds at most; more are drawn in panels."""

MAX_DOTS = 64
"""Values up to which :func:`spread` draws each of them."""

_NUM_COLOURS = 7  # of series
_CONTROL = 7  # the colour of controls, a neutral grey
_WIDTH, _HEIGHT = 420, 250
_PANEL_WIDTH, _PANEL_HEIGHT = 250, 190
_LEFT, _RIGHT, _BOTTOM = 66, 12, 42  # margins
_LINE = 17  # height of a line of text
_CHARACTER = 7  # width of one, about
_SHAPES = (
    "m-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0z",
    "m-3.2-3.2h6.4v6.4h-6.4z",
    "m0-4.4 4.2 7.2h-8.4z",
    "m0-4.5 4.5 4.5-4.5 4.5-4.5-4.5z",
)


class Mark(NamedTuple):
    """A value to compare with, drawn as a dashed line across the chart."""

    label: str
    value: float
    number: int = -1
    """Of its look; see the module."""


class Group(NamedTuple):
    """Finite values of one kind."""

    label: str
    values: Sequence[float]
    number: int = 0
    """Of its look; see the module."""


class Series(NamedTuple):
    """A line of a chart; ``low`` and ``high`` are the interval at each point, or empty."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    number: int = 0
    """Of its look; see the module."""
    is_path: bool = False
    """Whether it is a line without markers, whatever the others of the chart are."""


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
    """Of its look; see the module."""


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
    legend = [(_sample(group.number, has_point=True), group.label) for group in groups]
    return Chart(title, [("", svg)], note, legend if len(groups) > 1 else [])


def _strip(title: str, groups: Sequence[Group], x_label: str, marks: Sequence[Mark]) -> Markup:
    """Return a point for every value, lifted where it would lie on another."""
    values = sorted((value, i) for i, group in enumerate(groups) for value in group.values)
    x = _Axis(
        [*(value for value, _ in values), *(mark.value for mark in marks)], _LEFT, _WIDTH - _RIGHT
    )
    size = 9  # of a point, and some room
    ends: list[float] = []  # place of the last point of each row
    rows = []
    for value, _ in values:
        row = next((i for i, end in enumerate(ends) if end + size <= x(value)), len(ends))
        ends[row:] = [x(value), *ends[row + 1 :]]
        rows.append(row)
    step = min(size, 150 / max(1, len(ends)))
    top = _room(marks)
    bottom = top + max(60, step * len(ends)) + 8
    parts = [_rightwards(x, x_label, bottom), _upright(marks, x, bottom)]
    for (value, i), row in zip(values, rows, strict=True):
        words = f"{groups[i].label}: {value:.1f}"
        parts.append(_point(x(value), bottom - 7 - step * row, groups[i].number, words))
    return _svg(title, parts, bottom + _BOTTOM)


def _bars(title: str, groups: Sequence[Group], x_label: str, marks: Sequence[Mark]) -> Markup:
    """Return stacked bars of how many values fall where."""
    values = [value for group in groups for value in group.values]
    top = _room(marks)
    bottom = _HEIGHT + top - _BOTTOM
    x = _Axis([*values, *(mark.value for mark in marks)], _LEFT, _WIDTH - _RIGHT)
    num_bins = min(40, max(10, round(2 * len(values) ** 0.5)))
    width = (x.high - x.low) / num_bins
    counts = [[0] * num_bins for _ in groups]
    for count, group in zip(counts, groups, strict=True):
        for value in group.values:
            count[min(num_bins - 1, int((value - x.low) / width))] += 1
    y = _Axis([0, max(4, *(sum(bars) for bars in zip(*counts, strict=True)))], bottom, top + 8)
    parts = [_upwards(y, "images"), _rightwards(x, x_label, bottom)]
    for i in range(num_bins):
        below, left, right = 0, x.low + i * width, x.low + (i + 1) * width
        for group, count in zip(groups, counts, strict=True):
            if count[i]:
                words = f"{_short(left)} to {_short(right)}: {count[i]} {group.label}"
                box = (x(left), y(below + count[i]), x(right) - x(left) - 0.6)
                height = y(below) - y(below + count[i])
                parts.append(
                    Markup(
                        '<rect class="s{}" x="{}" y="{}" width="{:.1f}" height="{:.1f}">'
                        "<title>{}</title></rect>"
                    ).format(_colour(group.number), *box, height, words)
                )
                below += count[i]
    parts.append(_upright(marks, x, bottom))
    return _svg(title, parts, _HEIGHT + top)


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
            legend.append((_sample(number, **looks), named[number]))
    for mark in dict.fromkeys(mark._replace(value=0.0) for panel in panels for mark in panel.marks):
        words = mark.label
        if len(split) == 1:  # else it may be another in each panel
            words += "".join(f" {_short(m.value)}" for m in split[0].marks if m.label == mark.label)
        legend.append((_sample(mark.number, is_mark=True), words))
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
    width, height = (_WIDTH, _HEIGHT) if is_alone else (_PANEL_WIDTH, _PANEL_HEIGHT)
    bottom = height - _BOTTOM
    places = sorted({value for one in all_series for value in one.x})
    heights = [value for one in all_series for value in (*one.y, *one.low, *one.high)]
    x = _Axis(places, _LEFT, width - _RIGHT, is_log=is_x_log)
    y = _Axis([*heights, *marks], bottom, 12, is_log=is_y_log)
    at = places if has_points and len(places) <= 10 else None
    parts = [_upwards(y, y_label, width - _RIGHT), _rightwards(x, x_label, bottom, at)]
    parts += [
        (_band if is_joined and len(one.x) > 1 else _whiskers)(one, x, y) for one in panel.series
    ]
    for mark in panel.marks:
        line = Markup('<path class="mark {}" d="M{} {}H{}"><title>{} {}</title></path>')
        ends = _LEFT, y(mark.value), x.stop
        parts.append(line.format(_dashes(mark.number), *ends, mark.label, _short(mark.value)))
    for one in panel.series:
        points = list(zip(one.x, one.y, strict=True))
        if is_joined or one.is_path:
            path = " ".join(f"{x(a)},{y(b)}" for a, b in points)
            kind = "line" if has_points else "line thin"
            line = Markup('<polyline class="{} {}" points="{}"><title>{}</title></polyline>')
            parts.append(line.format(kind, _classes(one.number), path, one.label))
        if has_points and not one.is_path:
            parts += [
                _point(x(a), y(b), one.number, f"{one.label}: {_short(b)} at {_short(a)}")
                for a, b in points
            ]
    return _svg(title, parts, height, width)


def ladder(title: str, dots: Sequence[Dot], x_label: str, marks: Sequence[Mark] = ()) -> Markup:
    """Return estimates one below the other, each with its interval and its worst case.

    Args:
        title: for those who do not see the chart.
        dots: from top to bottom; at least one.
        x_label: what the values are.
        marks: values to compare with.
    """
    spacing, top = 38, _room(marks)
    bottom = top + spacing * len(dots) + 8
    values = [v for d in dots for v in (d.value, d.low, d.high, d.worst) if v is not None]
    x = _Axis([*values, *(mark.value for mark in marks)], 14, _WIDTH - 20)
    parts = [_rightwards(x, x_label, bottom, top=top), _upright(marks, x, bottom)]
    for i, dot in enumerate(dots):
        y = top + spacing * i + 29
        colour = _colour(dot.number)
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
        parts.append(_point(x(dot.value), y, dot.number, f"{dot.label}: {words}"))
        parts.append(
            Markup(
                '<text class="halo" x="18" y="{}">{} <tspan class="soft">{}</tspan></text>'
            ).format(y - 11, _cut(dot.label, max(20, 55 - len(words))), words)
        )
    return _svg(title, parts, bottom + _BOTTOM)


class _Axis:
    """Maps values to places between ``start`` and ``stop``, linearly or by their logarithm."""

    def __init__(
        self, values: Sequence[float], start: float, stop: float, *, is_log: bool = False
    ) -> None:
        self.is_log, self.start, self.stop = is_log, start, stop
        values = values or [1.0]  # of runs that have no finite score, an empty chart
        low, high = (math.log10(v) if is_log else v for v in (min(values), max(values)))
        if high - low < 1e-9:
            low, high = low - 0.5, high + 0.5
        self._step = _nice((high - low) / 5)
        if is_log:
            margin = 0.04 * (high - low)
            self.low, self.high = low - margin, high + margin
        else:
            self.low = math.floor(low / self._step + 1e-6) * self._step
            self.high = math.ceil(high / self._step - 1e-6) * self._step

    def __call__(self, value: float) -> float:
        value = math.log10(value) if self.is_log else value
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.stop - self.start), 1)

    @property
    def ticks(self) -> list[float]:
        """The values to label."""
        if not self.is_log:
            count = round((self.high - self.low) / self._step)
            return [self.low + i * self._step for i in range(count + 1)]
        span = self.high - self.low
        digits, every = (1, 2, 5) if span < 3.2 else (1,), max(1, math.ceil(span / 6))
        powers = range(math.floor(self.low), math.ceil(self.high) + 1)
        values = [d * 10.0**p for p in powers if p % every == 0 for d in digits]
        inside = [value for value in values if self.low <= math.log10(value) <= self.high]
        return inside if len(inside) > 1 else [10**self.low, 10**self.high]


def _nice(step: float) -> float:
    """Return the smallest of 1, 2, 5 times a power of ten that is at least the step."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(d * power for d in (1, 2, 5, 10) if d * power >= step * (1 - 1e-9))


def _short(value: float) -> str:
    """Return a number in few characters: 0.002, 25, 5e7."""
    if value == round(value) and abs(value) < 1e5:
        return f"{value:.0f}"
    text = f"{0.0 if abs(value) < 1e-12 else value:.3g}"
    mantissa, _, exponent = text.partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else text


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _upwards(y: _Axis, label: str, right: float = _WIDTH - _RIGHT) -> Markup:
    """Return the vertical axis: grid lines up to ``right``, labels, and its name."""
    ticks = [
        Markup(
            '<path class="grid" d="M{} {}H{}"/><text class="end" x="{}" y="{}">{}</text>'
        ).format(_LEFT, y(value), right, _LEFT - 6, y(value) + 4, _short(value))
        for value in y.ticks
    ]
    middle = (y.start + y.stop) / 2
    name = Markup('<text class="soft middle" transform="translate(12 {}) rotate(-90)">{}</text>')
    return Markup("").join([*ticks, name.format(middle, label)])


def _rightwards(
    x: _Axis, label: str, bottom: float, at: Sequence[float] | None = None, top: float | None = None
) -> Markup:
    """Return the horizontal axis; ``top`` asks for grid lines up to there."""
    parts = [Markup('<path class="axis" d="M{} {}H{}"/>').format(x.start, bottom, x.stop)]
    last = -math.inf
    for value in x.ticks if at is None else at:
        place = x(value)
        half = (_CHARACTER * len(_short(value)) + 9) / 2
        if top is not None:
            parts.append(Markup('<path class="grid" d="M{} {}V{}"/>').format(place, top, bottom))
        if place - half >= last:  # no label over its neighbour
            text = Markup('<text class="middle" x="{}" y="{}">{}</text>')
            parts.append(text.format(place, bottom + 16, _short(value)))
            last = place + half
    name = Markup('<text class="soft middle" x="{}" y="{}">{}</text>')
    parts.append(name.format((x.start + x.stop) / 2, bottom + 34, label))
    return Markup("").join(parts)


def _room(marks: Sequence[Mark]) -> int:
    """Return the height of the labels of upright marks."""
    return _LINE * len(marks) + (6 if marks else 0)


def _upright(marks: Sequence[Mark], x: _Axis, bottom: float) -> Markup:
    """Return vertical marks, each label in a line of its own, clear of the marks on its side."""
    middle = 0.55 * _WIDTH
    left = sorted((mark for mark in marks if x(mark.value) <= middle), key=lambda mark: mark.value)
    right = sorted((mark for mark in marks if x(mark.value) > middle), key=lambda mark: -mark.value)
    parts = []
    for i, mark in enumerate([*left, *right]):  # a mark begins beside its label
        place, y = x(mark.value), 12 + _LINE * i
        is_right = place > middle
        parts.append(
            Markup(
                '<path class="mark {}" d="M{} {}V{}"/>'
                '<text class="halo{}" x="{}" y="{}">{} {}</text>'
            ).format(
                _dashes(mark.number),
                *(place, y - 9, bottom, " end" if is_right else ""),
                *(place + (-5 if is_right else 5), y, mark.label, _short(mark.value)),
            )
        )
    return Markup("").join(parts)


def _band(one: Series, x: _Axis, y: _Axis) -> Markup:
    """Return the band of a line, nothing where it has none."""
    upper = [f"{x(a)},{y(b)}" for a, b in zip(one.x, one.high, strict=False)]
    lower = [f"{x(a)},{y(b)}" for a, b in zip(one.x, one.low, strict=False)]
    band = Markup('<polygon class="band s{}" points="{}"/>')
    return band.format(_colour(one.number), " ".join([*upper, *reversed(lower)]))


def _whiskers(one: Series, x: _Axis, y: _Axis) -> Markup:
    """Return the intervals of single points."""
    whisker = Markup('<path class="whisker s{}" d="M{} {}V{}"/>')
    ends = zip(one.x, one.low, one.high, strict=False)
    colour = _colour(one.number)
    return Markup("").join(whisker.format(colour, x(a), y(b), y(c)) for a, b, c in ends)


def _point(x: float, y: float, number: int, words: str) -> Markup:
    """Return a marker, with words to show under the pointer."""
    marker = Markup('<path class="point s{}" d="M{} {:.1f}{}"><title>{}</title></path>')
    return marker.format(_colour(number), x, y, _shape(number), words)


def _colour(number: int) -> int:
    """Return the colour of a number; with the shape it is one of 28 looks."""
    return number % _NUM_COLOURS if number >= 0 else _CONTROL


def _shape(number: int) -> str:
    return _SHAPES[abs(number) % len(_SHAPES)]


def _classes(number: int) -> str:
    """Return the classes of a line; those of controls differ in their dashes."""
    return f"s{_colour(number)} {_dashes(number)}".strip()


def _dashes(number: int) -> str:
    return f"d{-number % 5}" if number < 0 else ""


def _sample(
    number: int, *, has_point: bool = False, has_line: bool = False, is_mark: bool = False
) -> Markup:
    """Return what a legend shows of a number."""
    classes = f"mark {_dashes(number)}" if is_mark else f"line {_classes(number)}"
    line = Markup('<path class="{}" d="M0 6H22"/>').format(classes)
    point = Markup('<path class="point s{}" d="M11 6{}"/>').format(_colour(number), _shape(number))
    frame = Markup('<svg viewBox="0 0 22 12" aria-hidden="true">{}{}</svg>')
    return frame.format(line if has_line or is_mark else "", point if has_point else "")


def _svg(title: str, parts: Sequence[Markup], height: float, width: float = _WIDTH) -> Markup:
    frame = Markup('<svg viewBox="0 0 {} {:g}" role="img" aria-label="{}">{}</svg>')
    return frame.format(width, height, title, Markup("").join(parts))
