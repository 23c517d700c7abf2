"""Several runs side by side on one page, compared on the images that they share.

Two means over different images differ by what the images are; the same image of the same client
under two attacks or defenses does not.  So all differences here are paired.
"""

import itertools
import re
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning_recon.audit.results import Results
from lightning_recon.audit.scores import Row
from lightning_recon.audit.statistics import PairedDifference, paired_difference
from lightning_recon.errors import InputError
from lightning_recon.report.cards import (
    Card,
    Picture,
    image_name,
    leak,
    picture,
    place,
    within_budget,
)
from lightning_recon.report.charts import Chart, Group, spread
from lightning_recon.report.drawing import Mark
from lightning_recon.report.figures import MIN_CLIENTS, against_privacy, at_or_above, means
from lightning_recon.report.findings import Finding, findings
from lightning_recon.report.folder import Run, read_run
from lightning_recon.report.page import (
    DASH,
    INTERVALS,
    Table,
    count,
    interval,
    is_number,
    metric_label,
    number,
    share,
    write_page,
)
from lightning_recon.report.pictures import has_pictures, load_pictures
from lightning_recon.report.settings import differing_settings

_MAX_CARDS = 24
_COMPARED = ("psnr", "ssim", "lpips", "psnr_subject")
_SAME_NULL = 0.05  # dB: what rounding and devices may change


class _Side(NamedTuple):
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


class _Pair(NamedTuple):
    """Two of the runs; differences are second minus first."""

    first: _Side
    second: _Side

    @property
    def label(self) -> str:
        return f"{self.second.letter} minus {self.first.letter}"

    def difference(self, metric: str) -> PairedDifference | None:
        """Return the paired difference over the images for which both have the metric."""
        values = [
            (one[metric], other[metric], one.get("client", 0))
            for one, other in zip(self.first.rows, self.second.rows, strict=True)
            if is_number(one.get(metric)) and is_number(other.get(metric))
        ]
        return paired_difference(*zip(*values, strict=True)) if values else None


def compare_runs(folders: Sequence[Path], output: Path) -> Path:
    """Write a page that shows several runs side by side.

    Args:
        folders: of two to 26 finished runs, each with ``results.json`` and ``clients.csv``.  An
            image is shared if data set, client and place in the data set are the same.
        output: the page to write, HTML; its folder is made.

    Returns:
        The path of the page.

    Raises:
        InputError: if there are too few or too many runs, one cannot be read or has no scores, or
            no image is in all of them.
    """
    sides, pairs = _held_together(read_runs(folders))
    cards, note = _cards(sides)
    results = {side.label: side.run.results for side in sides}
    clients = {row.get("client", 0) for row in sides[0].rows}
    shared = f"{count(len(sides[0].rows), 'image')} of {count(len(clients), 'client')}"
    content = {
        "title": f"Comparison of {len(sides)} runs",
        "kind": "Privacy audits of federated learning, side by side",
        "heading": f"Comparison of {len(sides)} runs",
        "about": " · ".join(side.label for side in sides),
        "is_leak": any(row.get("recovered") == 1 for side in sides for row in side.rows),
        "status": f"{shared} shared",
        "verdict": _verdict(sides),
        "caveat": (
            f"Differences are taken image by image on what all runs share. {INTERVALS} Of fewer "
            f"than {MIN_CLIENTS} clients no difference counts as told apart."
        ),
        "warnings": _warnings(sides),
        "sections": {
            "figures": "Figures",
            "differences": "Paired differences",
            "leakage": "Privacy against leakage",
            "pictures": "Pictures",
            "settings": "Settings that differ",
            "reproduce": "Reproduce",
        },
        "source": "Made from the files of the runs; nothing here is fetched.",
        "figures": _figures(sides),
        "differences": _differences(pairs),
        "difference_charts": [_spread(pair) for pair in pairs if pair.first is sides[0]][:3],
        "leakage": [
            means(results),
            *against_privacy(results),
            at_or_above({side.label: (_column(side, "psnr"), side.number) for side in sides}),
        ],
        "cards": cards,
        "pictures_note": note,
        "settings": differing_settings({side.label: side.run.config for side in sides}),
        "commands": [(side.label, side.run.results.command or DASH) for side in sides],
    }
    return write_page(output, "comparison.html", content)


