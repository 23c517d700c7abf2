"""The real command line, in processes of its own."""

import subprocess
import sys
from pathlib import Path

CLI = Path(__file__).parents[1] / "cli.py"


def run_cli(*args: str) -> subprocess.CompletedProcess[str]:
    """Run ``cli.py`` in the current folder, on one thread a process."""
    return subprocess.run(
        [sys.executable, str(CLI), *args], capture_output=True, text=True, check=False
    )


def run_processes(count: int, *args: str) -> subprocess.CompletedProcess[str]:
    """Run ``cli.py`` over several processes, which must succeed; they find a free port themselves.

    Mark the test ``alone``.
    """
    done = run_cli(*args, "--trainer.devices", str(count), "--trainer.strategy", "ddp")
    assert done.returncode == 0, done.stderr[-2000:]
    return done
