"""What an audit keeps of each client, on disk as soon as it is known.

A process appends one line of JSON per client to a file of its own, so that several write side by
side and a run that is killed loses the clients in progress only.  All processes must see the same
run folder.

A line carries hashes of the configuration and of the data's list of files, and a checksum of
itself: what was changed by a slip, a bad disk or by mixing folders is refused on reading.  That is
no signature: who means to forge a record can make another checksum.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lightning_recon.audit.scores import Row
from lightning_recon.documents import decoded, parse_json, parse_yaml
from lightning_recon.errors import InputError
from lightning_recon.files import naming
from lightning_recon.schemas import MisfitError, conform, told


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
    powers: dict[str, list[float]] | None = None
    """What :func:`lightning_recon.audit.bits.bits_told` needs; None where nothing bounds that."""


class Origin(NamedTuple):
    """What a run's figures depend on, as hashes; empty: not known."""

    configuration: str = ""
    """Of :func:`configuration_hash`."""
    data: str = ""
    """Of the list of the data's files and of the clients' labels."""


UNKNOWN = Origin()
SAME = ("seed_everything", "model", "data", "audit", "trainer.precision")
"""The keys of a configuration that figures depend on."""
MAX_LINE_BYTES = 2**26
"""64 MiB: the record of a client takes 700 bytes an image."""
_SEAL = ', "sha256": "'
_SEALED = re.compile(rb'(\{.*), "sha256": "([0-9a-f]{16})"\}\n')
_PARTS = {"configuration": "configuration", "data": "list of files of its data"}
_REMEDY = "remove the line, and the client will be attacked again"


def hash_of(content: bytes) -> str:
    """Return the first 16 digits of the SHA-256: enough for slips, and no proof against forgery."""
    return hashlib.sha256(content).hexdigest()[:16]


def configuration_hash(text: str, source: str = "config.yaml") -> str:
    """Return the hash of all that figures depend on in a run's configuration.

    Args:
        text: of ``config.yaml``; its layout and comments do not count.
        source: what an error names.

    Raises:
        InputError: if it is no YAML, or above a bound of :mod:`lightning_recon.documents`.
    """
    content = parse_yaml(text, source)
    parts: dict[str, Any] = {}
    for key in SAME:
        part = content
        for name in key.split("."):
            part = part.get(name) if isinstance(part, dict) else None
        parts[key] = part
    return hash_of(json.dumps(parts, sort_keys=True, default=str).encode())


def records_file(folder: Path, rank: int) -> Path:
    """Return the file that a process appends to."""
    return folder / "records" / f"process{rank:04d}.jsonl"


def append_record(folder: Path, rank: int, record: ClientRecord, origin: Origin = UNKNOWN) -> None:
    """Append a record; the half line that a killed process may have left is cut off first.

    Args:
        folder: of the run.
        rank: of this process.
        record: of a client.
        origin: of the run that it belongs to.
    """
    path = records_file(folder, rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    body = json.dumps({**record._asdict(), **origin._asdict()})
    line = f'{body[:-1]}{_SEAL}{hash_of(body.encode())}"}}\n'
    with naming(path), path.open("ab+") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(0)
        complete = file.read().rfind(b"\n") + 1 if end and not _ends_line(path) else end
        file.truncate(complete)
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def read_records(
    folder: Path, origin: Origin = UNKNOWN, num_clients: int | None = None
) -> list[ClientRecord]:
    """Return the records of all processes in the order of the clients, each client once.

    A line without a checksum is of an earlier version, and is believed if it is of the schema;
    behind one with a checksum it is not.

    Args:
        folder: of the run.
        origin: what the records must say that they belong to, where it is known of both.
        num_clients: of the run; None: not known.

    Raises:
        InputError: naming the file and the line, if one but a process' last cannot be read, was
            changed, belongs to another run, or is of a client that does not exist.
    """
    records = {record.client: record for record in checked_records(folder, origin, num_clients)}
    return [records[client] for client in sorted(records)]


def checked_records(
    folder: Path, origin: Origin = UNKNOWN, num_clients: int | None = None
) -> Iterator[ClientRecord]:
    """Yield the records of :func:`read_records` as they stand, one that was written again too."""
    for path in sorted((folder / "records").glob("process*.jsonl")):
        for number, (record, found) in enumerate(_lines(path), 1):
            where = f"{path}, line {number}"
            for name, ours, theirs in zip(Origin._fields, origin, found, strict=True):
                if ours and theirs and ours != theirs:
                    raise InputError(
                        f"{where} was made with another {_PARTS[name]} than the run has now; put "
                        "back what was changed, or start another run"
                    )
            if num_clients is not None and record.client >= num_clients:
                raise InputError(
                    f"{where} is of client {record.client}, but the run has {num_clients}; "
                    f"{_REMEDY}"
                )
            yield record


def checked_record(content: Any) -> ClientRecord:
    """Return a record as JSON or a checkpoint holds it.

    Args:
        content: its fields by name.

    Raises:
        MisfitError: if a field is of another type, or out of its range.
    """
    record: ClientRecord = conform(ClientRecord, content)
    if record.client < 0:
        raise MisfitError(("client",), f"is {record.client}")
    if record.num_reconstructions < 0:
        raise MisfitError(("num_reconstructions",), f"is {record.num_reconstructions}")
    for place, row in enumerate(record.rows):
        if row.keys() != record.rows[0].keys():
            raise MisfitError(("rows", place), "has other columns than the first row")
        for name in ("image", "index", "label"):
            value = row.get(name, 0)
            if value < 0 or value != int(value):
                raise MisfitError(("rows", place, name), f"is {value}")
    return record


def _lines(path: Path) -> Iterator[tuple[ClientRecord, Origin]]:
    is_sealed, number = False, 0
    with path.open("rb") as file:
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            where = f"{path}, line {number}"
            if len(line) > MAX_LINE_BYTES:
                raise InputError(f"{where} has more than {MAX_LINE_BYTES:,} bytes; {_REMEDY}")
            if not line.endswith(b"\n"):
                return  # the process was killed while it wrote
            sealed = _SEALED.fullmatch(line)
            if sealed and hash_of(sealed[1] + b"}") != sealed[2].decode():
                raise InputError(f"{where} was changed: its checksum is not its own; {_REMEDY}")
            if is_sealed and not sealed:
                raise InputError(f"{where} has no checksum, as those before it have; {_REMEDY}")
            is_sealed = sealed is not None
            try:
                text = decoded(sealed[1] + b"}" if sealed else line, str(path), number)
                yield _parsed(text)
            except (ValueError, MisfitError) as error:
                place = f"{told(error.place)} " if isinstance(error, MisfitError) else ""
                raise InputError(
                    f"{where} is no record of a client ({place}{error}); {_REMEDY}"
                ) from error


def _parsed(text: str) -> tuple[ClientRecord, Origin]:
    content = parse_json(text, keeps_nan=True)
    if not isinstance(content, dict):
        raise MisfitError((), f"a {type(content).__name__} and no object")
    more = content.keys() - {*ClientRecord._fields, *Origin._fields}
    if more:
        raise MisfitError((), f"there is no key {sorted(more)[0][:40]}")
    origin: Origin = conform(Origin, content)
    return checked_record(content), origin


def _ends_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
