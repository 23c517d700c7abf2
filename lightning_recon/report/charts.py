"""Charts as inline SVG, drawn for a width of 420 units so that they can be read on a phone.

Colours come from the page's style sheet (classes ``s0`` to ``s7``), so that they follow the
reader's light or dark preference; series differ in the shape of their markers, too.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

NUM_COLOURS = 8
"""Of series; the last one is a neutral grey, for controls."""

MAX_LINES = NUM_COLOURS - 1
"""Series that a chart can tell apart."""

_WIDTH, _HEIGHT = 420, 250
_LEFT, _RIGHT, _BOTTOM = 50, 12, 42  # margins
_LINE = 15  # height of a line of text
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


class Series(NamedTuple):
    """A line of a chart; ``low`` and ``high`` are the interval at each point, or empty."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


class Dot(NamedTuple):
    """A line of a :func:`ladder`: an estimate, its interval, and the worst case."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    worst: float | None = None
    is_control: bool = False


class Chart(NamedTuple):
    """A drawing with the words around it."""

    title: str
    svg: Markup
    note: str = ""
    legend: Sequence[str] = ()
    """What each colour stands for, in the order of the series."""


def histogram(
    title: str,
    groups: Sequence[tuple[str, Sequence[float]]],
    x_label: str,
    marks: Sequence[Mark] = (),
) -> Markup:
    """Return stacked bars of how many values fall where.

    Args:
        title: for those who do not see the chart.
        groups: name and finite values of each group, stacked from the first upwards; at least one
            value in all.
        x_label: what the values are.
        marks: values to compare with.
    """
    values = [value for _, group in groups for value in group]
    top = _room(marks)
    bottom = _HEIGHT + top - _BOTTOM
    x = _Axis([*values, *(mark.value for mark in marks)], _LEFT, _WIDTH - _RIGHT)
    num_bins = min(40, max(10, round(2 * len(values) ** 0.5)))
    width = (x.high - x.low) / num_bins
    counts = [[0] * num_bins for _ in groups]
    for count, (_, group) in zip(counts, groups, strict=True):
        for value in group:
            count[min(num_bins - 1, int((value - x.low) / width))] += 1
    y = _Axis([0, max(4, *(sum(bars) for bars in zip(*counts, strict=True)))], bottom, top + 8)
    parts = [_upwards(y, "images"), _rightwards(x, x_label, bottom)]
    for i in range(num_bins):
        below, left, right = 0, x.low + i * width, x.low + (i + 1) * width
        for colour, ((name, _), count) in enumerate(zip(groups, counts, strict=True)):
            if count[i]:
                words = f"{_short(left)} to {_short(right)}: {count[i]} {name}"
                box = (x(left), y(below + count[i]), x(right) - x(left) - 0.6)
                height = y(below) - y(below + count[i])
                parts.append(
                    Markup(
                        '<rect class="s{}" x="{}" y="{}" width="{:.1f}" height="{:.1f}">'
                        "<title>{}</title></rect>"
                    ).format(colour, *box, height, words)
                )
                below += count[i]
    parts.append(_upright(marks, x, bottom))
    return _svg(title, parts, _HEIGHT + top)


def lines(
    title: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    *,
    marks: Sequence[Mark] = (),
    is_x_log: bool = False,
    is_y_log: bool = False,
    has_points: bool = False,
    is_joined: bool = True,
) -> Markup:
    """Return lines, or points alone, over a common axis.

    Args:
        title: for those who do not see the chart.
        series: at least one point in all; places are finite, and positive on a logarithmic axis.
        x_label: what runs to the right.
        y_label: what runs upwards.
        marks: levels to compare with.
        is_x_log: whether the horizontal axis is logarithmic.
        is_y_log: whether the vertical axis is.
        has_points: whether every point has a marker and, where there are few, its place a tick;
            without, the lines are thin.
        is_joined: whether the points of a series are joined by its line; where they are not, what
            would be its band are their whiskers.
    """
    bottom = _HEIGHT - _BOTTOM
    places = sorted({value for one in series for value in one.x})
    heights = [value for one in series for value in (*one.y, *one.low, *one.high)]
    x = _Axis(places, _LEFT, _WIDTH - _RIGHT, is_log=is_x_log)
    y = _Axis([*heights, *(mark.value for mark in marks)], bottom, 12, is_log=is_y_log)
    at = places if has_points and len(places) <= 10 else None
    parts = [_upwards(y, y_label), _rightwards(x, x_label, bottom, at)]
    for number, one in enumerate(series):
        spread = _band if is_joined and len(one.x) > 1 else _whiskers
        parts.append(spread(one, x, y, number % NUM_COLOURS))
    parts.append(_across(marks, y))
    for number, one in enumerate(series):
        colour = number % NUM_COLOURS
        points = list(zip(one.x, one.y, strict=True))
        if is_joined:
            path = " ".join(f"{x(a)},{y(b)}" for a, b in points)
            kind = "line" if has_points else "line thin"
            line = Markup('<polyline class="{} s{}" points="{}"><title>{}</title></polyline>')
            parts.append(line.format(kind, colour, path, one.label))
        if has_points:
            parts += [
                _point(x(a), y(b), colour, f"{one.label}: {_short(b)} at {_short(a)}")
                for a, b in points
            ]
    return _svg(title, parts, _HEIGHT)


def ladder(title: str, dots: Sequence[Dot], x_label: str, marks: Sequence[Mark] = ()) -> Markup:
    """Return estimates one below the other, each with its interval and its worst case.

    Args:
        title: for those who do not see the chart.
        dots: from top to bottom; at least one.  More than there are colours have one colour.
        x_label: what the values are.
        marks: values to compare with.
    """
    spacing, top = 38, _room(marks)
    bottom = top + spacing * len(dots) + 8
    values = [v for d in dots for v in (d.value, d.low, d.high, d.worst) if v is not None]
    x = _Axis([*values, *(mark.value for mark in marks)], 14, _WIDTH - 20)
    parts = [_rightwards(x, x_label, bottom, top=top), _upright(marks, x, bottom)]
    colour = 0
    for i, dot in enumerate(dots):
        y = top + spacing * i + 29
        kind = NUM_COLOURS - 1 if dot.is_control else colour
        colour += not dot.is_control and len(dots) <= MAX_LINES
        words = f"{dot.value:.1f}"
        if dot.worst is not None:
            parts.append(
                Markup('<path class="tail s{}" d="M{} {}H{}m0-5v10"/>').format(
                    kind, x(dot.value), y, x(dot.worst)
                )
            )
        if dot.low is not None and dot.high is not None:
            words += f" ({dot.low:.1f} to {dot.high:.1f})"
            parts.append(
                Markup('<path class="whisker s{}" d="M{} {}H{}"/>').format(
                    kind, x(dot.low), y, x(dot.high)
                )
            )
        if dot.worst is not None:
            words += f", worst {dot.worst:.1f}"
        parts.append(_point(x(dot.value), y, kind, f"{dot.label}: {words}"))
        parts.append(
            Markup(
                '<text class="halo" x="18" y="{}">{} <tspan class="soft">{}</tspan></text>'
            ).format(y - 11, _cut(dot.label, 30), words)
        )
    return _svg(title, parts, bottom + _BOTTOM)


class _Axis:
    """Maps values to places between ``start`` and ``stop``, linearly or by their logarithm."""

    def __init__(
        self, values: Sequence[float], start: float, stop: float, *, is_log: bool = False
    ) -> None:
        self.is_log, self.start, self.stop = is_log, start, stop
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


def _upwards(y: _Axis, label: str) -> Markup:
    """Return the vertical axis: grid lines, labels, and its name."""
    right = _WIDTH - _RIGHT
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
        if top is not None:
            parts.append(Markup('<path class="grid" d="M{} {}V{}"/>').format(place, top, bottom))
        if place - last >= 7 * len(_short(value)) + 6:  # no label over its neighbour
            text = Markup('<text class="middle" x="{}" y="{}">{}</text>')
            parts.append(text.format(place, bottom + 16, _short(value)))
            last = place
    name = Markup('<text class="soft middle" x="{}" y="{}">{}</text>')
    parts.append(name.format((x.start + x.stop) / 2, bottom + 34, label))
    return Markup("").join(parts)


def _room(marks: Sequence[Mark]) -> int:
    """Return the height of the labels of upright marks."""
    return _LINE * len(marks) + (6 if marks else 0)


def _upright(marks: Sequence[Mark], x: _Axis, bottom: float) -> Markup:
    """Return vertical marks, each label in a line of its own."""
    parts = []
    for i, mark in enumerate(sorted(marks, key=lambda mark: mark.value)):
        place, y = x(mark.value), 12 + _LINE * i
        is_right = place > 0.55 * _WIDTH
        parts.append(
            Markup(
                '<path class="mark" d="M{} {}V{}"/><text class="halo{}" x="{}" y="{}">{} {}</text>'
            ).format(
                *(place, y - 9, bottom, " end" if is_right else ""),
                *(place + (-5 if is_right else 5), y, mark.label, _short(mark.value)),
            )
        )
    return Markup("").join(parts)


def _across(marks: Sequence[Mark], y: _Axis) -> Markup:
    """Return horizontal marks; labels of near levels are moved apart."""
    parts, last = [], math.inf
    for mark in sorted(marks, key=lambda mark: mark.value):
        place = y(mark.value)
        label = min(place - 4, last - 13)
        last = label
        parts.append(
            Markup(
                '<path class="mark" d="M{} {}H{}"/>'
                '<text class="halo end" x="{}" y="{}">{} {}</text>'
            ).format(
                *(_LEFT, place, _WIDTH - _RIGHT),
                *(_WIDTH - _RIGHT, label, mark.label, _short(mark.value)),
            )
        )
    return Markup("").join(parts)


def _band(one: Series, x: _Axis, y: _Axis, colour: int) -> Markup:
    """Return the band of a line, nothing where it has none."""
    upper = [f"{x(a)},{y(b)}" for a, b in zip(one.x, one.high, strict=False)]
    lower = [f"{x(a)},{y(b)}" for a, b in zip(one.x, one.low, strict=False)]
    band = Markup('<polygon class="band s{}" points="{}"/>')
    return band.format(colour, " ".join([*upper, *reversed(lower)]))


def _whiskers(one: Series, x: _Axis, y: _Axis, colour: int) -> Markup:
    """Return the intervals of single points."""
    whisker = Markup('<path class="whisker s{}" d="M{} {}V{}"/>')
    ends = zip(one.x, one.low, one.high, strict=False)
    return Markup("").join(whisker.format(colour, x(a), y(b), y(c)) for a, b, c in ends)


def _point(x: float, y: float, colour: int, words: str) -> Markup:
    """Return a marker in the series' shape, with words to show under the pointer."""
    marker = Markup('<path class="point s{}" d="M{} {}{}"><title>{}</title></path>')
    return marker.format(colour, x, y, _SHAPES[colour % len(_SHAPES)], words)


def _svg(title: str, parts: Sequence[Markup], height: float) -> Markup:
    frame = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>')
    return frame.format(_WIDTH, height, title, Markup("").join(parts))
