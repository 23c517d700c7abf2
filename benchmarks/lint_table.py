"""What twelve real configurations guarantee: the table of docs/lint.md.

A minute, no data.  Run from the repository's root::

    python -m benchmarks.lint_table
"""

import math
from pathlib import Path

from lightning_recon.lint.checking import check
from lightning_recon.lint.facts import Report
from lightning_recon.lint.reading import from_file

CONFIGURATIONS = Path(__file__).parents[1] / "examples/lint.yaml"


def main() -> None:
    """Print the table."""
    print("| configuration | claimed | rounds | one round | all rounds | verdict | found |")
    print("|---|---|---|---|---|---|---|")
    for entry in from_file(CONFIGURATIONS):
        report = check(entry)
        print(f"| {' | '.join(row(entry.title, report))} |", flush=True)


def row(title: str, report: Report) -> list[str]:
    """Return the cells of one configuration."""
    claim = report.claim
    level = "record" if report.mechanism == "Opacus" else "client"
    rounds = max(one.rounds for one in report.figures)
    verdict = {True: "holds", False: "does not hold", None: "no claim"}[report.holds]
    if report.holds is None and not report.is_sound:
        verdict = "no privacy"
    codes = [one.code for one in report.findings if one.severity != "note"]
    return [
        title,
        "none" if claim is None else f"{claim.epsilon:.3g}",
        str(rounds),
        pair(report, level, 1),
        pair(report, level, rounds),
        verdict,
        ", ".join(code for code in codes if code != "claim-does-not-hold") or "nothing",
    ]


def pair(report: Report, level: str, rounds: int) -> str:
    """Return the epsilons of both adjacencies."""
    found = [one for one in report.figures if (one.level, one.rounds) == (level, rounds)]
    words = ["none" if math.isinf(one.epsilon) else f"{one.epsilon:,.3g}" for one in found]
    bound = "" if found[0].bound != "at least" else "at least "
    return f"{bound}{words[0]} / {words[1]}"


if __name__ == "__main__":
    main()
