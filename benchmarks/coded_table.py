"""The table of docs/coded.md: bits through the channel, beside the linear code on the same clients.

    python -m benchmarks.coded_table --root data/imagenet --masks MASKS --clients 20
    python -m benchmarks.coded_table --codes
    python -m benchmarks.coded_table --root data/imagenet --orientation

An image that does not come back counts with the public mean image.  A pixel is exact if all three
of its values are, rounded to 8 bits.  Lines appear as they are done, with a 95 % interval over
clients; each client's figures are kept in --records, and are not measured again.  With --minutes it
stops after so many, prints what there is, and the same command goes on.
"""

import argparse
import math
import resource
import sys
import time
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from benchmarks.records import RESULTS, Records
from benchmarks.spectral_table import line
from lightning_recon.attacks import Attack, CodedLDPAttack, SpectralLDPAttack
from lightning_recon.attacks.coded.hybrid import HybridCode
from lightning_recon.attacks.coded.polar import PolarCode, binary_capacity
from lightning_recon.attacks.spectral.code import SpectralCode, water_fill
from lightning_recon.audit.matching import match
from lightning_recon.audit.statistics import bootstrap_interval
from lightning_recon.data import ImageNetDataModule, MaskFolder
from lightning_recon.defenses import ClipL2, GaussianNoise
from lightning_recon.functional.image_quality import psnr
from lightning_recon.targets import TorchvisionClassifier

SIGMAS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.02, 0.05)
BATCH_SIZE = 16
BLOCK_ERROR = 1e-4
NAMES = ["images", "sigma", "clients", "sent", "kbit an image", "capacity", "PSNR", "95 %"]
NAMES += ["median", "worst", "exact pixels", "exact images", "put out of 16", "linear code"]
NAMES += ["client (s)", "decoding (s)"]

Record = dict[str, Any]


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


def print_orientation(data: ImageNetDataModule) -> None:
    """Print what a Gaussian source of the public images' spectrum allows: no bound on images.

    Coefficients are independent, of the variances that the linear code is made for, scaled to the
    geometric mean of the public images' energies.
    """
    images = data.public_images()
    size = images[0].numel()
    line(["sigma", "linear code (dB)", "kbit: one row", "64 rows", "any", "dB at one row's"])
    line(["---"] * 6)
    for sigma in SIGMAS:
        noise, energy = sigma**2, 10.0**2 / BATCH_SIZE
        code = SpectralCode(images, tuple(images.shape[1:]), noise, energy)
        norm = (images - code.mean).flatten(1).norm(dim=1).double()
        power = code.power.flatten().double()
        power *= norm.log().mean().exp() ** 2 / power.sum()
        sent = water_fill(power, noise, energy)
        linear = float((power * noise / (sent + noise)).sum())
        bits = [n / 2 * math.log2(1 + energy / (n * noise)) for n in (size, 64 * size)]
        low, high = 1e-15 * float(power.max()), float(power.max())
        while high > 1.0001 * low:  # reverse water-filling: the level that takes so many bits
            level = (low * high) ** 0.5
            needs = float((power / level).clamp_min(1).log2().sum()) / 2
            low, high = (level, high) if needs > bits[0] else (low, level)
        least = float(power.clamp_max(high).sum())
        decibels = [f"{10 * math.log10(size / error):.1f}" for error in (linear, least)]
        most = energy / (2 * noise * math.log(2))
        thousands = [f"{number / 1e3:.1f}" for number in (*bits, most)]
        line([f"{sigma:g}", decibels[0], *thousands, decibels[1]])


