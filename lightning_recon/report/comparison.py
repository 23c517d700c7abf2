"""Several runs side by side on one page, compared on the images that they share.

Two means over different images differ by what the images are; the same image of the same client
under two attacks or defenses does not.  So all differences here are paired.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_recon.audit.results import Results
from lightning_recon.audit.scores import Row
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
from lightning_recon.report.page import (
    DASH,
    INTERVALS,
    count,
    interval,
    is_number,
    number,
    write_page,
)
from lightning_recon.report.pictures import load_pictures
from lightning_recon.report.settings import differing_settings
from lightning_recon.report.sides import (
    Pair,
    Side,
    differences_table,
    figures_table,
    held_together,
    read_runs,
)

_MAX_CARDS = 24
_SAME_NULL = 0.05  # dB: what rounding and devices may change


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
    sides, pairs = held_together(read_runs(folders))
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
        "figures": figures_table(sides),
        "differences": differences_table(pairs),
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


def _column(side: Side, metric: str) -> list[float]:
    return [row[metric] for row in side.rows if is_number(row.get(metric))]


def _verdict(sides: Sequence[Side]) -> str:
    """Return which run leaks most, and how certain that is, as one sentence."""
    means = {side.letter: _mean(_column(side, "psnr")) for side in sides}
    most, next_most = sorted(sides, key=lambda side: means[side.letter], reverse=True)[:2]
    difference = Pair(next_most, most).difference("psnr")
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


def _warnings(sides: Sequence[Side]) -> list[Finding]:
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


def _other_truth(first: Side, second: Side) -> str:
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


def _spread(pair: Pair) -> Chart:
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


def _cards(sides: Sequence[Side]) -> tuple[list[Card], str]:
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


def _card(sides: Sequence[Side], rows: Sequence[Row], size: int) -> Card:
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
