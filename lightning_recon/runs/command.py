"""Command lines as a person types them again, where their own classes are found, too."""

import os
import shlex
import sys
from collections.abc import Sequence

from lightning_recon.errors import program


def command_line(words: Sequence[str] | None = None) -> str:
    """Return a command in a shell's words, with the path on which own classes are found.

    Args:
        words: the command and its options; null: those of this process.
    """
    line = shlex.join([*program().split(), *(sys.argv[1:] if words is None else words)])
    path = os.environ.get("PYTHONPATH")
    return f"PYTHONPATH={shlex.quote(path)} {line}" if path else line
