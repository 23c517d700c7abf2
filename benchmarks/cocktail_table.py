"""Independent components of a gradient: docs/exact.md, "Where nothing can be certified".

    python -m benchmarks.cocktail_table --root data/cifar10.npz [--sizes B ...] [--clients N]

The paper's network, 3072-256-10, on CIFAR-10's training images.  A line is PSNR and SSIM over all
images of all clients, matched; an image that is not returned counts with the mean public image.
Controls: the mean public image alone, a client that sent noise of its update's size, and what was
found held against as many images of others.  "The paper's objective" is a rebuilt loop: entropy of
whitened pixels, total variation and cosines, with the constants of the public code, a tenth of its
iterations at ten times the rate, and scale, sign and brightness by the bias.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.exact_table import SHAPE, Sample, line, trained
from benchmarks.records import matched_psnr
from lightning_recon.attacks import CocktailParty
from lightning_recon.attacks.base import Attack
from lightning_recon.attacks.exact.certificate import read_spans
from lightning_recon.attacks.exact.recovery import as_gradient
from lightning_recon.attacks.linear_layer import first_linear
from lightning_recon.audit.matching import match
from lightning_recon.clients import Client, FedAvg, FedSGD
from lightning_recon.data.arrays import read_npz
from lightning_recon.defenses import QSGD, Defense, GaussianNoise
from lightning_recon.functional.image_quality import ssim
from lightning_recon.observation import Observation
from lightning_recon.randomness import make_generator
from lightning_recon.targets import MLP, Target
from lightning_recon.updates import DataSpec

HEADS = ("setting", "B", "clients", "PSNR", "SSIM", "20 dB", "mean image", "noise", "other", "s")
TV, SHARPNESS, COSINES, RATE, STEPS = 3.1, 12.4, 1.47, 0.01, 2500
Reconstruct = Callable[[Attack, Observation], Tensor]


def components(attack: Attack, seen: Observation) -> Tensor:
    """Return what the attack does."""
    return attack.reconstruct(seen).images


def published(attack: Attack, seen: Observation) -> Tensor:
    """Return what the paper's objective gives, N C H W."""
    gradient = as_gradient(first_linear(seen.payload, SHAPE), seen)
    generator = make_generator(seen.seed, "published")
    rows = read_spans(gradient, seen.num_samples, generator).rows
    pixels = rows[:, :-1] - rows[:, :-1].mean(1, keepdim=True)
    variance, axes = torch.linalg.eigh(pixels @ pixels.T / pixels.shape[1])
    whiten = (axes * variance.rsqrt()).T
    white, moved = (whiten @ pixels).float(), (whiten @ rows).float()
    unmixing = torch.eye(len(rows)).requires_grad_()
    optimizer = torch.optim.Adam([unmixing], lr=RATE)
    for _ in range(STEPS):
        optimizer.zero_grad()
        unit = nn.functional.normalize(unmixing)
        entropy = (unit @ white).cosh().log().mean(1).square().mean()
        images = (unit @ moved)[:, :-1].view(-1, *SHAPE)
        variation = images.diff(dim=2).abs().mean() + images.diff(dim=3).abs().mean()
        cosines = ((unit @ unit.T).abs() * SHARPNESS).exp().sub(1).mean()
        (TV * variation + COSINES * cosines - entropy).backward()
        optimizer.step()
    found = nn.functional.normalize(unmixing).detach() @ moved
    return (found[:, :-1] / found[:, -1:]).clamp(0, 1).nan_to_num().view(-1, *SHAPE)


def small(seed: int) -> Target:
    """Return the paper's network."""
    return MLP(10, 32, (256,), seed=seed)


class Case(NamedTuple):
    """One line for each size."""

    name: str
    sizes: Sequence[int]
    target: Callable[[int], Target] = small
    how: Reconstruct = components
    client: Callable[[], Client] = FedSGD
    defenses: Callable[[], Sequence[Defense]] = tuple


