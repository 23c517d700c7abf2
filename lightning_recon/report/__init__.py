"""Pages that people read, made from what runs, sweeps and audits leave behind."""

from collections.abc import Callable, Mapping
from pathlib import Path

from lightning_recon.errors import InputError
from lightning_recon.report.captured import write_audit_report
from lightning_recon.report.recommend import write_recommendation_report
from lightning_recon.report.run import verdict, write_report
from lightning_recon.report.sweep import write_sweep_report

__all__ = [
    "verdict",
    "write_again",
    "write_audit_report",
    "write_recommendation_report",
    "write_report",
    "write_sweep_report",
]

_PAGES: Mapping[str, Callable[[Path], Path]] = {
    "results.json": write_report,
    "audit.json": write_audit_report,
    "recommendation.json": write_recommendation_report,
    "results.csv": write_sweep_report,
}
"""By the file that tells what a folder is of."""


def write_again(folder: Path) -> Path:
    """Write ``report.html`` into the folder of a run, a sweep, a recommendation or an audit.

    Args:
        folder: that has ``results.json``, ``audit.json``, ``recommendation.json`` or
            ``results.csv``.

    Returns:
        The path of the page.

    Raises:
        InputError: if none of these is there, or a file cannot be understood.
    """
    for name, write in _PAGES.items():
        if (folder / name).is_file():
            return write(folder)
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}")
    raise InputError(
        f"{folder} has no results.json (a run), results.csv (a sweep), recommendation.json (of "
        "recommend) or audit.json (an audit of a capture); a run that was stopped writes it when "
        "it is resumed"
    )
