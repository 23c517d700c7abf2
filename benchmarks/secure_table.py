"""The table of docs/local_steps.md, Secure sums: one client of several whose sum is noised once.

    python -m benchmarks.secure_table --root data/imagenet

Each of n clients takes an epoch of two steps on 8 images of 64x64, clips the change of its weights
to 10, and Gaussian noise falls on the sum (central differential privacy).  "one" is a server that
leaves the rows of one client open, and sends the others rows that nothing reaches; it is done for
--places clients, one after the other.  "all" sends everybody the same payload.  Wiener's filter
throughout; an image that does not come back counts with the public mean image.  Each round's
figures are kept in --records, and are not measured again.
"""

import argparse
import json
from functools import partial
from pathlib import Path

import torch

from benchmarks.coded_table import shown
from benchmarks.fedavg_table import CLIP_NORM, make_target
from benchmarks.records import Records
from benchmarks.spectral_table import line
from lightning_recon.attacks import SpectralLDPAttack
from lightning_recon.clients import Aggregate, FedAvg
from lightning_recon.data import ImageNetDataModule
from lightning_recon.defenses import GaussianNoise
from lightning_recon.functional.image_quality import psnr
from lightning_recon.updates import PrivateBatch

SHARE = 8
"""Images of a client."""


def measure(
    data: ImageNetDataModule, number: int, sigma: float, place: int | None, factor: float = 1.0
) -> dict[str, object]:
    """Return the figures of a round.

    Args:
        data: whose one batch is shared out.
        number: clients of the round.
        sigma: standard deviation of the noise on the sum.
        place: of the client whose rows are open; None: those of all are.
        factor: of the clipping norm and the noise, as adaptive clipping moves both.
    """
    client = Aggregate(FedAvg(0.1, 1, 4, 0.9), number, update_clip_norm=factor * CLIP_NORM)
    noise = GaussianNoise(factor * sigma / number)  # on the mean
    attack = SpectralLDPAttack(
        make_target("convnet", None), client, [noise], place=place, shrinkage_steps=0
    )
    public = data.public_images()
    attack.bind(data.spec, public)
    batch = data.client(0)
    with attack.computing():
        images, _ = attack.initialize(attack.federation.play(batch, 0))
    if place is not None:
        batch = PrivateBatch(*(field[place * SHARE : (place + 1) * SHARE] for field in batch))
    blank = public.mean(0)
    return {
        "psnr": psnr(shown(images, batch.images, blank), batch.images).tolist(),
        "mean_image": psnr(blank.expand_as(batch.images), batch.images).tolist(),
        "put_out": len(images) / len(batch.images),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default="data/imagenet", help="ImageNet, folders by WordNet id")
    parser.add_argument("--numbers", type=int, nargs="+", default=[2, 4, 8, 16, 32, 64])
    parser.add_argument("--sigmas", type=float, nargs="+", default=[0.002, 0.02])
    parser.add_argument("--places", type=int, default=2, help="clients attacked one by one")
    parser.add_argument("--records", type=Path, default=Path("secure_table.jsonl"))
    arguments = parser.parse_args()
    records = Records(arguments.records)
    names = ["sigma of the sum", "n", "rows open", "PSNR", "worst", "mean image", "images"]
    names += ["share put out"]
    line(names)
    line(["---"] * len(names))
    for sigma in arguments.sigmas:
        for number in arguments.numbers:
            data = ImageNetDataModule(
                root=arguments.root,
                batch_size=SHARE * number,
                num_clients=1,
                num_public=64,
                image_size=64,
            )
            data.setup()
            rounds: dict[str, list[tuple[int | None, float]]] = {
                "one": [(place, 1.0) for place in range(min(arguments.places, number))],
                "all": [(None, 1.0)],
                "one, adaptive clip": [(0, 1.105)],
            }
            for name, settings in rounds.items():
                found = [
                    records.get(
                        json.dumps([number, sigma, *setting]),
                        partial(measure, data, number, sigma, *setting),
                    )
                    for setting in settings
                ]
                scores = torch.tensor([record["psnr"] for record in found])
                blank = torch.tensor([record["mean_image"] for record in found])
                put_out = sum(record["put_out"] for record in found) / len(found)
                cells = [f"{sigma:g}", str(number), name, f"{scores.mean():.2f}"]
                cells += [f"{scores.min():.2f}", f"{blank.mean():.2f}", str(scores.numel())]
                line([*cells, f"{put_out:.2f}"])


if __name__ == "__main__":
    main()