class Cell:
    """One noise level; the attack is made when the first client is measured.

    Args:
        data: the clients, and the server's images.
        sigma: of the noise.
        runs_linear: whether SpectralLDPAttack reads the same clients.
    """

    def __init__(self, data: ImageNetDataModule, sigma: float, runs_linear: bool) -> None:
        self.data, self.sigma, self.runs_linear = data, sigma, runs_linear

    @cached_property
    def coded(self) -> CodedLDPAttack:
        """The attack."""
        attack = make(CodedLDPAttack, self.sigma, self.data)
        assert isinstance(attack, CodedLDPAttack)
        return attack

    @cached_property
    def linear(self) -> Attack:
        """The linear code."""
        return make(SpectralLDPAttack, self.sigma, self.data)

    @cached_property
    def blank(self) -> Tensor:
        """What an image counts with that did not come back, C H W."""
        return self.data.public_images().mean(0)

    def measure(self, client: int) -> Record:
        """Return what is read of one client."""
        coded, batch = self.coded, self.data.client(client)
        start = time.process_time()
        observation = coded.federation.play(batch, client)
        played = time.process_time()
        found = coded.reconstruct(observation).images
        decoded = time.process_time()
        images = shown(found, batch.images, self.blank)
        is_exact = (255 * images).round() == (255 * batch.images).round()
        record: Record = {
            "sent": _sent(coded),
            "bits": coded.digital.num_bits if coded.is_digital else 0,
            "capacity": coded.capacity,
            "psnr": psnr(images, batch.images).tolist(),
            "exact": is_exact.all(1).flatten(1).double().mean(1).tolist(),
            "put_out": len(found),
            "client_seconds": played - start,
            "decoding_seconds": decoded - played,
            "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        }
        if self.runs_linear:
            other = self.linear.reconstruct(self.linear.federation.play(batch, client)).images
            record["linear"] = psnr(shown(other, batch.images, self.blank), batch.images).tolist()
        return record


def _sent(attack: CodedLDPAttack) -> str:
    if not attack.is_digital:
        return "linear code"
    return "bits and linear code" if isinstance(attack.digital, HybridCode) else "bits"


def row(kind: str, sigma: float, clients: dict[int, Record]) -> list[str]:
    """Return a line of the table."""
    records = list(clients.values())
    score, right = (
        np.array([record["psnr"] for record in records]),
        np.array([record["exact"] for record in records]),
    )
    member = np.repeat(list(clients), score.shape[1])
    interval = bootstrap_interval(score.ravel(), member)
    linear = [record["linear"] for record in records if "linear" in record]

    def mean(name: str) -> float:
        return float(np.mean([record[name] for record in records]))

    return [
        kind,
        f"{sigma:g}",
        str(len(records)),
        records[0]["sent"],
        f"{mean('bits') / 1e3:.1f}",
        f"{mean('capacity') / 1e3:.1f}",
        f"{score.mean():.2f}",
        "" if interval is None else f"{interval.low:.2f} to {interval.high:.2f}",
        f"{np.median(score):.2f}",
        f"{score.min():.2f}",
        f"{100 * right.mean():.2f} %",
        f"{100 * (right == 1).mean():.1f} %",
        f"{mean('put_out'):.2f}",
        f"{np.mean(linear):.2f} ({len(linear)})" if linear else "not run",
        f"{mean('client_seconds'):.1f}",
        f"{mean('decoding_seconds'):.1f}",
    ]


def main() -> int:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default="data/imagenet", help="ImageNet, folders by WordNet id")
    parser.add_argument("--masks", help="folder with subject masks; without: whole images alone")
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--only", choices=["masks", "whole"], help="one half of the table")
    parser.add_argument("--sigmas", type=float, nargs="+", default=SIGMAS)
    parser.add_argument("--linear", action="store_true", help="run SpectralLDPAttack, too")
    parser.add_argument("--codes", action="store_true", help="print the codes' table and end")
    parser.add_argument(
        "--orientation", action="store_true", help="print what a Gaussian source allows, and end"
    )
    parser.add_argument("--records", type=Path, default=RESULTS / "coded.jsonl")
    parser.add_argument("--minutes", type=float, default=math.inf, help="after which it stops")
    arguments = parser.parse_args()
    if arguments.codes:
        print_codes()
        return 0
    if arguments.orientation:
        data = ImageNetDataModule(root=arguments.root, batch_size=BATCH_SIZE, num_public=64)
        data.setup()
        print_orientation(data)
        return 0
    until = time.monotonic() + 60 * arguments.minutes
    records = Records(arguments.records)
    line(NAMES)
    line(["---"] * len(NAMES))
    both = ["whole", "masks"] if arguments.masks else ["whole"]
    for kind in [arguments.only] if arguments.only else both:
        data = ImageNetDataModule(
            root=arguments.root,
            batch_size=BATCH_SIZE,
            num_clients=arguments.clients,
            num_public=64,
            masks=MaskFolder(arguments.masks) if kind == "masks" else None,
        )
        data.setup()
        for sigma in arguments.sigmas:
            cell = Cell(data, sigma, arguments.linear)
            done = {}
            for client in range(arguments.clients):
                key = f"{kind} {sigma:g} client {client} of {arguments.clients}"
                if time.monotonic() < until:
                    done[client] = records.get(key, partial(cell.measure, client))
                elif (held := records.held(key)) is not None:
                    done[client] = held
            if done:
                line(row(kind, sigma, done))
    return 0 if time.monotonic() < until else 75


if __name__ == "__main__":
    sys.exit(main())
