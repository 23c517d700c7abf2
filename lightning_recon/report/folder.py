"""Reads a run again from its folder: ``results.json``, ``clients.csv``, ``config.yaml``."""

import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lightning_recon.audit.scores import Row, aggregate
from lightning_recon.errors import InputError

_WHOLE = ("client", "image", "index", "label", "matched", "recovered", "identified")


class Run(NamedTuple):
    """What a run left behind."""

    folder: Path
    results: dict[str, Any]
    """``results.json``; figures that it lacks are computed from the rows."""
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
        return str(self.results.get("experiment") or self.folder.name)


def read_run(folder: Path) -> Run:
    """Read a run.

    Args:
        folder: Where ``results.json`` lies, such as ``lightning_logs/version_0``.

    Raises:
        InputError: If there is no ``results.json``, or a file cannot be understood.
    """
    path = folder / "results.json"
    if not path.is_file():
        raise InputError(
            f"{folder} holds no results.json; name the folder of a finished run, such as "
            "lightning_logs/version_0"
        )
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is no JSON ({error}); run the audit again") from error
    if not isinstance(results, dict):
        raise InputError(f"{path} holds no object of names and values; run the audit again")
    rows = read_rows(folder / "clients.csv")
    config = folder / "config.yaml"
    return Run(
        folder,
        _completed(results, rows),
        rows,
        config.read_text(encoding="utf-8", errors="replace") if config.is_file() else "",
    )


def read_rows(path: Path) -> list[Row]:
    """Read a table of numbers such as ``clients.csv``; an empty cell is NaN.

    Args:
        path: The file; one that is not there has no rows.

    Raises:
        InputError: If a cell is no number.
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


def lookup(results: Mapping[str, Any] | None, *keys: str) -> Any:
    """Return the value at a path of keys, or None where the path ends early."""
    value: Any = results
    for key in keys:
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value


def epsilons(results: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the actual and the claimed epsilon, None where there is none."""
    privacy = lookup(results, "privacy")
    return lookup(privacy, "actual", "epsilon"), lookup(privacy, "claimed", "epsilon")


def _completed(results: dict[str, Any], rows: list[Row]) -> dict[str, Any]:
    """Return the results with the figures that an older file lacks, from the rows."""
    is_complete = "recall_ci_low" in results
    if is_complete or not rows or any(row.get("recovered") not in (0, 1) for row in rows):
        return results
    computed = aggregate(rows, int(lookup(results, "num_reconstructions") or 0))
    computed["clients_unrecovered"] = sorted(
        {int(row.get("client", 0)) for row in rows}
        - {int(row.get("client", 0)) for row in rows if row["recovered"]}
        - {failure["client"] for failure in lookup(results, "failures") or ()}
    )
    return _merged(computed, results)


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Return both, keys of dictionaries within included; where both have one, the second's."""
    merged = below | above
    for key in below.keys() & above.keys():
        if isinstance(below[key], dict) and isinstance(above[key], dict):
            merged[key] = _merged(below[key], above[key])
    return merged
