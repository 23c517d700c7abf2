"""The local estimate where no matrix is made: seconds, and what is told, one client a row.

    python -m benchmarks.estimate_large --cifar CIFAR10.npz --root IMAGENET [--rows lenet-128 ...]

Untrained networks, one image a client, noise of 1 % of the gradient's norm (``--noise noise-10``:
10 %), defense and labels known, 256 public images; in eval mode.  ``lenet-128``: a photograph of
the ImageNet folder at 128x128; ``resnet18-32``: a CIFAR-10 test image, ResNet-18 with a 3x3 stem.
"""

import argparse
import time

import torch
from torch import Tensor

from benchmarks.quickstart import images_of
from benchmarks.second_order import DEFENSES, NUM_PUBLIC, scale_noise
from benchmarks.second_order_networks import lenet, small_stem
from lightning_recon.attacks import GaussNewtonInversion
from lightning_recon.attacks.features.spectrum import Spectrum
from lightning_recon.audit.local_estimate import NUM_PRODUCTS, local_estimate
from lightning_recon.clients import FedSGD
from lightning_recon.data import ImageNetDataModule
from lightning_recon.functional.image_quality import decibels
from lightning_recon.updates import DataSpec, PrivateBatch

ROWS = {
    "lenet-32": (lenet, 32),
    "lenet-64": (lenet, 64),
    "lenet-128": (lenet, 128),
    "resnet18-32": (small_stem, 32),
}


def main() -> None:
    """Print a line for each row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cifar", required=True, help="an .npz with x_test, y_test and x_train")
    parser.add_argument("--root", required=True, help="ImageNet, folders by WordNet id")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--noise", choices=("noise", "noise-10"), default="noise")
    parser.add_argument("--products", type=int, default=NUM_PRODUCTS, help="pairs of an estimate")
    parser.add_argument("--client", type=int, default=0, help="number of its image")
    options = parser.parse_args()
    print("| row | noise | unknowns | equations | told | mean image | estimate | s |")
    print("|" + "---|" * 8)
    for name in options.rows:
        make, size = ROWS[name]
        image, label, public = (
            cifar(options.cifar, options.client)
            if size == 32
            else photograph(options.root, size, options.client)
        )
        attack = GaussNewtonInversion(
            make(size),
            client=FedSGD(mode="eval"),
            defenses=DEFENSES[options.noise](),
            adaptive=True,
        )
        attack.bind(DataSpec((3, size, size), 10, 1), public)
        masks = torch.ones_like(image[:, :1], dtype=torch.bool)
        batch = PrivateBatch(image, label, masks, torch.zeros(1, dtype=torch.int64))
        scale_noise(attack, batch)
        observation = attack.federation.play(batch, options.client)
        started = time.process_time()
        found = local_estimate(
            observation, batch, Spectrum(public.double()), num_products=options.products
        )
        words = [
            *(name, options.noise, str(found.num_unknowns), str(found.num_equations)),
            f"{found.num_told:.0f}",
            *(f"{decibels(float(mse)):.1f}" for mse in (found.prior_mse, found.mse)),
            f"{time.process_time() - started:.0f}",
        ]
        print(f"| {' | '.join(words)} |", flush=True)


def cifar(path: str, client: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return a test image, its label, and public images."""
    test, labels, public = images_of(path)
    here = slice(client, client + 1)
    return test[here], labels[here], public[:NUM_PUBLIC]


def photograph(root: str, size: int, client: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return a photograph, a label among ten, and public ones."""
    data = ImageNetDataModule(
        root=root, batch_size=1, image_size=size, num_public=NUM_PUBLIC, num_clients=client + 1
    )
    data.setup()
    batch = data.client(client)
    return batch.images, batch.labels % 10, data.public_images()


if __name__ == "__main__":
    main()
