"""The charts of a run: how its leakage is distributed, compares with controls, and came about."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from lightning_recon.audit.results import Privacy, Results
from lightning_recon.audit.scores import Row
from lightning_recon.report.charts import MAX_DOTS, Chart, Dot, Group, Panel, along, ladder, spread
from lightning_recon.report.drawing import Mark, Series
from lightning_recon.report.page import count, guarantee_words, share

NULLS = {
    "mean_image": "mean image",
    "class_mean": "class mean",
    "nearest_public": "nearest public image",
    "noise_only": "noise-only update",
    "other_client": "other client's update",
}
"""Null control: its name for people, in the order of the pages."""

MIN_CLIENTS = 4
"""Clients from which a chart draws their interval.  Of fewer it is stretched so far beyond the
clients themselves, by 2.7 for three and by 9 for two, that it would be all that one sees; tables
have it."""

NO_BOUND = "The estimate is no bound: better priors and kinks of the network may give more."

NO_INTERVAL = f"No interval is drawn of fewer than {MIN_CLIENTS} clients."

CONTROLS = {name: -1 - i for i, name in enumerate(NULLS)}
"""Null control: the number by which charts draw it."""

# numbers of what a run's page draws; clients have the last and the following ones
_RECOVERED, _NOT_RECOVERED, _ATTACK, _EXPECTED, _CLIENTS = range(5)

_LINES = {
    "this attack": ("psnr", _ATTACK),
    "control: mean image": ("psnr_mean_image", CONTROLS["mean_image"]),
    "control: nearest public image": ("psnr_nearest_public", CONTROLS["nearest_public"]),
}
_MAX_POINTS = 150  # of a line
_FEW_POINTS = 16  # of a line: up to as many are marked, and a single one is seen at all


def null_marks(results: Results) -> list[Mark]:
    """Return the mean PSNR, in dB, of each null control that was run."""
    values = {name: results.control(name).psnr for name in NULLS}
    return [
        Mark(NULLS[name], value, CONTROLS[name])
        for name, value in values.items()
        if value is not None
    ]


def drawn_interval(
    num_clients: float | None, low: float | None, high: float | None
) -> tuple[float | None, float | None]:
    """Return the ends of an interval, None where a chart leaves it out.

    Args:
        num_clients: that it was found from; None where that is not known.
        low: its lower end, if it has one.
        high: its upper end.
    """
    if num_clients is not None and num_clients < MIN_CLIENTS:
        return None, None
    return low, high


def distribution(results: Results, rows: Sequence[Row]) -> list[Chart]:
    """Return the images by PSNR, and where they are many the share at or above each PSNR."""
    scored = [row for row in rows if math.isfinite(row.get("psnr", math.nan))]
    if not scored:
        return []
    groups = [
        Group(
            label,
            [row["psnr"] for row in scored if (row.get("recovered") == 1) == is_recovered],
            number,
        )
        for label, is_recovered, number in (
            ("recovered", True, _RECOVERED),
            ("not recovered", False, _NOT_RECOVERED),
        )
    ]
    columns = {
        label: ([row[column] for row in scored if column in row], number)
        for label, (column, number) in _LINES.items()
    }
    note = "Dashed: mean PSNR of the null controls, which know nothing of the client."
    words = _threshold_words(results)
    is_few = len(scored) <= MAX_DOTS
    chart = spread(
        *("Images by PSNR", groups, "PSNR of the image, dB", null_marks(results)),
        f"{note} {words}".strip() if is_few else note,
    )
    return [chart] if is_few else [chart, at_or_above(columns, words)]


def leakage(results: Results) -> list[Chart]:
    """Return the measured PSNR beside the null controls and what theory expects."""
    psnr = results.metric("psnr")
    if psnr.mean is None:
        return []
    dots = [_dot("This attack", results, _ATTACK)]
    expected = results.privacy.expected_psnr
    if expected is not None:
        dots.append(Dot("Expected without a prior", expected, number=_EXPECTED))
    for name, label in NULLS.items():
        null = results.control(name)
        if null.psnr is not None:
            ends = drawn_interval(results.num_clients, null.ci_low, null.ci_high)
            dots.append(Dot(f"Control: {label}", null.psnr, *ends, number=CONTROLS[name]))
    title = "Measured leakage beside what leaks nothing"
    note = (
        f"Point: mean over all images. {_interval_words([results])} Thin line: up to the worst "
        "leak. What lies to the right of the controls came out of the update."
    )
    return [Chart(title, [("", ladder(title, dots, "PSNR, dB"))], note)]


def linearised(results: Results) -> list[Chart]:
    """Return control, attack and local estimate beside each other, where there is an estimate."""
    found = results.local_estimate
    if found.psnr is None or found.psnr_attack is None or found.psnr_mean_image is None:
        return []
    ends = drawn_interval(results.num_clients, found.ci_low, found.ci_high)
    dots = [
        Dot("Control: mean image", found.psnr_mean_image, number=CONTROLS["mean_image"]),
        Dot("This attack", found.psnr_attack, number=_ATTACK),
        Dot("Local estimate", found.psnr, *ends, number=_EXPECTED),
    ]
    title = "What a linearised attacker would get"
    note = (
        f"Of the mean squared error over {count(found.num_images or 0, 'image')}. {NO_BOUND} An "
        f"attack far below the estimate is weak here. {_safe(results.privacy)}"
    )
    return [Chart(title, [("", ladder(title, dots, "PSNR of the mean error, dB"))], note)]


def _safe(privacy: Privacy) -> str:
    return guarantee_words(privacy.statement, privacy.rero_1000, privacy.rero_record_1000)


def _dot(label: str, results: Results, number: int) -> Dot:
    """Return the mean PSNR of a run that has one."""
    psnr = results.metric("psnr")
    assert psnr.mean is not None
    ends = drawn_interval(results.num_clients, psnr.ci_low, psnr.ci_high)
    return Dot(label, psnr.mean, *ends, psnr.worst, number)


def _interval_words(runs: Collection[Results]) -> str:
    """Return what the bars are, and where there are none for that reason."""
    few = [
        results.num_clients is not None and results.num_clients < MIN_CLIENTS for results in runs
    ]
    bar = "" if all(few) else "Bar: 95 % interval."
    return f"{bar} {NO_INTERVAL if any(few) else ''}".strip()


def objective_curves(results: Results) -> list[Chart]:
    """Return the attack's objective against its iterations, a line per client."""
    series: list[Series] = []
    for curve in results.curves:
        pairs = zip(curve.iteration, curve.objective, strict=False)
        points = _thinned([(step, value) for step, value in pairs if value is not None])
        if len(points) > 1:
            steps, heights = zip(*points, strict=True)
            number = _CLIENTS + len(series)
            series.append(Series(f"client {curve.client}", steps, heights, number=number))
    if not series:
        return []
    values = [value for one in series for value in one.y]
    is_log = min(values) > 0 and max(values) > 20 * min(values)
    note = f"The attacker's own objective on {count(len(series), 'client')}; lower is better."
    return [
        along(
            *("Objective of the attack", [Panel("", series)], "iteration", "objective"),
            note=note,
            is_y_log=is_log,
        )
    ]


