"""Input that cannot be used: one line on the terminal, and the exit code 2."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

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
    except (InputError, ArgumentError, ValueError, OSError) as error:
        message = _explain(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)  # noqa: T201
        outcome.exit_code = 2
    except RuntimeError as error:
        # one process has said what is wrong and left; the others only lose the connection
        if "closed by peer" not in str(error):
            raise
        if int(os.environ.get("LOCAL_RANK", "0")) == 0:
            print("error: another process ended; its message says why", file=sys.stderr)  # noqa: T201
        outcome.exit_code = 2


def _explain(error: Exception) -> str | None:
    """Return one line on what is wrong with the input; None if the error is not the input's."""
    if found := input_error_in(error):
        return " ".join(str(found).split())
    if isinstance(error, OSError):
        name = error.filename
        return (
            None if name is None else f"cannot use {Path(str(name)).absolute()}: {error.strerror}"
        )
    return explain(str(error)) if isinstance(error, ArgumentError) else None
