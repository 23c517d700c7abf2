"""What refiners gain on images of classes that they never saw, in simulated reconstructions.

    python -m benchmarks.refiners --root data/imagenet --split data/public
    python cli.py fit --config configs/train_refiner.yaml --data.init_args.root data/public
    python -m benchmarks.refiners --root data/imagenet --super-resolution PATH/weights.pth

The first makes a folder of links to all images but those of the classes that the first five
clients of seed 0 hold (80 images, 16 a client, as the attacks' configurations draw them), whose
folders are left empty so that labels keep their numbers. The last prints the PSNR on those 80.
"""

import argparse
import math
import time
from pathlib import Path

import torch

from lightning_recon.data import ImageNetDataModule
from lightning_recon.data.sources import FileSource
from lightning_recon.functional.image_quality import psnr, ssim
from lightning_recon.randomness import make_generator
from lightning_recon.refiners import (
    AverageRefiner,
    ChainedRefiner,
    ConditionalGenerator,
    Refiner,
    SuperResolution,
    UNetDenoiser,
)
from lightning_recon.refiners.base import decode, encode
from lightning_recon.targets import TorchvisionClassifier
from lightning_recon.training.losses import PerceptualLoss
from lightning_recon.training.refiner import simulate

LEVELS = (0.0, 0.02, 0.06, 0.1)
SCALE = 4
MEASURES = (("PSNR (dB)", 2), ("SSIM", 3), ("feature distance", 4))


def clients(root: str, number: int) -> ImageNetDataModule:
    """Return the first clients of seed 0: 16 images of 128x128 each."""
    data = ImageNetDataModule(root=root, batch_size=16, num_clients=number, image_size=128)
    data.setup()
    return data


def split(data: ImageNetDataModule, folder: Path) -> int:
    """Link all images but those of the clients' classes into a folder; return their number."""
    source = data.source
    assert isinstance(source, FileSource)
    held_out = {
        int(label) for client in range(data.num_clients) for label in data.client(client).labels
    }
    count = 0
    for place in range(len(source)):
        file = source.root / source.files[place][0]
        link = folder / source.files[place][0]
        link.parent.mkdir(parents=True, exist_ok=True)
        if source.label(place) not in held_out:
            link.symlink_to(file.absolute())
            count += 1
    return count


def refiners(arguments: argparse.Namespace) -> dict[str, Refiner]:
    """Return the refiners whose weights are given, and what the paper makes of them."""
    found: dict[str, Refiner] = {}
    generator, network = arguments.generator, arguments.super_resolution
    if arguments.denoiser:
        found["denoiser"] = UNetDenoiser(arguments.denoiser, width=arguments.width)
    if network:
        found["super-resolution"] = SuperResolution(network)
    if arguments.denoiser and network:
        found["denoiser, then super-resolution"] = ChainedRefiner(list(found.values()))
    if generator:
        found["generator"] = ConditionalGenerator(generator, width=arguments.width)
    if generator and network:
        best = found.get("denoiser, then super-resolution", found["super-resolution"])
        found["average of both branches"] = AverageRefiner([found["generator"], best])
    return found


def main() -> None:
    """Print the table, or make the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", required=True, help="folders by WordNet id")
    parser.add_argument("--clients", type=int, default=5)
    parser.add_argument("--split", type=Path, help="the folder to make, of links")
    parser.add_argument("--super-resolution", help="weights.pth of SuperResolution")
    parser.add_argument("--generator", help="weights.pth of ConditionalGenerator")
    parser.add_argument("--denoiser", help="weights.pth of UNetDenoiser")
    parser.add_argument("--width", type=int, default=8, help="of generator and denoiser")
    parser.add_argument("--squeezenet", help="ImageNet weights of SqueezeNet 1.0, for its features")
    arguments = parser.parse_args()
    data = clients(arguments.root, arguments.clients)
    if arguments.split:
        print(f"{split(data, arguments.split)} images for training at {arguments.split}")
        return
    batches = [data.client(client) for client in range(arguments.clients)]
    images = torch.cat([batch.images for batch in batches])
    labels = torch.cat([batch.labels for batch in batches])
    mean = data.public_images().mean(dim=0).expand_as(images)
    projected = decode(encode(images, SCALE), SCALE)
    print(f"{len(images)} images; mean of public images: {psnr(mean, images).mean():.2f} dB")
    print(f"best decoded latent: {psnr(projected, images).mean():.2f} dB\n")

    distance = None
    if arguments.squeezenet:
        classifier = TorchvisionClassifier("squeezenet1_0", weights=arguments.squeezenet)
        distance = PerceptualLoss(classifier)
    found = refiners(arguments)
    before = {}
    for level in LEVELS:
        generator = make_generator(0, "benchmark", "noise")
        before[level] = simulate(images, SCALE, torch.full((len(images),), level), generator)
    rows: dict[str, Refiner | None] = {"unrefined": None, **found}
    scores: dict[str, list[tuple[float, float, float]]] = {}
    for name, refiner in rows.items():
        start = time.perf_counter()
        with torch.no_grad():
            results = [
                before[level] if refiner is None else refiner(before[level], labels)
                for level in LEVELS
            ]
        spent = 1000 * (time.perf_counter() - start) / len(LEVELS) / len(images)
        print(f"{name}: {spent:.1f} ms an image")
        scores[name] = [
            (
                psnr(result, images).mean().item(),
                ssim(result, images).mean().item(),
                distance(result, images).item() if distance else math.nan,
            )
            for result in results
        ]
    for column, (measure, places) in enumerate(MEASURES):
        if distance is None and measure == MEASURES[-1][0]:
            continue
        print(f"\n| {measure}, at a noise of | " + " | ".join(f"{x:g}" for x in LEVELS) + " |")
        print("|---" * (len(LEVELS) + 1) + "|")
        for name, values in scores.items():
            cells = " | ".join(f"{value[column]:.{places}f}" for value in values)
            print(f"| {name} | {cells} |")


if __name__ == "__main__":
    main()
