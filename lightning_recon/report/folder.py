"""Reads a run again from its folder: ``results.json``, ``clients.csv``, ``config.yaml``."""

import csv
import math
from pathlib import Path
from typing import NamedTuple

from lightning_recon.audit.results import Results, read_results
from lightning_recon.audit.scores import Row
from lightning_recon.errors import InputError

_WHOLE = (
    *("client", "image", "index", "label", "matched", "recovered", "identified"),
    *("certified", "exact"),
)


class Run(NamedTuple):
    """What a run left behind."""

    folder: Path
    results: Results
    """``results.json``; figures that an early one lacks are computed from the rows."""
    rows: list[Row]
    """One per true image; NaN for an empty cell.  None at all without ``clients.csv``."""
    config: str
    """The text of ``config.yaml``, empty where there is none."""

    @property
    def pictures(self) -> Path:
        """The folder of the pictures."""
        return self.folder / "reconstructions"

    @property
    def name(self) -> str:
        """The experiment, or the folder's name."""
        return self.results.experiment or self.folder.name


def read_run(folder: Path) -> Run:
    """Read a run.

    Args:
        folder: where ``results.json`` lies, such as ``lightning_logs/version_0``.

    Raises:
        InputError: if there is no ``results.json``, or a file cannot be understood.
    """
    rows = read_rows(folder / "clients.csv")
    config = folder / "config.yaml"
    return Run(
        folder,
        read_results(folder / "results.json", rows),
        rows,
        config.read_text(encoding="utf-8", errors="replace") if config.is_file() else "",
    )


def read_rows(path: Path) -> list[Row]:
    """Read a table of numbers such as ``clients.csv``; an empty cell is NaN.

    Args:
        path: the file; one that is not there has no rows.

    Raises:
        InputError: if a cell is no number.
    """
    if not path.is_file():
        return []
    rows: list[Row] = []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        for line, cells in enumerate(csv.DictReader(file), 2):
            try:
                row = {name: float(cell or "nan") for name, cell in cells.items()}
            except (TypeError, ValueError) as error:
                raise InputError(
                    f"{path}, line {line} is no row of numbers under the header's names; run the "
                    "audit again"
                ) from error
            rows.append(
                {
                    name: int(value) if name in _WHOLE and math.isfinite(value) else value
                    for name, value in row.items()
                }
            )
    return rows
