"""How far chance moves what Inverting Gradients ends with on a ConvNet: is ours under the peer's?

    python -m benchmarks.start_spread --cifar CIFAR10.npz [--images 50] [--runs first second peer]

An untrained ConvNet of width 16 in eval mode, one CIFAR-10 test image a client, label known.
``first``, ``second``: ours, 1,500 iterations, compiled, from two starts.  ``eager``: the first
start, not compiled.  ``strong``: the first start with total variation of the peer's strength.
``peer``: breaching's, 4,800 iterations, its own start.  Every image is a line of the output file.
Printed: the mean PSNR of a run, and of every pair of runs how much the second is better: mean,
standard deviation over images, the largest difference, and on how many images it is worse.
"""

import argparse
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.peer import Peer
from benchmarks.records import cifar, matched_psnr
from lightning_recon.attacks import InvertingGradients
from lightning_recon.clients import FedSGD
from lightning_recon.data import ClientDataModule
from lightning_recon.priors import AnisotropicTotalVariation
from lightning_recon.targets import ConvNet

# .2 on pixels of standard deviation about .25
PEER_WEIGHT = 0.8
RUNS = {
    "first": {"seed": 0, "compile": True},
    "second": {"seed": 1, "compile": True},
    "eager": {"seed": 0, "compile": False},
    "strong": {
        "seed": 0,
        "compile": True,
        "priors": [AnisotropicTotalVariation(PEER_WEIGHT)],
    },
}
ITERATIONS, PEER_ITERATIONS = 1500, 4800


def ours(data: ClientDataModule, run: str) -> Callable[[int], float]:
    """Return what gives the PSNR of an image."""
    attack = InvertingGradients(
        ConvNet(width=16), client=FedSGD(mode="eval"), iterations=ITERATIONS, **RUNS[run]
    )
    attack.bind(data.spec, data.public_images())

    def psnr(image: int) -> float:
        batch = data.client(image)
        with attack.computing():
            found = attack.reconstruct(attack.federation.play(batch, image))
        return matched_psnr(found.images, batch.images, torch.full(data.image_shape, 0.5))[0]

    return psnr


def theirs(data: ClientDataModule) -> Callable[[int], float]:
    """Return the same of the peer."""
    target = ConvNet(width=16).eval()

    def psnr(image: int) -> float:
        torch.manual_seed(image)
        batch = data.client(image)
        found, _ = Peer(target, batch.images, batch.labels, PEER_ITERATIONS).run()
        return matched_psnr(found, batch.images, torch.full(data.image_shape, 0.5))[0]

    return psnr


def main() -> None:
    """Attack, and print a line for each run and each pair."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cifar", required=True, help="an .npz with x_test, y_test and x_train")
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--runs", nargs="+", choices=[*RUNS, "peer"], default=["first", "second"])
    parser.add_argument("--output", type=Path, default=Path("start_spread.jsonl"))
    options = parser.parse_args()
    places = [[image] for image in range(options.images)]
    data = cifar(options, batch_size=1, num_clients=len(places), indices=places)
    lines = options.output.read_text().splitlines() if options.output.exists() else []
    done = {(one["run"], one["image"]): one["psnr"] for one in map(json.loads, lines)}
    found = {}
    for run in options.runs:
        psnr = theirs(data) if run == "peer" else ours(data, run)
        for image in range(options.images):
            if (run, image) not in done:
                done[run, image] = psnr(image)
                with options.output.open("a") as file:
                    one = {"run": run, "image": image, "psnr": done[run, image]}
                    file.write(json.dumps(one) + "\n")
        found[run] = np.array([done[run, image] for image in range(options.images)])
        print(f"{run}: {found[run].mean():.2f} dB over {options.images} images", flush=True)
    for one, other in itertools.combinations(options.runs, 2):
        change = found[other] - found[one]
        print(
            f"{other} over {one}: {change.mean():+.2f} dB, standard deviation "
            f"{change.std(ddof=1):.2f}, largest {np.abs(change).max():.1f}, worse on "
            f"{(change < 0).sum()} of {options.images}"
        )


if __name__ == "__main__":
    main()
