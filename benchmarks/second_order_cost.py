"""What a linear model costs against image side and batch size, and beside a first-order iteration.

    python -m benchmarks.second_order_cost [--sides 16 32 64 128 224] [--batches 1 2 4 8 16]

The sigmoid LeNet, one gradient, labels known, random images: batches at side 16, and one image at
every side.  Printed a point: unknowns and equations; the seconds of a pair of products with the
Jacobian and with its transpose, of which a step by products takes some hundreds; of a linear model
with its Jacobian and the steps that it serves for, where one is made (6,144 unknowns at most); of
an iteration of Inverting Gradients, eager; and how many such iterations either of them costs.
Medians of --repeats; a linear model is timed once.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.second_order_networks import lenet
from lightning_recon.attacks import GaussNewtonInversion, InvertingGradients
from lightning_recon.attacks.matching.linear_model import LinearModel
from lightning_recon.attacks.optimization import OptimizationAttack
from lightning_recon.functional.damped_least_squares import products
from lightning_recon.updates import DataSpec, PrivateBatch

ITERATIONS = 5  # of the first order, that are timed together


def bound(attack: OptimizationAttack, batch: PrivateBatch) -> tuple[Tensor, object]:
    """Return where an attack on a batch's gradient begins, and what it reads of it."""
    number, *shape = batch.images.shape
    attack.bind(DataSpec((shape[0], shape[1], shape[2]), 10, number), batch.images[:0])
    return attack.initialize(attack.federation.play(batch, 0))


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Return the median seconds of some work."""
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def point(side: int, batch_size: int, repeats: int) -> str:
    """Return a row of the printed table."""
    torch.manual_seed(0)
    images, labels = torch.rand(batch_size, 3, side, side), torch.arange(batch_size) % 10
    masks = torch.ones(batch_size, 1, side, side, dtype=torch.bool)
    batch = PrivateBatch(images, labels, masks, torch.arange(batch_size))

    second = GaussNewtonInversion(lenet(side))
    start, equations = bound(second, batch)
    size = images[0].numel()
    model = LinearModel(equations, second.spectrum, size, 0)
    before = model.at(start.double())
    forward, backward = products(
        equations.residual,
        before.images,
        lambda numbers: second.spectrum.moved(numbers),
        lambda moves: second.spectrum.along(moves),
    )
    move = torch.ones(images.numel(), dtype=torch.float64)
    backward(forward(move))  # the first call is slower
    pair = seconds(lambda: backward(forward(move)), repeats)
    whole = None
    if images.numel() <= second.max_unknowns:
        whole = seconds(lambda: model.explicit(before, 1.0), 1)

    first = InvertingGradients(lenet(side), iterations=ITERATIONS)
    dummy, evidence = bound(first, batch)
    iteration = seconds(lambda: first.loop.run(dummy, evidence), repeats + 1) / ITERATIONS
    words = [
        *(str(side), str(batch_size), f"{images.numel():,}", f"{equations.number:,}"),
        *(f"{1e3 * pair:.1f}", "-" if whole is None else f"{whole:.1f}", f"{1e3 * iteration:.1f}"),
        *(f"{pair / iteration:.1f}", "-" if whole is None else f"{whole / iteration:,.0f}"),
    ]
    return f"| {' | '.join(words)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sides", nargs="+", type=int, default=[16, 32, 64, 128, 224])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 2, 4, 8, 16])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print("| side | B | unknowns | equations | pair, ms | linear model, s |", end="")
    print(" first-order iteration, ms | pair / iteration | linear model / iteration |")
    print("|" + "---|" * 9)
    for side in options.sides:
        print(point(side, 1, options.repeats), flush=True)
    for batch_size in options.batches[1:]:
        print(point(options.sides[0], batch_size, options.repeats), flush=True)


if __name__ == "__main__":
    main()
