"""Input that cannot be used: one line on the terminal, and the exit code 2."""

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError

from lightning_recon.errors import InputError, input_error_in
from lightning_recon.runs.refusals import explain


@dataclass
class Outcome:
    """What a command comes to."""

    exit_code: int = 0


@contextmanager
def report_bad_input() -> Iterator[Outcome]:
    """Turn input that cannot be used into one line on the terminal and the exit code 2."""
    outcome = Outcome()
    try:
        yield outcome
    except Exception as error:
        message = _explain(error)
        if message is None:
            raise
        if message:
            print(f"error: {message}", file=sys.stderr)  # noqa: T201
        outcome.exit_code = 2


def _explain(error: Exception) -> str | None:
    """Return one line on what is wrong with the input; None if the error is not the input's.

    The line is empty where another process prints it.
    """
    is_input = isinstance(error, InputError | ArgumentError | ValueError | OSError)
    if is_input and (found := input_error_in(error)):
        return " ".join(str(found).split())
    if isinstance(error, ArgumentError):
        return explain(str(error))
    if isinstance(error, OSError) and error.filename is not None:
        return f"cannot use {Path(str(error.filename)).absolute()}: {error.strerror}"
    if isinstance(error, RuntimeError) and "closed by peer" in str(error):
        # one process has said what is wrong and left; the others only lose the connection
        is_first = int(os.environ.get("LOCAL_RANK", "0")) == 0
        return "another process ended; its message says why" if is_first else ""
    return _explain_own_data(error)


def _explain_own_data(error: Exception) -> str | None:
    """Return one line on what failed in somebody's own data set; None if it failed elsewhere."""
    data = sys.modules.get("lightning_recon.data")  # no data were made before it was imported
    if data is None:
        return None
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        owner = frame.f_locals.get("self")
        is_data = isinstance(owner, data.AuditDataModule | data.ImageSource)
        file = frame.f_code.co_filename
        if is_data and file in _own_files(type(owner)):
            name = f"{type(owner).__module__}.{type(owner).__qualname__}.{frame.f_code.co_name}"
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            return f"{name} failed with {reason} ({file}, line {line}); correct it there"
    return None


def _own_files(found: type[Any]) -> set[str]:
    """Return the files of a class and its bases, those of the package left out."""
    own = (base for base in found.__mro__ if not base.__module__.startswith("lightning_recon."))
    return {getattr(sys.modules.get(base.__module__), "__file__", None) or "" for base in own}
