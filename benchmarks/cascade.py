"""What peeling can find at the most: the cascade of docs/exact.md by the gates alone.

    python -m benchmarks.cascade --root data/cifar10.npz [--clients N] [--sizes B ...]

The clients and networks of ``benchmarks.exact_table``, whose part ``peeling`` is held against this.
No gradient is computed: a row shows a sample if it lets that one alone through of those that are
left, whatever is shown is taken out, until nothing shows.  That is peeling in exact arithmetic.
The share of all images, with a 95 % interval over clients.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.exact_table import Sample, line
from lightning_recon.data.arrays import read_npz
from lightning_recon.targets import MLP

PUBLISHED = {64: 0.994, 128: 0.666, 256: 0.215, 300: 0.183}


def peeled(is_open: Tensor) -> float:
    """Return the share of N samples that is shown, by which of K rows let them through, N K."""
    is_left = torch.ones(len(is_open), dtype=torch.bool)
    while True:
        alone = is_open[is_left].sum(0) == 1
        shown = is_left & is_open[:, alone].any(1)
        if not shown.any():
            return 1 - float(is_left.double().mean())
        is_left &= ~shown


def client(sample: Sample, seed: int, size: int) -> float:
    """Return the share of one client's images."""
    images = sample.batch(seed, size).images.flatten(1)
    layer = MLP(10, 32, (1000,), first_std=0.5, seed=seed).get_submodule("layers.1")
    with torch.no_grad():
        return peeled(layer(images) > 0)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", required=True, help=".npz file of CIFAR-10 with x_train, y_train")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(PUBLISHED))
    arguments = parser.parse_args()
    images, labels = read_npz(Path(arguments.root), "train")
    sample = Sample(torch.from_numpy(images).permute(0, 3, 1, 2), torch.tensor(labels))
    heads = ("B", "clients", "cascade", "smallest", "largest", "published")
    line(heads)
    line(["---"] * len(heads))
    for size in arguments.sizes:
        found = [client(sample, 10 + number, size) for number in range(arguments.clients)]
        share = torch.tensor(found).double()
        error = 1.96 * float(share.std()) / len(found) ** 0.5
        cells = [f"{share.mean():.3f} ± {error:.3f}", f"{share.min():.3f}", f"{share.max():.3f}"]
        line([str(size), str(len(found)), *cells, str(PUBLISHED.get(size, "")) or "-"])


if __name__ == "__main__":
    main()