def means(runs: Mapping[str, Results]) -> Chart:
    """Return the mean PSNR of several runs, by their label, with its interval.

    The null controls are those of the first run; a run's number is its place.
    """
    dots = [
        _dot(label, results, number)
        for number, (label, results) in enumerate(runs.items())
        if results.metric("psnr").mean is not None
    ]
    title = "PSNR of each run"
    note = (
        f"Point: mean over all images of the run. {_interval_words(runs.values())} Thin line: up "
        f"to the worst leak. Dashed: null controls of {next(iter(runs))}."
    )
    marks = null_marks(next(iter(runs.values())))
    return Chart(title, [("", ladder(title, dots, "PSNR, dB", marks))], note)


def against_privacy(runs: Mapping[str, Results]) -> list[Chart]:
    """Return PSNR against the actual epsilon, and against the noise, where runs differ in them.

    A run's number is its place.
    """
    axes: dict[str, Callable[[Results], float | None]] = {
        "actual ε of one update": lambda results: results.privacy.actual.epsilon,
        "standard deviation of the noise": lambda results: results.privacy.noise_std,
    }
    charts = []
    for axis, find in axes.items():
        series = []
        for number, (label, results) in enumerate(runs.items()):
            x, psnr = find(results), results.metric("psnr")
            if x is not None and x > 0 and psnr.mean is not None:
                low, high = drawn_interval(results.num_clients, psnr.ci_low, psnr.ci_high)
                lows, highs = ([] if end is None else [end] for end in (low, high))
                series.append(Series(label, [x], [psnr.mean], lows, highs, number))
        places = {one.x[0] for one in series}
        if len(places) > 1:
            left = len(runs) - len(series)
            chart = along(
                f"PSNR against the {axis}",
                [Panel("", series, null_marks(next(iter(runs.values())))[:1])],
                *(axis, "PSNR, dB"),
                note=f"{count(left, 'run')} without it left out." if left else "",
                is_x_log=max(places) > 8 * min(places),
                has_points=True,
                is_joined=False,
            )
            charts.append(chart)
    return charts


def at_or_above(columns: Mapping[str, tuple[Sequence[float], int]], note: str = "") -> Chart:
    """Return the share of images at or above each PSNR.

    Args:
        columns: what each line stands for, the PSNR of its images in dB, and its number.
        note: put below.
    """
    series = []
    for label, (column, number) in columns.items():
        values = sorted(value for value in column if math.isfinite(value))
        share_of_one = 100 / max(1, len(column))  # of all: one without a score is below any
        points = [(value, share_of_one * (len(values) - i)) for i, value in enumerate(values)]
        if points:
            places, shares = zip(*_thinned(points), strict=True)
            series.append(Series(label, places, shares, number=number))
    return along(
        "Share of images at or above a PSNR",
        [Panel("", series)],
        *("PSNR, dB", "share of images, %"),
        note=note,
        has_points=all(len(one.x) <= _FEW_POINTS for one in series),
    )


def _threshold_words(results: Results) -> str:
    """Return the share of images that reach each threshold, beside that of the mean image."""
    shares = results.thresholds.get("psnr", {})
    nulls = results.thresholds.get("psnr_mean_image", {})
    words = [
        f"at {level} dB {share(value)}"
        + (f" (mean image {share(nulls[level])})" if level in nulls else "")
        for level, value in shares.items()
    ]
    return f"Of all images, {', '.join(words)}." if words else ""


def _thinned(points: list[Any]) -> list[Any]:
    """Return at most :data:`_MAX_POINTS` of the points, the first and the last among them."""
    if len(points) <= _MAX_POINTS:
        return points
    step = (len(points) - 1) / (_MAX_POINTS - 1)
    return [points[round(i * step)] for i in range(_MAX_POINTS)]
