"""Reports, for people and for programs."""

import math
from collections.abc import Sequence
from typing import Any

from lightning_recon.lint.checking import words_of
from lightning_recon.lint.facts import Figure, Report

_SIGNS = {"error": "ERROR", "warning": "warning", "note": "note"}


def as_text(reports: Sequence[Report]) -> str:
    """Return reports for a terminal."""
    return "\n\n".join(_text(report) for report in reports)


def _text(report: Report) -> str:
    title = report.title
    if title != report.mechanism:
        title += f" ({report.mechanism})"
    lines = [f"{title}: {_verdict(report)}"]
    if report.claim is not None:
        claim = report.claim
        terms = f"{claim.level} level, {claim.adjacency}, {_rounds(claim.rounds)}"
        lines.append(
            f"  claimed: epsilon {claim.epsilon:.4g} at delta {claim.delta:g}, {terms} "
            f"({claim.rule})"
        )
    lines.append(f"  protects from: {report.protects_from}")
    lines += [f"  true: {line}" for line in _told(report.figures)]
    lines.append(f"  right one of 1000 candidates: with a probability of at most {report.rero:.4g}")
    lines.append(f"  bits an image that one round gives its reader: {_bits(report.bits_per_image)}")
    lines.append(f"  best reconstruction measured, for orientation: {report.best_psnr}")
    lines += [f"  {_SIGNS[one.severity]} {one.code}: {one.text}" for one in report.findings]
    return "\n".join(lines)


def _told(figures: Sequence[Figure]) -> list[str]:
    """Return the figures in words, those that are alike for both levels once."""
    records = {figure[1:] for figure in figures if figure.level == "record"}
    clients = {figure[1:] for figure in figures if figure.level == "client"}
    lines = []
    for figure in figures:
        if figure.level == "client":
            lines.append(_figure(figure, "client or record" if figure[1:] in records else "client"))
        elif figure[1:] not in clients:
            lines.append(_figure(figure, "record"))
    return lines


def _verdict(report: Report) -> str:
    if report.holds is None:
        return "nothing is claimed" if report.is_sound else "DOES NOT PROTECT"
    return "the claim holds" if report.holds else "THE CLAIM DOES NOT HOLD"


def _figure(figure: Figure, level: str) -> str:
    terms = f"{level}, {figure.adjacency}, {_rounds(figure.rounds)}"
    if math.isinf(figure.epsilon):
        return f"{terms}: {words_of(figure)}"
    return f"{terms}: {words_of(figure)} at delta {figure.delta:g} ({figure.rule})"


def _rounds(rounds: int) -> str:
    return "one round" if rounds == 1 else f"{rounds} rounds"


def _bits(bits: float) -> str:
    if math.isnan(bits):
        return "not known of such a channel"
    return "no limit: all that is sent" if math.isinf(bits) else f"{bits:,.4g} at most"


def as_json(reports: Sequence[Report]) -> list[dict[str, Any]]:
    """Return reports as JSON has them; infinity and what is not known are null."""
    return [
        {
            "title": report.title,
            "mechanism": report.mechanism,
            "protects_from": report.protects_from,
            "claimed": None if report.claim is None else report.claim._asdict(),
            "holds": report.holds,
            "sound": report.is_sound,
            "figures": [_finite(figure._asdict()) for figure in report.figures],
            "rero_1000": report.rero,
            "bits_per_image": _finite({"bits": report.bits_per_image})["bits"],
            "best_reconstruction": report.best_psnr,
            "findings": [one._asdict() for one in report.findings],
        }
        for report in reports
    ]


def _finite(content: dict[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in content.items()
    }
