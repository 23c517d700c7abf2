"""Command lines as a person types them again, where their own classes are found, too."""

import os
import shlex
import sys
from collections.abc import Sequence


def command_line(words: Sequence[str] | None = None) -> str:
    """Return a command in a shell's words, with the path on which own classes are found.

    Args:
        words: what stands after ``python``; null: this process' own.
    """
    line = shlex.join(["python", *(sys.argv if words is None else words)])
    path = os.environ.get("PYTHONPATH")
    return f"PYTHONPATH={shlex.quote(path)} {line}" if path else line
