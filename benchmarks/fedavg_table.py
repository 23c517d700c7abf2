"""The table of docs/local_steps.md: what local steps cost SpectralLDPAttack.

    python -m benchmarks.fedavg_table --root data/imagenet --clients 20
    python -m benchmarks.fedavg_table --root data/imagenet --cells adamw --sigmas 0.002

Batches of 16 in shuffled minibatches of 4, one clip of the delta to 10, Gaussian noise; a line a
protocol, against one gradient at the same clip and noise on the same clients.  An image that does
not come back counts with the public mean image.  "own" is the target's part of the squared norm of
the delta before the clip.  Beside each line stands the null control: what is put out of noise
alone.  Without --shrinkage both sides decode by Wiener's filter.  Each client's figures are kept
in --records, and are not measured again.  --figure draws the price over the number of steps.
"""

import argparse
import json
import math
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.coded_table import BATCH_SIZE, shown
from benchmarks.records import Records
from benchmarks.spectral_table import line
from lightning_recon.attacks import SpectralLDPAttack
from lightning_recon.clients import Client, FedAvg, FedAvgAdamW, FedSGD
from lightning_recon.data import ImageNetDataModule, MaskFolder
from lightning_recon.defenses import ClipL2, Defense, GaussianNoise
from lightning_recon.functional.image_quality import psnr
from lightning_recon.targets import ConvNet, Target, TorchvisionClassifier
from lightning_recon.updates import Update

CLIP_NORM = 10.0
STEPS = {"1 epoch": (1, 4), "2 epochs": (2, 4), "5 epochs": (5, 4), "10 full": (10, None)}


class OwnPart(Defense):
    """No defense: remembers which part of an update's squared norm is the target's own."""

    share = 0.0

    def forward(self, update: Update, generator: torch.Generator) -> Update:
        """Return the update as it is."""
        if all(name in ("head", "rows") or name.startswith("model.") for name in update):
            sizes = {
                name: float(torch.linalg.vector_norm(part).double().square())
                for name, part in update.items()
                if name.startswith("model.") or not hasattr(part, "squared_norm")
            }
            own = sum(size for name, size in sizes.items() if name.startswith("model."))
            self.share = own / max(sum(sizes.values()), 1e-30)
        return update

    def bind(self, norm_bound: float | None) -> float | None:
        """Return the same bound."""
        return norm_bound


def protocols(kind: str) -> dict[str, Client]:
    """Return the protocols to measure, by name; one gradient comes first."""
    found: dict[str, Client] = {"one gradient": FedSGD()}
    if kind == "adamw":
        found["AdamW, 2 epochs, lr .001"] = FedAvgAdamW(1e-3, epochs=2, minibatch_size=4)
        return found
    rates = (0.1,) if kind == "few" else (0.1, 0.01)
    for name, (epochs, size) in STEPS.items():
        for rate in rates:
            for momentum in (0.0, 0.9):
                key = f"{name}, lr {rate:g}, momentum {momentum:g}"
                found[key] = FedAvg(rate, epochs, size, momentum, weight_decay=5e-4)
    return found


def make_target(name: str, weights: str | None) -> Target:
    """Return the target: a small network of ours, or one of torchvision."""
    if name == "convnet":
        return ConvNet(num_classes=1000, width=8)
    return TorchvisionClassifier(name=name, weights=weights)


