"""What charts are drawn of: axes, marks, points, and looks that a number decides.

Whatever a page draws twice has a number, its place in the page's order, and the number alone
decides how it looks: its colour, from the page's style sheet (classes ``s0`` to ``s7``), so that it
follows the reader's light or dark preference, and the shape of its markers.  Below 0 are controls,
in grey.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

WIDTH = 420
"""Of a chart, in units of its drawing."""
LEFT, RIGHT = 66, 12
"""Margins."""
_NUM_COLOURS = 7  # of series
_CONTROL = 7  # the colour of controls, a neutral grey
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


class Axis:
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
        """Return the place of a value."""
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


def short(value: float) -> str:
    """Return a number in few characters: 0.002, 25, 5e7."""
    if value == round(value) and abs(value) < 1e5:
        return f"{value:.0f}"
    text = f"{0.0 if abs(value) < 1e-12 else value:.3g}"
    mantissa, _, exponent = text.partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else text


def cut(text: str, length: int) -> str:
    """Return a text of at most so many characters."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def vertical_axis(y: Axis, label: str, right: float = WIDTH - RIGHT) -> Markup:
    """Return the vertical axis: grid lines up to ``right``, labels, and its name."""
    ticks = [
        Markup(
            '<path class="grid" d="M{} {}H{}"/><text class="end" x="{}" y="{}">{}</text>'
        ).format(LEFT, y(value), right, LEFT - 6, y(value) + 4, short(value))
        for value in y.ticks
    ]
    middle = (y.start + y.stop) / 2
    name = Markup('<text class="soft middle" transform="translate(12 {}) rotate(-90)">{}</text>')
    return Markup("").join([*ticks, name.format(middle, label)])


def horizontal_axis(
    x: Axis, label: str, bottom: float, at: Sequence[float] | None = None, top: float | None = None
) -> Markup:
    """Return the horizontal axis; ``top`` asks for grid lines up to there."""
    parts = [Markup('<path class="axis" d="M{} {}H{}"/>').format(x.start, bottom, x.stop)]
    last = -math.inf
    for value in x.ticks if at is None else at:
        place = x(value)
        half = (_CHARACTER * len(short(value)) + 9) / 2
        if top is not None:
            parts.append(Markup('<path class="grid" d="M{} {}V{}"/>').format(place, top, bottom))
        if place - half >= last:  # no label over its neighbour
            text = Markup('<text class="middle" x="{}" y="{}">{}</text>')
            parts.append(text.format(place, bottom + 16, short(value)))
            last = place + half
    name = Markup('<text class="soft middle" x="{}" y="{}">{}</text>')
    parts.append(name.format((x.start + x.stop) / 2, bottom + 34, label))
    return Markup("").join(parts)


def room_of(marks: Sequence[Mark]) -> int:
    """Return the height of the labels of upright marks."""
    return _LINE * len(marks) + (6 if marks else 0)


def upright(marks: Sequence[Mark], x: Axis, bottom: float) -> Markup:
    """Return vertical marks, each label in a line of its own, clear of the marks on its side."""
    middle = 0.55 * WIDTH
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
                dashes_of(mark.number),
                *(place, y - 9, bottom, " end" if is_right else ""),
                *(place + (-5 if is_right else 5), y, mark.label, short(mark.value)),
            )
        )
    return Markup("").join(parts)


def band_of(one: Series, x: Axis, y: Axis) -> Markup:
    """Return the band of a line, nothing where it has none."""
    upper = [f"{x(a)},{y(b)}" for a, b in zip(one.x, one.high, strict=False)]
    lower = [f"{x(a)},{y(b)}" for a, b in zip(one.x, one.low, strict=False)]
    band = Markup('<polygon class="band s{}" points="{}"/>')
    return band.format(colour_of(one.number), " ".join([*upper, *reversed(lower)]))


def whiskers_of(one: Series, x: Axis, y: Axis) -> Markup:
    """Return the intervals of single points."""
    whisker = Markup('<path class="whisker s{}" d="M{} {}V{}"/>')
    ends = zip(one.x, one.low, one.high, strict=False)
    colour = colour_of(one.number)
    return Markup("").join(whisker.format(colour, x(a), y(b), y(c)) for a, b, c in ends)


def point_at(x: float, y: float, number: int, words: str) -> Markup:
    """Return a marker, with words to show under the pointer."""
    marker = Markup('<path class="point s{}" d="M{} {:.1f}{}"><title>{}</title></path>')
    return marker.format(colour_of(number), x, y, _shape(number), words)


def colour_of(number: int) -> int:
    """Return the colour of a number; with the shape it is one of 28 looks."""
    return number % _NUM_COLOURS if number >= 0 else _CONTROL


def _shape(number: int) -> str:
    return _SHAPES[abs(number) % len(_SHAPES)]


def classes_of(number: int) -> str:
    """Return the classes of a line; those of controls differ in their dashes."""
    return f"s{colour_of(number)} {dashes_of(number)}".strip()


def dashes_of(number: int) -> str:
    """Return the class of a control's dashes; others have none."""
    return f"d{-number % 5}" if number < 0 else ""


def sample_of(
    number: int, *, has_point: bool = False, has_line: bool = False, is_mark: bool = False
) -> Markup:
    """Return what a legend shows of a number."""
    classes = f"mark {dashes_of(number)}" if is_mark else f"line {classes_of(number)}"
    line = Markup('<path class="{}" d="M0 6H22"/>').format(classes)
    point = Markup('<path class="point s{}" d="M11 6{}"/>').format(
        colour_of(number), _shape(number)
    )
    frame = Markup('<svg viewBox="0 0 22 12" aria-hidden="true">{}{}</svg>')
    return frame.format(line if has_line or is_mark else "", point if has_point else "")


def drawing(title: str, parts: Sequence[Markup], height: float, width: float = WIDTH) -> Markup:
    """Return the whole, with a title for those who hear it."""
    frame = Markup('<svg viewBox="0 0 {} {:g}" role="img" aria-label="{}">{}</svg>')
    return frame.format(width, height, title, Markup("").join(parts))
