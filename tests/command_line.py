"""The real command line, in processes of its own."""

import subprocess
import sys
from pathlib import Path

CLI = Path(__file__).parents[1] / "cli.py"
TINY_RUN = {
    "model": {
        "class_path": "InvertingGradients",
        "init_args": {
            "iterations": 4,
            "target": {
                "class_path": "LeNet",
                "init_args": {"num_classes": 20, "image_size": 16},
            },
        },
    },
    "data": {
        "class_path": "SampleImagesDataModule",
        "init_args": {"batch_size": 1, "num_clients": 3, "image_size": 16, "num_public": 2},
    },
    "audit": {"null_controls": False},
}
"""A configuration: three clients of one small image, four iterations each."""


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
