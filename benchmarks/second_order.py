"""What second order reads from one gradient: PSNR of GaussNewtonInversion beside other attacks.

    python -m benchmarks.second_order --cifar CIFAR10.npz --rows lenet-1 noise-1 [--clients 50]

Client k holds x_test[k B:] of the file, B images, and sends one gradient of an untrained network in
float32; labels are known to the attacker, and the server owns 256 images of x_train.  Every client
is a line of the output file, and one that is there is not attacked again.  Printed a row: clients,
the median and the mean over images with a 95 % interval (Student's t, over clients), the worst,
the images above 90 dB, the mean image, the local estimate (in mean squared error, as the mean that
stands beside it), and seconds of processor time a client.  With --denoiser, published weights of
FFDNet, a second row is of the images that it makes of the same ones.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from benchmarks.quickstart import images_of
from benchmarks.records import matched_psnr
from benchmarks.second_order_networks import (
    convnext,
    imagenet_stem,
    lenet,
    small_stem,
    smooth,
    trained_resnet20,
    usual_vit,
)
from lightning_recon.attacks import (
    APRIL,
    RGAP,
    AnnealedInversion,
    Attack,
    GaussNewtonInversion,
    InvertingGradients,
)
from lightning_recon.attacks.features.spectrum import Spectrum
from lightning_recon.audit.local_estimate import MAX_UNKNOWNS, local_estimate
from lightning_recon.clients import FedSGD
from lightning_recon.defenses import (
    QSGD,
    ClipL2,
    Defense,
    FrozenLayers,
    GaussianNoise,
    LaplaceNoise,
    TopK,
)
from lightning_recon.errors import InputError
from lightning_recon.observation import Observation
from lightning_recon.priors.denoiser import FFDNet
from lightning_recon.refiners import DenoisingRefiner, Refiner
from lightning_recon.targets import ConvNet, Target, TinyViT
from lightning_recon.updates import DataSpec, PrivateBatch

NUM_PUBLIC = 256
NOISE = 0.07
"""That a denoiser takes away, of images in [0, 1]: chosen on clients 801 to 809."""


class Row(NamedTuple):
    """A setting."""

    target: Callable[[int], Target]
    """Of images so many pixels wide."""
    batch_size: int = 1
    defense: str = ""
    mode: Literal["train", "eval"] = "eval"


def noised(std: float, *before: Defense) -> list[Defense]:
    """Return a chain that ends in noise, of so much of the norm of what reaches it."""
    return [*before, GaussianNoise(std)]


DEFENSES: dict[str, Callable[[], list[Defense]]] = {
    "": list,
    "noise": lambda: noised(0.01),
    "noise-10": lambda: noised(0.1),
    "laplace": lambda: [LaplaceNoise(0.01 / math.sqrt(2))],
    "qsgd": lambda: [QSGD(16)],
    "qsgd-4": lambda: [QSGD(4)],
    "clip-noise": lambda: noised(0.03, ClipL2(0.5)),
    "top-k": lambda: [TopK(0.9)],
    "frozen": lambda: [FrozenLayers(["position_embedding"])],
}
"""By name; noise is of so much of the norm, all numbers together."""
EXACT = ("", "frozen")
"""Defenses that change no number that is sent."""
ROWS = {
    **{f"lenet-{size}": Row(lenet, size) for size in (1, 2, 4, 5, 6, 8)},
    "noise-1": Row(lenet, 1, "noise"),
    "qsgd-1": Row(lenet, 1, "qsgd"),
    "silu-1": Row(lambda size: smooth(nn.SiLU)),
    "gelu-1": Row(lambda size: smooth(nn.GELU)),
    "relu-1": Row(lambda size: ConvNet(10, 16)),
    "relu64-1": Row(lambda size: ConvNet(10, 64)),
    "vit-1": Row(lambda size: TinyViT(10, size)),
    **{f"usual-vit-{size}": Row(usual_vit, size, "frozen") for size in (1, 4)},
    **{f"convnext-{size}": Row(convnext, size) for size in (1, 4)},
    **{f"resnet18-{size}": Row(small_stem, size) for size in (1, 4)},
    "resnet18-train-1": Row(small_stem, 1, mode="train"),
    "resnet18-train-4": Row(small_stem, 4, mode="train"),
    "imagenet-stem-1": Row(imagenet_stem),
    "imagenet-stem-train-1": Row(imagenet_stem, mode="train"),
}
ATTACKS: dict[str, Callable[..., Attack]] = {
    "second": lambda target, **more: GaussNewtonInversion(target, **more),
    "both": lambda target, **more: GaussNewtonInversion(target, annealed_iterations=1500, **more),
    "annealed": lambda target, adaptive, **more: AnnealedInversion(target, **more),
    "annealed-cycles": lambda target, adaptive, **more: AnnealedInversion(
        target, iterations=1500, soft_values=False, num_restarts=3, num_cycles=4, **more
    ),
    "annealed-400": lambda target, adaptive, **more: AnnealedInversion(
        target, iterations=400, **more
    ),
    "rgap": lambda target, adaptive, **more: RGAP(target, **more),
    "april": lambda target, client, defenses, adaptive: APRIL(
        target, client, defenses, "embedding"
    ),
    "inverting": lambda target, **more: InvertingGradients(target, iterations=4800, **more),
}


def scale_noise(attack: Attack, batch: PrivateBatch) -> None:
    """Bring the noise of a chain from shares of the norm to numbers."""
    clean = attack.client(attack.target, batch, seed=0)
    numbers = torch.cat([part.flatten() for part in clean.values()])
    unit = float(numbers.norm())
    for defense in attack.federation.defenses:
        if isinstance(defense, ClipL2):
            defense.clip_norm *= unit
            unit = min(unit, defense.clip_norm)
        elif isinstance(defense, GaussianNoise):
            assert defense.noise_std is not None
            defense.noise_std *= unit / math.sqrt(len(numbers))
        elif isinstance(defense, LaplaceNoise):
            defense.scale *= unit / math.sqrt(len(numbers))


def played(
    name: str, row: Row, client: int, data: tuple[Tensor, Tensor, Tensor]
) -> tuple[Attack, PrivateBatch, Observation]:
    """Return an attack that knows its public images, a client's batch, and what it sends."""
    test, labels, public = data
    here = slice(row.batch_size * client, row.batch_size * (client + 1))
    images = test[here]
    attack = ATTACKS[name](
        row.target(test.shape[-1]),
        client=FedSGD(mode=row.mode),
        defenses=DEFENSES[row.defense](),
        adaptive=bool(row.defense),
    )
    attack.bind(DataSpec((3, *test.shape[2:]), 10, row.batch_size), public[:NUM_PUBLIC])
    masks = torch.ones_like(images[:, :1], dtype=torch.bool)
    batch = PrivateBatch(images, labels[here], masks, torch.arange(len(images)))
    scale_noise(attack, batch)
    return attack, batch, attack.federation.play(batch, client)


