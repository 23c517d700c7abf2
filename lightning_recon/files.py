"""Paths as people write them, and files that no reader, or other process, meets half of."""

import csv
import hashlib
import io
import json
import math
import os
import re
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning_recon.errors import InputError

_TEMPORARY = ".tmp"


def expanded(path: str) -> Path:
    """Return an absolute path, with ``~`` and variables such as ``$HOME`` replaced.

    Args:
        path: as a person wrote it.

    Raises:
        InputError: a variable is not set, or there is no such user; unless a file has that name.
    """
    if not Path(path).exists():
        path = os.path.expandvars(path)
        if found := re.search(r"\$(?:\w+|\{\w+\})", path):
            raise InputError(f"the variable {found[0]} in the path {path} is not set; set it first")
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as error:
        raise InputError(f"there is no such user in the path {path}") from error


def meant(path: str) -> str:
    """Return a path as it stands, but absolute where it holds ``~`` or a variable.

    Args:
        path: as a person wrote it.

    Raises:
        InputError: see :func:`expanded`.
    """
    return str(expanded(path)) if path.startswith("~") or "$" in path else path


def run_folder(trainer: Any) -> Path:
    """Return the one folder of a run's outputs, be it logged by whom it may.

    That of its TensorBoard or CSV logger; other loggers keep no folder for each run, and then it is
    the trainer's root.  All processes ask at once, and are told the first one's.

    Args:
        trainer: of Lightning.
    """
    from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger  # no command waits for it

    own = [log.log_dir for log in trainer.loggers if isinstance(log, TensorBoardLogger | CSVLogger)]
    return Path(trainer.strategy.broadcast(str(own[0] if own else trainer.default_root_dir)))


def spoiled(path: Path) -> str | None:
    """Return what a file seems to be that should hold tensors and cannot be read; None: no idea.

    Args:
        path: of the file.
    """
    with path.open("rb") as file:
        start = file.read(512).lstrip()
    if not start:
        return "is empty; download it again"
    if start[:1] == b"<":
        return "is a web page, not the file that its address promises; download it with the link"
    if start.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, not the file itself; run git lfs pull"
    if start.startswith(b"PK") and not zipfile.is_zipfile(path):
        size = path.stat().st_size
        return f"breaks off after {size:,} bytes; download it again, to its end"
    return None


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal; it may be larger than the memory.

    Args:
        path: of the file.

    Raises:
        OSError: if it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file under a temporary name beside it, then rename it.

    Args:
        path: the file; its folder is made if it is missing.
        content: text is written as UTF-8.

    Raises:
        OSError: if the folder cannot be written; the file is then as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_TEMPORARY)
    temporary = Path(name)
    try:
        with naming(path), open(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave the name without the content
        # mkstemp keeps the file to its owner; an output is as open as the user's other files
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_temporaries(folder: Path) -> None:
    """Remove what :func:`write_atomically` left in processes that were killed.

    Args:
        folder: into which no process writes; the folders below it are looked through as well.
    """
    for path in folder.rglob(f".*{_TEMPORARY}"):
        path.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Within this context an error of the system says which file it is about.

    A full disk is told by ``write``, which knows no name.

    Args:
        path: of the file.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` as JSON; NaN and infinity, which JSON does not know, become null."""
    write_atomically(path, json.dumps(finite_json(content), indent=2, allow_nan=False) + "\n")


def finite_json(content: Any) -> Any:
    """Return content of JSON with None in the place of NaN and infinity."""
    if isinstance(content, Mapping):
        return {name: finite_json(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite_json(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the rows under the names of their keys; NaN, None and missing are empty cells."""
    text = io.StringIO()
    columns = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    if rows:
        writer.writeheader()
        writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    write_atomically(path, text.getvalue())


def _cell(value: Any) -> Any:
    is_nan = isinstance(value, float) and math.isnan(value)
    return "" if value is None or is_nan else value