def cases(sample: Sample) -> list[Case]:
    """Return the lines of the table."""
    learned = partial(trained, sample=sample, kind=small)
    return [
        Case("untrained", (8, 16, 32, 64, 128, 256)),
        Case("the paper's objective", (8, 16), how=published),
        Case("trained", (16, 64), learned),
        Case("five local steps", (16, 64), client=lambda: FedAvg(0.01, epochs=5)),
        Case("QSGD, 16 levels", (16,), defenses=lambda: [QSGD()]),
        *(
            Case(f"Gaussian noise {std:g}", (16,), defenses=lambda std=std: [GaussianNoise(std)])
            for std in (1e-4, 1e-3)
        ),
    ]


def measure(case: Case, size: int, sample: Sample, seed: int) -> dict[str, Any]:
    """Return what comes of one client."""
    batch, grey = sample.batch(seed, size), sample.public.mean(0)
    attack = CocktailParty(
        case.target(seed), client=case.client(), defenses=case.defenses(), seed=seed
    )
    attack.bind(DataSpec(SHAPE, 10, size), sample.public)
    seen = attack.federation.play(batch, seed)
    started = time.perf_counter()
    found = case.how(attack, seen).float()
    seconds = time.perf_counter() - started
    row = match(found, batch.images).row
    shown = grey.expand_as(batch.images).clone()
    shown[row >= 0] = found[row[row >= 0]]
    noise = seen.update.copy()
    generator = make_generator(seed, "null client")
    for name, part in noise.items():
        noise[name] = part.std() * torch.randn(part.shape, generator=generator)
    null = case.how(attack, seen._replace(update=noise)).float()
    other = sample.batch(seed, size, other=True).images
    return {
        "psnr": matched_psnr(found, batch.images, grey),
        "ssim": ssim(shown, batch.images).tolist(),
        "mean": matched_psnr(found[:0], batch.images, grey),
        "noise": matched_psnr(null, batch.images, grey),
        "other": matched_psnr(found, other, grey),
        "seconds": seconds,
    }


def report(case: Case, size: int, found: list[dict[str, Any]]) -> None:
    """Print what came of the clients of one line."""
    every = {
        key: torch.tensor([value for one in found for value in one[key]]).double()
        for key in ("psnr", "ssim", "mean", "noise", "other")
    }
    error = 1.96 * float(every["psnr"].std()) / len(every["psnr"]) ** 0.5
    cells = [
        f"{every['psnr'].mean():.1f} ± {error:.1f}",
        f"{every['ssim'].mean():.2f}",
        f"{(every['psnr'] >= 20).double().mean():.2f}",
        *(f"{every[key].mean():.1f}" for key in ("mean", "noise", "other")),
        f"{sum(one['seconds'] for one in found) / len(found):.1f}",
    ]
    line([case.name, str(size), str(len(found)), *cells])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", required=True, help=".npz file of CIFAR-10 with x_train, y_train")
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", help="batch sizes; default: all")
    parser.add_argument("--cache", type=Path, help="file that keeps what is done, a line a client")
    arguments = parser.parse_args()
    images, labels = read_npz(Path(arguments.root), "train")
    sample = Sample(torch.from_numpy(images).permute(0, 3, 1, 2), torch.tensor(labels))
    done: dict[str, Any] = {}
    if arguments.cache and arguments.cache.is_file():
        done = dict(json.loads(one) for one in arguments.cache.read_text().splitlines())
    line(HEADS)
    line(["---"] * len(HEADS))
    for case in cases(sample):
        for size in case.sizes:
            if arguments.sizes and size not in arguments.sizes:
                continue
            found = []
            for number in range(arguments.clients):
                key = f"{case.name}/{size}/{10 + number}"
                if key not in done:
                    done[key] = measure(case, size, sample, 10 + number)
                    if arguments.cache:
                        with arguments.cache.open("a") as file:
                            file.write(json.dumps([key, done[key]]) + "\n")
                found.append(done[key])
            report(case, size, found)


if __name__ == "__main__":
    main()
