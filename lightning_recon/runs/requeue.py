"""SLURM: a ``fit`` that is requeued goes on in its own folder, and needs no other command.

``sbatch --requeue --signal=USR1@60`` has SLURM send the signal a minute before the time is up.
"""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from lightning_recon.files import write_atomically

SIGNAL = getattr(signal, "SIGUSR1", signal.SIGTERM)  # Windows has none
_FILE = ".slurm_job"


def job() -> str | None:
    """Return the number of the job of SLURM that this process runs in; None outside of any."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    if array is not None:
        return f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID', '0')}"
    return os.environ.get("SLURM_JOB_ID")


def remember(folder: Path) -> None:
    """Note in the folder of a run which job runs it, and with which words; again: do nothing."""
    path = folder / _FILE
    if job() is not None and not path.exists():
        write_atomically(path, _note(sys.argv[1:]))


def requeued(root: Path, words: Sequence[str]) -> str | None:
    """Return the checkpoint with which a ``fit`` goes on that SLURM has started again.

    Args:
        root: that ``lightning_logs`` lies in.
        words: the command and its options.
    """
    if words[:1] != ["fit"] or os.environ.get("SLURM_RESTART_COUNT", "0") == "0" or not job():
        return None
    for path in sorted(root.glob(f"*/*/{_FILE}")):
        checkpoint = path.parent / "checkpoints" / "last.ckpt"
        noted = path.read_text(encoding="utf-8", errors="replace")
        if noted == _note(words) and checkpoint.is_file():
            return str(checkpoint)
    return None


def ask() -> None:
    """Have SLURM start the job again; say so if it cannot be asked."""
    number = job()
    try:
        subprocess.run(["scontrol", "requeue", str(number)], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"job {number} could not be requeued: {error}", file=sys.stderr)  # noqa: T201


def _note(words: Sequence[str]) -> str:
    return f"{job()}\n{shlex.join(words)}\n"
