"""Seconds and memory of an iteration against batch size, restarts and image side.

Inverting Gradients, eager, on a small ConvNet; every point is a process of its own.  Memory is what
the process's peak rises by, from the attack as it was built to the end of its iterations.  The
exponents are least squares of the logarithms: 1 is proportional.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np
import torch

from benchmarks.records import ROOT, Records, Row, environment, parser, records_of
from lightning_recon.attacks import InvertingGradients
from lightning_recon.targets import ConvNet
from lightning_recon.updates import DataSpec, PrivateBatch

AXES = {
    "batch size": [1, 2, 4, 8, 16, 32, 64],
    "restarts": [1, 2, 4, 8, 16, 32],
    "image side": [32, 64, 96, 128, 160, 192, 224],
}
QUICK = {"batch size": [1, 8], "restarts": [1, 8], "image side": [32, 64]}
SMALLEST = {"batch size": 1, "restarts": 1, "image side": 32}
CLEAR = Path("/proc/self/clear_refs")  # Linux; elsewhere the peak counts from the start
ITERATIONS, REPEATS = 2, 5


def point(batch_size: int, restarts: int, side: int) -> dict[str, float]:
    """Return the median seconds of an iteration, and the bytes that the peak memory rises by."""
    torch.manual_seed(0)
    target = ConvNet(width=16)
    attack = InvertingGradients(target, num_restarts=restarts, iterations=ITERATIONS)
    attack.bind(DataSpec((3, side, side), 10, batch_size), torch.zeros(0, 3, side, side))
    images, labels = torch.rand(batch_size, 3, side, side), torch.arange(batch_size) % 10
    masks = torch.ones(batch_size, 1, side, side, dtype=torch.bool)
    batch = PrivateBatch(images, labels, masks, torch.arange(batch_size))
    _forget_peak()
    baseline = _peak()
    start, evidence = attack.initialize(attack.federation.play(batch, 0))
    seconds = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        attack.loop.run(start, evidence)
        seconds.append((time.perf_counter() - started) / ITERATIONS)
    return {"seconds": median(seconds[1:]), "bytes": _peak() - baseline}


def _forget_peak() -> None:
    """Begin the peak anew at what is held now; ru_maxrss may be that of the parent process."""
    if CLEAR.exists():
        CLEAR.write_text("5")


def _peak() -> int:
    """Return the most bytes that were resident."""
    if CLEAR.exists():
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measured(axis: str, value: int) -> dict[str, float]:
    """Return a point, measured in a process of its own."""
    sizes = {**SMALLEST, axis: value}
    command = [sys.executable, "-m", "benchmarks.scaling", "--point", *map(str, sizes.values())]
    finished = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    found: dict[str, float] = json.loads(finished.stdout.splitlines()[-1])
    return found


def exponent(x: list[int], y: list[float]) -> float:
    """Return the slope of log y against log x, by least squares."""
    return float(np.polyfit(np.log(x), np.log(np.maximum(y, 1.0e-9)), 1)[0])


def run(options: argparse.Namespace, records: Records) -> Iterator[Row]:
    """Give a row for every point, and one for every exponent."""
    for axis, values in (QUICK if options.quick else AXES).items():
        points = [
            records.get(
                f"scaling {axis} {value}, {environment()}",
                lambda axis=axis, value=value: measured(axis, value),
            )
            for value in values
        ]
        for value, found in zip(values, points, strict=True):
            yield Row(f"scaling: {axis} {value}, time", 1e3 * found["seconds"], unit="ms/iteration")
            yield Row(f"scaling: {axis} {value}, memory", found["bytes"] / 1e6, unit="MB")
        for name in ("seconds", "bytes"):
            slope = exponent(values, [found[name] for found in points])
            word = "time" if name == "seconds" else "memory"
            yield Row(f"scaling: exponent of {axis}, {word}", slope, unit="exponent")


def main() -> None:
    """Run as a command of its own, or measure one point for it."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--point", type=int, nargs=3, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.point:
        print(json.dumps(point(*options.point)))
        return
    records = records_of(options)
    records.publish(run(options, records))


if __name__ == "__main__":
    main()