def measure(
    attack: SpectralLDPAttack, data: ImageNetDataModule, client: int, blank: Tensor
) -> dict[str, object]:
    """Return the figures of one client."""
    batch = data.client(client)
    with attack.computing():
        images, _ = attack.initialize(attack.federation.play(batch, client))
        (own,) = (part for part in attack.defenses if isinstance(part, OwnPart))
        share = own.share
        nothing, _ = attack.initialize(attack.federation.play_noise(batch.labels, client))
    return {
        "psnr": psnr(shown(images, batch.images, blank), batch.images).tolist(),
        "mean_image": psnr(blank.expand_as(batch.images), batch.images).tolist(),
        "put_out": len(images),
        "of_noise": len(nothing),
        "own": share,
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default="data/imagenet", help="ImageNet, folders by WordNet id")
    parser.add_argument("--masks", help="folder with subject masks; without: whole images")
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="number of the first client")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--target", default="resnet18", help="convnet, or torchvision's name")
    parser.add_argument("--weights", help="of a trained target")
    parser.add_argument("--cells", choices=["few", "all", "adamw"], default="few")
    parser.add_argument("--only", nargs="+", default=[""], help="protocols that hold such a text")
    parser.add_argument("--payload-class", choices=["A", "B"], default="B")
    parser.add_argument("--sigmas", type=float, nargs="+", default=[0.002, 0.02])
    parser.add_argument("--shrinkage", type=int, default=0, help="steps of training the decoder")
    parser.add_argument("--records", type=Path, default=Path("fedavg_table.jsonl"))
    parser.add_argument("--figure", type=Path, help="a picture to draw, .svg or .png")
    arguments = parser.parse_args()
    records = Records(arguments.records)
    data = ImageNetDataModule(
        root=arguments.root,
        batch_size=BATCH_SIZE,
        num_clients=arguments.first + arguments.clients,
        num_public=64,
        image_size=arguments.image_size,
        masks=MaskFolder(arguments.masks) if arguments.masks else None,
    )
    data.setup()
    public = data.public_images()
    clients = range(arguments.first, arguments.first + arguments.clients)
    names = ["sigma", "protocol", "PSNR", "price (dB)", "worst", "mean image", "put out of 16"]
    names += ["put out of noise", "own"]
    line(names)
    line(["---"] * len(names))
    settings = {name: value for name, value in vars(arguments).items() if name in _DEPENDS}
    settings["drawn"] = data.num_clients  # the public images are those of no client
    prices: list[Price] = []
    for sigma in arguments.sigmas:
        reference = 0.0
        for name, client in protocols(arguments.cells).items():
            is_wanted = any(text in name for text in arguments.only)
            if name != "one gradient" and not is_wanted:
                continue
            attack = SpectralLDPAttack(
                make_target(arguments.target, arguments.weights),
                client,
                [OwnPart(), ClipL2(CLIP_NORM), GaussianNoise(sigma)],
                shrinkage_steps=arguments.shrinkage,
                payload_class=arguments.payload_class,
            )
            attack.bind(data.spec)
            is_bound = False
            found = []
            for number in clients:
                key = json.dumps([settings, sigma, name, number], default=str)

                def one(number: int = number, attack: SpectralLDPAttack = attack) -> object:
                    nonlocal is_bound
                    if not is_bound:
                        attack.bind(data.spec, public)
                        is_bound = True
                    return measure(attack, data, number, public.mean(0))

                found.append(records.get(key, one))
            scores = torch.tensor([record["psnr"] for record in found])
            reference = reference or float(scores.mean())
            if isinstance(client, FedAvg):
                steps = client.num_steps(BATCH_SIZE)
                prices.append(Price(sigma, name, steps, reference - float(scores.mean())))
            line(
                [
                    f"{sigma:g}",
                    name,
                    f"{scores.mean():.2f}",
                    f"{reference - scores.mean():.2f}",
                    f"{scores.min():.2f}",
                    f"{torch.tensor([record['mean_image'] for record in found]).mean():.2f}",
                    f"{_mean(found, 'put_out'):.2f}",
                    f"{_mean(found, 'of_noise'):.2f}",
                    f"{_mean(found, 'own'):.1e}",
                ]
            )

    if arguments.figure:
        draw(arguments.figure, prices)


class Price(NamedTuple):
    """What local steps cost."""

    sigma: float
    protocol: str
    steps: int
    decibels: float


def draw(path: Path, prices: list[Price]) -> None:
    """Draw the price over the number of steps, a line a noise and kind of minibatch."""
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    plot = figure.add_subplot()
    lines: dict[tuple[float, bool], dict[int, float]] = {}
    for price in prices:  # momenta that cost the same lie on one point
        line_of = lines.setdefault((price.sigma, "full" in price.protocol), {})
        line_of[price.steps] = max(price.decibels, line_of.get(price.steps, -math.inf))
    for (sigma, is_full), points in lines.items():
        kind = "whole batches" if is_full else "minibatches of 4"
        ordered = sorted(points.items())
        plot.plot(*zip(*ordered, strict=True), "s" if is_full else "o-", label=f"{sigma:g}, {kind}")
    plot.set_xlabel("local steps")
    plot.set_ylabel("price in dB")
    plot.set_ylim(0, 1.6)
    plot.axhline(1.5, color="0.6", lw=0.8)
    plot.legend(title="noise", fontsize="small")
    figure.savefig(path)


_DEPENDS = {"masks", "image_size", "target", "weights", "payload_class", "shrinkage"}


def _mean(records: list[dict[str, float]], name: str) -> float:
    return sum(record[name] for record in records) / len(records)


if __name__ == "__main__":
    main()
