"""What was found, for people and for programs."""

from typing import Any

from lightning_recon.detect.checking import Detection


def as_text(title: str, detection: Detection) -> str:
    """Return a detection for a terminal.

    Args:
        title: of the payload.
        detection: of it.
    """
    lines = [
        f"{title}: {detection.verdict.upper()} (score {detection.score:.2f}; .5 is suspicious)"
    ]
    for one in detection.findings:
        sign = "suspicious" if one.strength >= 1 else "note"
        lines.append(f"  {sign} {one.code} ({one.strength:.2g}x): {one.where}: {one.text}")
    if not detection.findings:
        lines.append("  nothing strange was found; that proves nothing (docs/defend.md)")
    return "\n".join(lines)


def as_json(title: str, detection: Detection) -> dict[str, Any]:
    """Return a detection as JSON has it.

    Args:
        title: of the payload.
        detection: of it.
    """
    return {
        "title": title,
        "verdict": detection.verdict,
        "score": detection.score,
        "findings": [one._asdict() for one in detection.findings],
        "statistics": detection.statistics,
    }
