"""What a user can mend: one line on the terminal, and the exit code."""

import errno
import os
import re
import signal
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

_NO_MEMORY = re.compile("out of memory|can't allocate memory|cannot allocate memory", re.IGNORECASE)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass
class Outcome:
    """What a command comes to."""

    exit_code: int = 0


@contextmanager
def report_bad_input() -> Iterator[Outcome]:
    """Turn what a user can mend into one line on the terminal, and an exit code that is not 0.

    That is 2 for input that cannot be used, and for a system that lacks room; 130 after Ctrl-C, as
    the shell has it.
    """
    outcome = Outcome()
    try:
        yield outcome
    except KeyboardInterrupt:
        print("error: stopped by Ctrl-C", file=sys.stderr)  # noqa: T201
        outcome.exit_code = 128 + signal.SIGINT
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
    if isinstance(error, OSError):
        name = error.filename
        if name is not None:
            return f"cannot use {Path(str(name)).absolute()}: {error.strerror}"
        if error.errno in _FULL:  # some library wrote
            return f"{error.strerror}"
    if isinstance(error, RuntimeError | MemoryError):
        said = " ".join(str(error).split())
        if isinstance(error, MemoryError) or _NO_MEMORY.search(said):
            return (
                f"out of memory ({said[:200] or 'MemoryError'}); use fewer images a client, fewer "
                "restarts or clients at once, or a smaller model"
            )
        if "closed by peer" in said:
            # one process has said what is wrong and left; the others only lose the connection
            if int(os.environ.get("LOCAL_RANK", "0")) == 0:
                from lightning_recon.runs.stopping import say_lost  # imports Lightning

                say_lost("another process ended; its message says why")
            return ""
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