def tables(runs: Sequence[Run]) -> tuple[Table, Table]:
    """Return the figures of every run, and the paired differences, without a page.

    Args:
        runs: of :func:`read_runs`.

    Raises:
        InputError: if a run has no scores, or no image is in all of them.
    """
    sides, pairs = _held_together(runs)
    return _figures(sides), _differences(pairs)


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Return the runs of 2 to 26 folders; InputError if one cannot be read, or of other numbers."""
    if not 2 <= len(folders) <= len(string.ascii_uppercase):
        raise InputError(f"compare takes 2 to 26 runs, not {len(folders)}")
    return [read_run(folder) for folder in folders]


def _held_together(runs: Sequence[Run]) -> tuple[list[_Side], list[_Pair]]:
    """Return the runs, and which of them are held against each other."""
    sides = _sides(runs)
    pairs = [
        _Pair(first, second)
        for first, second in itertools.combinations(sides, 2)
        if len(sides) <= 4 or first is sides[0]
    ]
    return sides, pairs


def _sides(runs: Sequence[Run]) -> list[_Side]:
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
        _Side(letter, run, f"{letter} {title}", [rows[key] for key in shared])
        for letter, run, title, rows in zip(
            string.ascii_uppercase, runs, titles, keyed, strict=False
        )
    ]


def _column(side: _Side, metric: str) -> list[float]:
    return [row[metric] for row in side.rows if is_number(row.get(metric))]


def _verdict(sides: Sequence[_Side]) -> str:
    """Return which run leaks most, and how certain that is, as one sentence."""
    means = {side.letter: _mean(_column(side, "psnr")) for side in sides}
    most, next_most = sorted(sides, key=lambda side: means[side.letter], reverse=True)[:2]
    difference = _Pair(next_most, most).difference("psnr")
    if difference is None:
        return "The runs share no finite score."
    ends = difference.interval
    certainty = f"95 % interval {interval(*ends)}" if ends else "a single client, no interval"
    more = f"{difference.mean:.1f} dB ({certainty}) more than {next_most.label}"
    figure = f"PSNR {means[most.letter]:.1f} dB on average over the shared images, {more}"
    if difference.num_clients < MIN_CLIENTS:
        shared = count(difference.num_clients, "client")
        return (
            f"{most.label} and {next_most.label} cannot be told apart by {shared}, {MIN_CLIENTS} "
            f"are the least: {figure}."
        )
    if ends and ends.low <= 0:
        return f"{most.label} and {next_most.label} cannot be told apart: {figure}."
    return f"{most.label} leaks most: {figure}."


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("-inf")


def _warnings(sides: Sequence[_Side]) -> list[Finding]:
    """Return what keeps the differences from meaning what they seem to mean, alarms first."""
    whose: dict[Finding, list[str]] = {}  # what holds for several runs is said once
    for side in sides:
        for finding in findings(side.run.results):
            whose.setdefault(finding, []).append(side.label)
    found = [
        finding._replace(text=f"{', '.join(labels)}: {finding.text}")
        for finding, labels in whose.items()
    ]
    truths = [_other_truth(sides[0], side) for side in sides[1:]]
    found += [Finding("alarm", text) for text in truths if text]
    all_results = [side.run.results for side in sides]
    settings: dict[str, list[Any]] = {
        "call different PSNRs recovered": [results.recovered_psnr for results in all_results],
        "grant the attacker different oracles": [
            ", ".join(results.oracles) or "nothing" for results in all_results
        ],
        "have different threat models": [_server(results) for results in all_results],
    }
    for what, values in settings.items():
        if len(set(map(str, values))) > 1:
            listed = "; ".join(f"{s.letter}: {v}" for s, v in zip(sides, values, strict=True))
            found.append(Finding("note", f"The runs {what} ({listed})."))
    return sorted(found, key=lambda finding: finding.severity)  # alarm, note


def _server(results: Results) -> str:
    """Return who attacks, however it is worded, and the protocol; what is granted stands apart.

    The first words of a threat model say it, such as "a malicious server sends ...".
    """
    text, _, protocol = (results.threat_model or "").partition("; protocol ")
    found = re.match(r"an? ([\w-]+) server\b", text)
    if found is None:
        return results.threat_model or DASH
    kind = found[1].removesuffix("-but-curious")
    return f"{kind} server, {protocol}" if protocol else f"{kind} server"


def _other_truth(first: _Side, second: _Side) -> str:
    """Return a warning if what the two runs share is not the same after all."""
    names = f"{first.letter} and {second.letter}"
    pairs = list(zip(first.rows, second.rows, strict=True))
    pictured = [(a, b) for a, b in pairs if first.has_pictures(a) and second.has_pictures(b)]
    unlike = 0
    for one, other in pictured[:_MAX_CARDS]:
        truths = (
            load_pictures(side.run.pictures, *place(row)).truth
            for side, row in ((first, one), (second, other))
        )
        unlike += len({(truth.size, truth.tobytes()) for truth in truths}) > 1
    if unlike:
        return (
            f"Of {min(len(pictured), _MAX_CARDS)} shared images of {names} that were looked at, "
            f"{unlike} have another truth: size or masks differ, and so what is compared."
        )
    nulls = [(a.get("psnr_mean_image"), b.get("psnr_mean_image")) for a, b in pairs]
    if any(is_number(a) and is_number(b) and abs(a - b) > _SAME_NULL for a, b in nulls):
        return (
            f"The mean image, which counts for what was not matched, is not the same in {names}: "
            "the public images or the truth differ."
        )
    return ""


def _figures(sides: Sequence[_Side]) -> Table:
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


def _differences(pairs: Sequence[_Pair]) -> Table:
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


def _spread(pair: _Pair) -> Chart:
    """Return how the PSNR of the images differs, in the look of the second run."""
    differences = [
        other["psnr"] - one["psnr"]
        for one, other in zip(pair.first.rows, pair.second.rows, strict=True)
        if is_number(one["psnr"]) and is_number(other["psnr"])
    ]
    return spread(
        f"Images by difference of PSNR, {pair.label}",
        [Group("images", differences, pair.second.number)],
        "difference, dB",
        [Mark("no difference", 0.0)],
        f"{pair.first.label} against {pair.second.label}; to the right: the second leaks more.",
    )


def _cards(sides: Sequence[_Side]) -> tuple[list[Card], str]:
    """Return the reconstructions of the same images side by side, worst leak first."""
    groups = [
        rows
        for rows in zip(*(side.rows for side in sides), strict=True)
        if any(side.has_pictures(row) for side, row in zip(sides, rows, strict=True))
    ]
    groups.sort(key=lambda rows: max(leak(row) for row in rows), reverse=True)
    if not groups:
        return [], "No pictures were kept of the shared images."
    shown = groups[:_MAX_CARDS]
    note = "Sorted by the worst leak of any run; letters beside a name: recovered there."
    if left := len(sides[0].rows) - len(shown):
        note += f" {count(left, 'shared image')} not shown."
    return within_budget(lambda side: [_card(sides, rows, side) for rows in shown]), note


def _card(sides: Sequence[_Side], rows: Sequence[Row], size: int) -> Card:
    """Return the truth of one image and what each run made of it."""
    name = image_name(rows[0])
    pictures: list[Picture] = []
    for side, row in zip(sides, rows, strict=True):
        label = f"{side.letter} {number(row.get('psnr'), 1, 'dB')}"
        if not side.has_pictures(row):
            pictures.append(Picture(f"{label} (not kept)"))
            continue
        pair = load_pictures(side.run.pictures, *place(row))
        if not any(one.label == "Truth" for one in pictures):
            pictures.insert(0, picture(pair.truth, "Truth", f"{name}, the truth", size))
        if pair.reconstruction is None:
            pictures.append(Picture(f"{label} (none)"))
        else:
            words = f"{name}, reconstruction of {side.label}"
            pictures.append(picture(pair.reconstruction, label, words, size))
    finders = [s.letter for s, row in zip(sides, rows, strict=True) if row.get("recovered") == 1]
    badge = f"in {', '.join(finders)}" if finders else "not recovered"
    return Card(name, badge, bool(finders), pictures, {})
