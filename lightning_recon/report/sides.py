"""Runs held against each other, image by image, and the tables of what that tells."""

import itertools
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning_recon.audit.scores import Row
from lightning_recon.audit.statistics import PairedDifference, paired_difference
from lightning_recon.errors import InputError
from lightning_recon.report.cards import place
from lightning_recon.report.figures import MIN_CLIENTS
from lightning_recon.report.folder import Run, read_run
from lightning_recon.report.page import (
    DASH,
    Table,
    interval,
    is_number,
    metric_label,
    number,
    share,
)
from lightning_recon.report.pictures import has_pictures

_COMPARED = ("psnr", "ssim", "lpips", "psnr_subject")


class Side(NamedTuple):
    """One of the runs."""

    letter: str
    run: Run
    label: str
    """The letter, and a name if that tells the runs apart."""
    rows: list[Row]
    """Those of the images that all runs share, in one order."""

    @property
    def number(self) -> int:
        """Its place, from 0."""
        return string.ascii_uppercase.index(self.letter)

    def has_pictures(self, row: Row) -> bool:
        """Return whether pictures were kept of that image."""
        return has_pictures(self.run.pictures, *place(row))


class Pair(NamedTuple):
    """Two of the runs; differences are second minus first."""

    first: Side
    second: Side

    @property
    def label(self) -> str:
        """What the differences are called."""
        return f"{self.second.letter} minus {self.first.letter}"

    def difference(self, metric: str) -> PairedDifference | None:
        """Return the paired difference over the images for which both have the metric."""
        values = [
            (one[metric], other[metric], one.get("client", 0))
            for one, other in zip(self.first.rows, self.second.rows, strict=True)
            if is_number(one.get(metric)) and is_number(other.get(metric))
        ]
        return paired_difference(*zip(*values, strict=True)) if values else None


def tables(runs: Sequence[Run]) -> tuple[Table, Table]:
    """Return the figures of every run, and the paired differences, without a page.

    Args:
        runs: of :func:`read_runs`.

    Raises:
        InputError: if a run has no scores, or no image is in all of them.
    """
    sides, pairs = held_together(runs)
    return figures_table(sides), differences_table(pairs)


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Return the runs of 2 to 26 folders; InputError if one cannot be read, or of other numbers."""
    if not 2 <= len(folders) <= len(string.ascii_uppercase):
        raise InputError(f"compare takes 2 to 26 runs, not {len(folders)}")
    return [read_run(folder) for folder in folders]


def held_together(runs: Sequence[Run]) -> tuple[list[Side], list[Pair]]:
    """Return the runs, and which of them are held against each other."""
    sides = _sides(runs)
    pairs = [
        Pair(first, second)
        for first, second in itertools.combinations(sides, 2)
        if len(sides) <= 4 or first is sides[0]
    ]
    return sides, pairs


def _sides(runs: Sequence[Run]) -> list[Side]:
    """Return the runs with the rows of the images that all of them share."""
    keyed: list[dict[tuple[Any, ...], Row]] = []
    for run in runs:
        name = run.results.data.name
        rows = [row for row in run.rows if {"index", "psnr"} <= row.keys()]
        if not rows:
            raise InputError(
                f"{run.folder} has no scores in clients.csv; only audits with the truth compare"
            )
        keyed.append({(name, row.get("client", 0), row["index"]): row for row in rows})
    shared = [key for key in keyed[0] if all(key in rows for rows in keyed)]
    if not shared:
        names = ", ".join(str(run.folder) for run in runs)
        raise InputError(
            f"no image is in all of {names}; compare runs on the same data, clients and seed"
        )
    titles = [run.name for run in runs]
    if len(set(titles)) < len(titles):
        titles = [run.folder.resolve().name for run in runs]
    return [
        Side(letter, run, f"{letter} {title}", [rows[key] for key in shared])
        for letter, run, title, rows in zip(
            string.ascii_uppercase, runs, titles, keyed, strict=False
        )
    ]


def figures_table(sides: Sequence[Side]) -> Table:
    """Return the figures of every run over all its own images."""
    body = []
    for side in sides:
        results = side.run.results
        psnr, privacy = results.metric("psnr"), results.privacy
        recall = results.recall_ci_low, results.recall_ci_high
        body.append(
            [
                side.label,
                side.run.folder.resolve().name,
                number(results.attack),
                " + ".join(results.defenses) or "none",
                number(results.num_images),
                share(results.recall),
                DASH if recall[0] is None else f"{share(recall[0])} to {share(recall[1])}",
                number(psnr.mean, 1),
                interval(psnr.ci_low, psnr.ci_high),
                number(psnr.worst, 1),
                number(results.metric("psnr_subject").mean, 1),
                number(results.metric("ssim").mean, 3),
                share(results.identification.rate),
                *(number(results.control(name).psnr, 1) for name in ("mean_image", "noise_only")),
                number(privacy.noise_std),
                number(privacy.claimed.epsilon),
                number(privacy.actual.epsilon),
                number(results.wall_seconds, 0),
            ]
        )
    heads = [
        *("Run", "Folder", "Attack", "Defenses", "Images", "Recovered", "95 % interval"),
        *("PSNR, dB", "95 % interval", "Worst", "Subject", "SSIM", "Identified"),
        *("Mean image, dB", "Noise only, dB", "Noise std", "Claimed ε", "Actual ε", "Seconds"),
    ]
    return Table("Over all images of each run.", heads, body, is_sortable=True)


def differences_table(pairs: Sequence[Pair]) -> Table:
    """Return every pair's differences with their intervals."""
    body = []
    for pair in pairs:
        is_masked = pair.first.run.results.is_masked or pair.second.run.results.is_masked
        for metric in (*_COMPARED, "recovered"):
            if metric.endswith("_subject") and not is_masked:
                continue
            found = pair.difference(metric)
            if found is not None:
                body.append([pair.label, *_difference(metric, found)])
    heads = [
        *("Runs", "Metric", "Difference", "95 % interval", "Told apart"),
        *("Images", "Clients"),
    ]
    caption = (
        f"On the images that all runs share. Told apart: the interval does not hold 0, and there "
        f"are at least {MIN_CLIENTS} clients. Of many differences, one in twenty is told apart by "
        "chance alone."
    )
    facets = {
        "Runs": [pair.label for pair in pairs],
        "Metric": list(dict.fromkeys(row[1] for row in body)),
    }
    return Table(caption, heads, body, is_sortable=True, facets=facets)


def _difference(metric: str, found: PairedDifference) -> list[str]:
    """Return one difference for people; that of the recovered share in percentage points."""
    label, unit, decimals = metric_label(metric)
    decimals, scale = decimals + 1, 1
    if metric == "recovered":
        label, unit, decimals, scale = "Recovered", "points", 1, 100
    told, ends = "one client", DASH
    if found.interval is not None:
        low, high = found.interval
        told = "no" if low <= 0 <= high else "yes"
        if found.num_clients < MIN_CLIENTS:
            told = f"no, {found.num_clients} clients"
        ends = interval(scale * low, scale * high, decimals)
    return [
        f"{label}, {unit}" if unit else label,
        number(scale * found.mean, decimals),
        ends,
        told,
        number(found.num_images),
        number(found.num_clients),
    ]
