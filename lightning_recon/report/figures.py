"""The charts of a run: how its leakage is distributed, compares with controls, and came about."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightning_recon.audit.results import Results
from lightning_recon.audit.scores import Row
from lightning_recon.report.charts import (
    MAX_LINES,
    Chart,
    Dot,
    Mark,
    Series,
    histogram,
    ladder,
    lines,
)
from lightning_recon.report.page import count, share

NULLS = {
    "mean_image": "mean image",
    "class_mean": "class mean",
    "nearest_public": "nearest public image",
    "noise_only": "noise-only update",
    "other_client": "other client's update",
}
"""Null control: its name for people, in the order of the pages."""

_LINES = {
    "this attack": "psnr",
    "control: mean image": "psnr_mean_image",
    "control: nearest public image": "psnr_nearest_public",
}
_MAX_POINTS = 150  # of a line


def null_marks(results: Results) -> list[Mark]:
    """Return the mean PSNR, in dB, of each null control that was run."""
    values = [(label, results.control(name).psnr) for name, label in NULLS.items()]
    return [Mark(label, value) for label, value in values if value is not None]


def distribution(results: Results, rows: Sequence[Row]) -> list[Chart]:
    """Return the histogram of PSNR, and the share of images at or above each PSNR."""
    scored = [row for row in rows if math.isfinite(row.get("psnr", math.nan))]
    if not scored:
        return []
    groups = [
        (name, [row["psnr"] for row in scored if (row.get("recovered") == 1) == is_recovered])
        for name, is_recovered in (("recovered", True), ("not recovered", False))
    ]
    title = "Images by PSNR"
    chart = histogram(title, groups, "PSNR of the image, dB", null_marks(results))
    note = "Dashed: mean PSNR of the null controls, which know nothing of the client."
    columns = {
        label: [row[column] for row in scored if column in row] for label, column in _LINES.items()
    }
    return [
        Chart(title, chart, note, [name for name, _ in groups]),
        at_or_above(columns, _threshold_words(results)),
    ]


def leakage(results: Results) -> list[Chart]:
    """Return the measured PSNR beside the null controls and what theory expects."""
    psnr = results.metric("psnr")
    if psnr.mean is None:
        return []
    dots = [Dot("This attack", psnr.mean, psnr.ci_low, psnr.ci_high, psnr.worst)]
    expected = results.privacy.expected_psnr
    if expected is not None:
        dots.append(Dot("Expected without a prior", expected))
    for name, label in NULLS.items():
        null = results.control(name)
        if null.psnr is not None:
            ends = null.ci_low, null.ci_high
            dots.append(Dot(f"Control: {label}", null.psnr, *ends, is_control=True))
    title = "Measured leakage beside what leaks nothing"
    note = (
        "Point: mean over all images. Bar: 95 % interval. Thin line: up to the worst leak. What "
        "lies to the right of the controls came out of the update."
    )
    return [Chart(title, ladder(title, dots, "PSNR, dB"), note)]


def objective_curves(results: Results) -> list[Chart]:
    """Return the attack's objective against its iterations, a line per client."""
    series = []
    for curve in results.curves:
        pairs = zip(curve.iteration, curve.objective, strict=False)
        points = _thinned([(step, value) for step, value in pairs if value is not None])
        if len(points) > 1:
            series.append(Series(f"client {curve.client}", *zip(*points, strict=True)))
    if not series:
        return []
    values = [value for one in series for value in one.y]
    is_log = min(values) > 0 and max(values) > 20 * min(values)
    title = "Objective of the attack"
    chart = lines(title, series, "iteration", "objective", is_y_log=is_log)
    note = f"The attacker's own objective on {count(len(series), 'client')}; lower is better."
    return [
        Chart(title, chart, note, [one.label for one in series] if len(series) <= MAX_LINES else [])
    ]


def means(runs: Mapping[str, Results]) -> Chart:
    """Return the mean PSNR of several runs, by their label, with its interval.

    The null controls are those of the first run.
    """
    dots = []
    for label, results in runs.items():
        psnr = results.metric("psnr")
        if psnr.mean is not None:
            dots.append(Dot(label, psnr.mean, psnr.ci_low, psnr.ci_high, psnr.worst))
    title = "PSNR of each run"
    note = (
        "Point: mean over all images of the run. Bar: 95 % interval. Thin line: up to the worst "
        f"leak. Dashed: null controls of {next(iter(runs))}."
    )
    marks = null_marks(next(iter(runs.values())))
    return Chart(title, ladder(title, dots, "PSNR, dB", marks), note)


def against_privacy(runs: Mapping[str, Results]) -> list[Chart]:
    """Return PSNR against the actual epsilon, and against the noise, where runs differ in them."""
    axes: dict[str, Callable[[Results], float | None]] = {
        "actual ε of one update": lambda results: results.privacy.actual.epsilon,
        "standard deviation of the noise": lambda results: results.privacy.noise_std,
    }
    charts = []
    for axis, find in axes.items():
        series = []
        for label, results in runs.items():
            x, psnr = find(results), results.metric("psnr")
            if x is not None and x > 0 and psnr.mean is not None:
                low, high = psnr.ci_low, psnr.ci_high
                ends = ([low], [high]) if low is not None and high is not None else ((), ())
                series.append(Series(label, [x], [psnr.mean], *ends))
        places = {one.x[0] for one in series}
        if len(places) > 1:
            title = f"PSNR against the {axis}"
            chart = lines(
                *(title, series, axis, "PSNR, dB"),
                marks=null_marks(next(iter(runs.values())))[:1],
                is_x_log=max(places) > 8 * min(places),
                has_points=True,
                is_joined=False,
            )
            left = len(runs) - len(series)
            note = f"{count(left, 'run')} without it left out." if left else ""
            charts.append(Chart(title, chart, note, [one.label for one in series]))
    return charts


def at_or_above(columns: Mapping[str, Sequence[float]], note: str = "") -> Chart:
    """Return the share of images at or above each PSNR.

    Args:
        columns: what each line stands for, and the PSNR of its images in dB.
        note: put below.
    """
    series = []
    for label, column in columns.items():
        values = sorted(value for value in column if math.isfinite(value))
        total = len(values)
        points = [(value, 100 * (total - i) / total) for i, value in enumerate(values)]
        if points:
            series.append(Series(label, *zip(*_thinned(points), strict=True)))
    title = "Share of images at or above a PSNR"
    chart = lines(title, series, "PSNR, dB", "share of images, %")
    return Chart(title, chart, note, [one.label for one in series])


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
