"""The engine against a public one, as ratios in one process.

    pip install -r benchmarks/requirements.txt && python -m benchmarks [--quick]

Iterations per second and restart of Inverting Gradients (Geiping et al., NeurIPS 2020), ours and
breaching's, on the same model and gradient; then what Lightning adds to an iteration.  Every ratio
is the median over pairs that ran one right after the other.  Writes benchmarks/results/latest.csv.
"""

import argparse
import csv
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from torch import nn

from benchmarks.peer import Peer, is_installed
from lightning_recon.attacks import InvertingGradients
from lightning_recon.data import SampleImagesDataModule
from lightning_recon.targets import ConvNet, LeNet, Target, TorchvisionClassifier

RESULTS = Path(__file__).with_name("results") / "latest.csv"


class Case(NamedTuple):
    """One comparison."""

    name: str
    make_target: Callable[[int], Target]
    image_size: int
    restarts: int
    iterations: int
    is_quick: bool
    asked: float
    """The least ratio that we want."""


def _resnet18(num_classes: int) -> Target:
    return TorchvisionClassifier("resnet18", num_classes=num_classes)


def _convnet64(num_classes: int) -> Target:
    return ConvNet(num_classes, width=64)


CASES = [
    Case("LeNet 32x32, 1 restart", LeNet, 32, 1, 200, True, 2.5),
    Case("LeNet 32x32, 8 restarts", LeNet, 32, 8, 200, True, 8.0),
    Case("LeNet 32x32, 32 restarts", LeNet, 32, 32, 100, True, 14.0),
    Case("ConvNet64 32x32, 1 restart", _convnet64, 32, 1, 10, True, 1.3),
    Case("ResNet-18 32x32, 1 restart", _resnet18, 32, 1, 10, True, 1.3),
    Case("ResNet-18 224x224, 1 restart", _resnet18, 224, 1, 5, False, 1.35),
]


def _ours(case: Case, data: SampleImagesDataModule) -> tuple[Callable[[], float], Target]:
    """Return a function that gives the seconds of all iterations, compiled before."""
    attack = InvertingGradients(
        case.make_target(data.num_classes),
        num_restarts=case.restarts,
        iterations=case.iterations,
        compile=True,
    )
    attack.data = data
    attack.start_run()
    observation = attack.observe(data.client(0), 0)
    start, evidence = attack.initialize(observation)
    dummy = nn.Parameter(start.clone())
    optimizer, scheduler = attack._optimization([dummy])
    for _ in range(3):
        attack.iterate(dummy, evidence, optimizer, scheduler)

    def seconds() -> float:
        started = time.perf_counter()
        for _ in range(case.iterations):
            attack.iterate(dummy, evidence, optimizer, scheduler)
        return time.perf_counter() - started

    return seconds, attack.target


def compare(case: Case, pairs: int) -> tuple[float, float | None]:
    """Return iterations per second and restart, ours and the peer's, medians over pairs."""
    data = SampleImagesDataModule(batch_size=1, num_clients=1, image_size=case.image_size)
    seconds, target = _ours(case, data)
    batch = data.client(0)
    peer = Peer(target, batch.images, batch.labels, case.iterations) if is_installed() else None
    if peer is not None:
        peer.run()  # warm
    ours, theirs = [], []
    for _ in range(pairs):
        ours.append(case.restarts * case.iterations / seconds())
        if peer is not None:
            theirs.append(case.iterations / peer.run()[1])
    return statistics.median(ours), statistics.median(theirs) if theirs else None


def main() -> None:
    """Run all cases, print a line for each, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="without the largest models")
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    if not is_installed():
        print(
            "breaching is not installed: pip install -r benchmarks/requirements.txt; its column "
            "stays empty",
            file=sys.stderr,
        )
    rows = []
    for case in CASES:
        if options.quick and not case.is_quick:
            continue
        ours, peer = compare(case, options.pairs)
        ratio = None if peer is None else ours / peer
        rows.append(
            [
                case.name,
                f"{ours:.4g}",
                "" if peer is None else f"{peer:.4g}",
                "" if ratio is None else f"{ratio:.2f}",
                "iterations/s/restart",
            ]
        )
        asked = f"(asked {case.asked:g})"
        print(
            f"{case.name}: {ours:.4g} against {peer or 0:.4g} a second, ratio "
            f"{0 if ratio is None else ratio:.2f} {asked}",
            flush=True,
        )
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "ours", "peer", "ratio", "unit"])
        writer.writerows(rows)


if __name__ == "__main__":
    main()
