"""What a user can mend: one line on the terminal, and the exit code."""

import errno
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

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
    except (InputError, ArgumentError, ValueError, OSError) as error:
        message = _explain(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)  # noqa: T201
        outcome.exit_code = 2
    except (RuntimeError, MemoryError) as error:
        said = " ".join(str(error).split())
        if isinstance(error, MemoryError) or _NO_MEMORY.search(said):
            print(  # noqa: T201
                f"error: out of memory ({said[:200] or 'MemoryError'}); use fewer images a client, "
                "fewer restarts or clients at once, or a smaller model",
                file=sys.stderr,
            )
        elif "closed by peer" not in said:
            raise
        # one process has said what is wrong and left; the others only lose the connection
        elif int(os.environ.get("LOCAL_RANK", "0")) == 0:
            from lightning_recon.runs.stopping import say_lost  # imports Lightning

            say_lost("another process ended; its message says why")
        outcome.exit_code = 2


def _explain(error: Exception) -> str | None:
    """Return one line on what is wrong with the input; None if the error is not the input's."""
    if found := input_error_in(error):
        return " ".join(str(found).split())
    if isinstance(error, OSError):
        name = error.filename
        if name is None:  # some library wrote
            return f"{error.strerror}" if error.errno in _FULL else None
        return f"cannot use {Path(str(name)).absolute()}: {error.strerror}"
    return explain(str(error)) if isinstance(error, ArgumentError) else None