def attacked(
    name: str,
    row: Row,
    client: int,
    data: tuple[Tensor, Tensor, Tensor],
    refiner: Refiner | None = None,
) -> dict[str, Any]:
    """Return what an attack finds of a client, and where there is a defense the local estimate."""
    attack, batch, observation = played(name, row, client, data)
    images, mean = batch.images, data[2].mean(0)
    started = time.process_time()
    with attack.computing():
        found = attack.reconstruct(observation)
    seconds = time.process_time() - started
    estimate = None
    if name == "second" and row.defense not in EXACT and images.numel() <= MAX_UNKNOWNS:
        spectrum = Spectrum(data[2][:NUM_PUBLIC].double())
        estimate = local_estimate(observation, batch, spectrum).mse.tolist()
    more = {}
    if refiner is not None:
        with torch.no_grad():
            more["denoised"] = list(map(float, matched_psnr(refiner(found.images), images, mean)))
    return more | {
        "psnr": list(map(float, matched_psnr(found.images, images, mean))),
        "mean_image": list(map(float, matched_psnr(found.images[:0], images, mean))),
        "estimate_mse": estimate,
        "seconds": seconds,
        "notes": found.notes,
        "curve": [value for _, value in found.curve],
    }


def table(name: str, attack: str, found: Sequence[dict[str, Any]]) -> str:
    """Return a row of the printed table."""
    psnr = np.array([one["psnr"] for one in found])  # clients by images
    clients = psnr.mean(1)
    half = stats.t.ppf(0.975, len(clients) - 1) * stats.sem(clients) if len(clients) > 1 else np.nan
    in_mse = -10 * np.log10(np.mean(10 ** (-psnr / 10)))
    estimate = "-"
    if found[0]["estimate_mse"]:
        mse = np.mean([one["estimate_mse"] for one in found])
        estimate = f"{in_mse:.1f} / {-10 * np.log10(mse):.1f}"
    words = [
        *(name, attack, str(len(found))),
        *(f"{np.median(psnr):.1f}", f"{psnr.mean():.1f} +- {half:.1f}", f"{psnr.min():.1f}"),
        f"{(psnr > 90).sum()} of {psnr.size}",
        f"{np.mean([one['mean_image'] for one in found]):.1f}",
        *(estimate, f"{np.mean([one['seconds'] for one in found]):.0f}"),
    ]
    return f"| {' | '.join(words)} |"


