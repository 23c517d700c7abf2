"""What an audit keeps of each client, on disk as soon as it is known.

A process appends one line of JSON per client to a file of its own, so that several write side by
side and a run that is killed loses the clients in progress only.  All processes must see the same
run folder.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lightning_recon.audit.scores import Row
from lightning_recon.errors import InputError
from lightning_recon.files import naming


class ClientRecord(NamedTuple):
    """The outcome of the attack on one client."""

    client: int
    rows: list[Row]
    """One per true image; none where there is no truth."""
    num_reconstructions: int
    notes: dict[str, float]
    """The attack's own."""
    controls: dict[str, dict[str, float]]
    """By null control: its ``psnr`` in dB, ``recovered`` where images could be, and ``failed`` (1)
    where the attack failed on it, so that the mean image counts."""
    curve: list[tuple[int, float]]
    """(iteration, objective)."""
    seconds: float
    failure: str | None
    """Why there is no reconstruction; the mean image counts for all images then."""
    elapsed: float = 0.0
    """Seconds that the run had taken, all its sessions together, when the client was done."""


def records_file(folder: Path, rank: int) -> Path:
    """Return the file that a process appends to."""
    return folder / "records" / f"process{rank:04d}.jsonl"


def append_record(folder: Path, rank: int, record: ClientRecord) -> None:
    """Append a record; the half line that a killed process may have left is cut off first."""
    path = records_file(folder, rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path), path.open("ab+") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(0)
        complete = file.read().rfind(b"\n") + 1 if end and not _ends_line(path) else end
        file.truncate(complete)
        file.write((json.dumps(record._asdict()) + "\n").encode())
        file.flush()
        os.fsync(file.fileno())


def read_records(folder: Path) -> list[ClientRecord]:
    """Return the records of all processes in the order of the clients, each client once.

    Raises:
        InputError: if a line other than a process' last cannot be read.
    """
    records: dict[int, ClientRecord] = {}
    for path in sorted((folder / "records").glob("process*.jsonl")):
        for record in _lines(path):
            records[record.client] = record
    return [records[client] for client in sorted(records)]


def _lines(path: Path) -> Iterator[ClientRecord]:
    with path.open() as file:
        for number, line in enumerate(file, 1):
            if not line.endswith("\n"):
                return  # the process was killed while it wrote
            try:
                fields: dict[str, Any] = json.loads(line)
                fields["curve"] = [tuple(point) for point in fields["curve"]]
                record = ClientRecord(**fields)
            except (ValueError, TypeError, KeyError) as error:
                raise InputError(
                    f"{path}, line {number} is no record of a client ({error}); remove the line, "
                    "and the client will be attacked again"
                ) from error
            yield record


def _ends_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
