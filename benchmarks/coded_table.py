"""The table of docs/coded.md: bits through the channel, beside the linear code on the same clients.

    python -m benchmarks.coded_table --root data/imagenet --masks MASKS --clients 20
    python -m benchmarks.coded_table --codes

An image that does not come back counts with the public mean image.  A pixel is exact if all three
of its values are, rounded to 8 bits.  Lines appear as they are done.
"""

import argparse
import math
import time

import torch
from torch import Tensor

from benchmarks.spectral_table import line
from lightning_recon.attacks import Attack, CodedLDPAttack, SpectralLDPAttack
from lightning_recon.attacks.coded.polar import PolarCode, binary_capacity
from lightning_recon.audit.matching import match
from lightning_recon.data import ImageNetDataModule, MaskFolder
from lightning_recon.defenses import ClipL2, GaussianNoise
from lightning_recon.functional.image_quality import psnr
from lightning_recon.targets import TorchvisionClassifier

SIGMAS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.02, 0.05)
BATCH_SIZE = 16
BLOCK_ERROR = 1e-4


def make(kind: type[Attack], sigma: float, data: ImageNetDataModule) -> Attack:
    """Return an attack on an untrained ResNet-18 behind one clip to 10 and noise."""
    attack = kind(
        TorchvisionClassifier(name="resnet18", weights=None),
        defenses=[ClipL2(10.0), GaussianNoise(sigma)],
    )
    attack.bind(data.spec, data.public_images())
    return attack


def shown(found: Tensor, truth: Tensor, blank: Tensor) -> Tensor:
    """Return what came back of each true image, B C H W; ``blank`` where nothing did."""
    row = match(found, truth).row
    images = blank.expand_as(truth).clone()
    images[row >= 0] = found[row[row >= 0]]
    return images


def print_codes() -> None:
    """Print what a bit costs behind polar codes, in units of the noise's variance."""
    line(["symbols", "energy a symbol", "bits a symbol", "energy a bit", "limit", "gap (dB)"])
    line(["---"] * 6)
    for exponent in (13, 15, 17, 19, 21):
        for snr in (0.375, 0.75):
            rate = PolarCode(exponent, snr, BLOCK_ERROR, 2**exponent).num_bits / 2**exponent
            limit = snr / binary_capacity(snr)
            line(
                [
                    f"2^{exponent}",
                    f"{snr:g}",
                    f"{rate:.3f}",
                    f"{snr / rate:.2f}",
                    f"{limit:.2f}",
                    f"{10 * math.log10(snr / rate / limit):.2f}",
                ]
            )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default="data/imagenet", help="ImageNet, folders by WordNet id")
    parser.add_argument("--masks", help="folder with subject masks; without: whole images alone")
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="number of the first client")
    parser.add_argument("--only", choices=["masks", "whole"], help="one half of the table")
    parser.add_argument("--sigmas", type=float, nargs="+", default=SIGMAS)
    parser.add_argument("--linear", action="store_true", help="run SpectralLDPAttack, too")
    parser.add_argument("--codes", action="store_true", help="print the codes' table and end")
    arguments = parser.parse_args()
    if arguments.codes:
        print_codes()
        return
    names = ["images", "sigma", "sent", "kbit an image", "capacity", "PSNR", "median", "worst"]
    names += ["exact pixels", "exact images", "put out of 16", "linear code", "seconds a client"]
    line(names)
    line(["---"] * len(names))
    both = ["whole", "masks"] if arguments.masks else ["whole"]
    for kind in [arguments.only] if arguments.only else both:
        data = ImageNetDataModule(
            root=arguments.root,
            batch_size=BATCH_SIZE,
            num_clients=arguments.first + arguments.clients,
            num_public=64,
            masks=MaskFolder(arguments.masks) if kind == "masks" else None,
        )
        data.setup()
        blank = data.public_images().mean(0)
        for sigma in arguments.sigmas:
            coded = make(CodedLDPAttack, sigma, data)
            assert isinstance(coded, CodedLDPAttack)
            linear = make(SpectralLDPAttack, sigma, data) if arguments.linear else None
            values, linear_values, exact, put_out, seconds = [], [], [], 0, 0.0
            for client in range(arguments.first, arguments.first + arguments.clients):
                batch = data.client(client)
                start = time.process_time()
                found = coded.reconstruct(coded.federation.play(batch, client))
                seconds += time.process_time() - start
                put_out += len(found.images)
                images = shown(found.images, batch.images, blank)
                values.append(psnr(images, batch.images))
                is_exact = (255 * images).round() == (255 * batch.images).round()
                exact.append(is_exact.all(1).flatten(1).float().mean(1))
                if linear is not None:
                    other = linear.reconstruct(linear.federation.play(batch, client)).images
                    linear_values.append(psnr(shown(other, batch.images, blank), batch.images))
            score, right = torch.cat(values), torch.cat(exact)
            line(
                [
                    kind,
                    f"{sigma:g}",
                    "bits" if coded.is_digital else "linear code",
                    f"{coded.digital.polar.num_bits / 1e3:.1f}" if coded.is_digital else "",
                    f"{coded.capacity / 1e3:.1f}",
                    f"{score.mean():.2f}",
                    f"{score.median():.2f}",
                    f"{score.min():.2f}",
                    f"{100 * right.mean():.2f} %",
                    f"{100 * (right == 1).float().mean():.1f} %",
                    f"{put_out / arguments.clients:.2f}",
                    f"{torch.cat(linear_values).mean():.2f}" if linear_values else "not run",
                    f"{seconds / arguments.clients:.1f}",
                ]
            )


if __name__ == "__main__":
    main()