def of_size(cifar: str, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return test images, their labels and public images, made smaller by averages."""
    test, labels, public = images_of(cifar)
    if size != test.shape[-1]:
        test, public = (nn.functional.adaptive_avg_pool2d(x, size) for x in (test, public))
    return test, labels, public


def recorded(file: Path, size: int) -> dict[tuple[str, str, int], dict[str, Any]]:
    """Return what stands in a file of images of a size, by row, attack and client."""
    lines = file.read_text().splitlines() if file.exists() else []
    found = [one for one in map(json.loads, lines) if one["size"] == size]
    return {(one["row"], one["attack"], one["client"]): one for one in found}


def main() -> None:
    """Attack, and print a row for each setting and attack."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cifar", required=True, help="an .npz with x_test, y_test and x_train")
    parser.add_argument("--rows", nargs="+", choices=[*ROWS, "resnet20-1"], default=["lenet-1"])
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=["second"])
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--first", type=int, default=0, help="number of the first client")
    parser.add_argument("--size", type=int, default=32, help="images are made smaller: pixels")
    parser.add_argument("--output", type=Path, default=Path("second_order.jsonl"))
    parser.add_argument("--resnet20", help="trained weights, for the row resnet20-1")
    parser.add_argument("--denoiser", help="weights of FFDNet, to denoise what is found")
    options = parser.parse_args()
    refiner = None
    if options.denoiser is not None:
        refiner = DenoisingRefiner(FFDNet(options.denoiser), NOISE, scale=1)
    if "resnet20-1" in options.rows and options.resnet20 is None:
        parser.error("resnet20-1 needs --resnet20, a file of trained weights")
    trained = Row(lambda size: trained_resnet20(options.resnet20))
    data = of_size(options.cifar, options.size)
    done = recorded(options.output, options.size)
    print("| row | attack | clients | median | mean | worst | > 90 dB | mean image |", end="")
    print(" mean / estimate, by MSE | s/client |\n|" + "---|" * 10)
    for name in options.rows:
        for attack in options.attacks:
            found = []
            for client in range(options.first, options.first + options.clients):
                if (name, attack, client) not in done:
                    try:
                        one = attacked(attack, ROWS.get(name, trained), client, data, refiner)
                    except InputError as error:
                        print(f"| {name} | {attack} | refused: {error}", flush=True)
                        break
                    one |= {"row": name, "attack": attack, "client": client, "size": options.size}
                    with options.output.open("a") as file:
                        file.write(json.dumps(one) + "\n")
                    done[name, attack, client] = one
                found.append(done[name, attack, client])
            if found:
                print(table(name, attack, found), flush=True)
            if found and all("denoised" in one for one in found):
                denoised = [one | {"psnr": one["denoised"], "estimate_mse": None} for one in found]
                print(table(name, f"{attack}, denoised", denoised), flush=True)


if __name__ == "__main__":
    main()
