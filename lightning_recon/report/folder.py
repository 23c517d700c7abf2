"""Reads a run again from its folder: ``results.json``, ``clients.csv``, ``config.yaml``."""

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from lightning_recon.audit.records import Origin, checked_records, configuration_hash
from lightning_recon.audit.results import Results, read_results
from lightning_recon.audit.scores import Row
from lightning_recon.documents import MAX_YAML_BYTES, parse_yaml, read_text
from lightning_recon.errors import InputError

_WHOLE = (
    *("client", "image", "index", "label", "matched", "recovered", "identified"),
    *("certified", "exact"),
)
_TEXTS = ("file",)


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
    results = read_results(folder / "results.json", rows)
    config = _config(folder)
    if config and (folder / "records").is_dir():
        _check_records(folder, config)
    return Run(folder, results, rows, config)


def _config(folder: Path) -> str:
    """Return the text of ``config.yaml``, which is shown whatever it says."""
    path = folder / "config.yaml"
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return file.read(MAX_YAML_BYTES).decode("utf-8", "replace")


def _check_records(folder: Path, config: str) -> None:
    """Raise InputError for a record that was changed, or that belongs to another run."""
    source = str(folder / "config.yaml")
    content = parse_yaml(config, source)
    for key in ("data", "init_args", "num_clients"):
        content = content.get(key) if isinstance(content, dict) else None
    num_clients = content if isinstance(content, int) else None
    for _ in checked_records(folder, Origin(configuration_hash(config, source)), num_clients):
        pass


def read_rows(path: Path) -> list[Row]:
    """Read a table of numbers such as ``clients.csv``; an empty cell is NaN, ``file`` is left out.

    Args:
        path: the file; one that is not there has no rows.

    Raises:
        InputError: if a cell is no number.
    """
    if not path.is_file():
        return []
    reader = csv.DictReader(io.StringIO(read_text(path)))
    rows: list[Row] = []
    try:
        rows += [_row(cells) for cells in reader]
    except (csv.Error, TypeError, ValueError, OverflowError) as error:
        line = max(reader.line_num, 1)
        raise InputError(
            f"{path}, line {line} is no row of numbers under the header's names; run the audit "
            "again"
        ) from error
    return rows


def _row(cells: Mapping[str, str]) -> Row:
    row = {name: float(cell or "nan") for name, cell in cells.items() if name not in _TEXTS}
    for name in _WHOLE:
        if math.isfinite(row.get(name, math.nan)):
            row[name] = int(row[name])
            if abs(row[name]) >= 2**53:
                raise ValueError(name)
    return row
