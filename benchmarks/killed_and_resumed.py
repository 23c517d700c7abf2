r"""Kill a batch evaluation half-way, resume it, and compare it with one that was never stopped.

    python -m benchmarks.killed_and_resumed --root data/cifar10 --num-clients 200 --devices 2 \
        --data.init_args.split train

Further options go to ``test``.  Prints how many rows were compared and the largest difference, and
exits with 1 if there is any.
"""

import argparse
import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PROJECT = Path(__file__).parents[1]


def command(arguments: argparse.Namespace, logs: Path) -> list[str]:
    """Return the command line of the evaluation."""
    return [
        sys.executable,
        str(PROJECT / "cli.py"),
        "test",
        *("--config", str(PROJECT / "configs" / arguments.config)),
        *("--data.init_args.root", arguments.root),
        *("--data.init_args.num_clients", str(arguments.num_clients)),
        *("--trainer.accelerator", "cpu", "--trainer.strategy", "ddp"),
        *("--trainer.devices", str(arguments.devices)),
        *("--trainer.default_root_dir", str(logs)),
        *arguments.extra,
    ]


def rows(run: Path) -> list[dict[str, str]]:
    """Return the rows of a run's ``clients.csv``."""
    with (run / "clients.csv").open() as file:
        return list(csv.DictReader(file))


def num_records(run: Path) -> int:
    """Return how many clients a run has on disk."""
    files = (run / "records").glob("process*.jsonl")
    return sum(path.read_text().count("\n") for path in files)


def run_killed(full_command: list[str], run: Path, after: int) -> None:
    """Start an evaluation and kill all its processes once it has some records."""
    process = subprocess.Popen(full_command, start_new_session=True)
    while num_records(run) < after:
        if process.poll() is not None:
            raise SystemExit(f"the evaluation ended by itself, with exit code {process.returncode}")
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def main() -> int:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="ldp_cifar10.yaml", help="file in configs/")
    parser.add_argument("--root", required=True, help="of the data set")
    parser.add_argument("--num-clients", type=int, default=200)
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("lightning_logs/killed_and_resumed"))
    arguments, arguments.extra = parser.parse_known_args()
    folder = arguments.folder.absolute()
    if folder.exists():
        parser.error(f"{folder} exists; remove it or give another --folder")
    whole, stopped = folder / "whole", folder / "stopped"
    run = "lightning_logs/version_0"
    subprocess.run(command(arguments, whole), check=True)
    run_killed(command(arguments, stopped), stopped / run, arguments.num_clients // 2)
    survived = num_records(stopped / run)
    print(f"killed after {survived} of {arguments.num_clients} clients")
    resume = [sys.executable, str(PROJECT / "cli.py"), "test", "--resume", str(stopped / run)]
    subprocess.run(resume, check=True)
    pairs = list(zip(rows(whole / run), rows(stopped / run), strict=True))
    largest = max(
        abs(float(before[name]) - float(after[name]))
        for before, after in pairs
        for name in before
        if before[name] or after[name]
    )
    redone = num_records(stopped / run) - survived
    print(f"resumed with {redone} clients; {len(pairs)} rows, largest difference {largest:g}")
    return int(largest > 0)


if __name__ == "__main__":
    sys.exit(main())
