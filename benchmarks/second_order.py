"""What second order reads from one gradient: PSNR of GaussNewtonInversion beside other attacks.

    python -m benchmarks.second_order --cifar CIFAR10.npz --rows lenet-1 noise-1 [--clients 50]

Client k holds x_test[k B:] of the file, B images, and sends one gradient of an untrained network in
float32; labels are known to the attacker, and the server owns 256 images of x_train.  Every client
is a line of the output file, and one that is there is not attacked again.  Printed a row: clients,
the median and the mean over images with a 95 % interval (Student's t, over clients), the worst,
the images above 90 dB, the mean image, the local estimate (in mean squared error, as the mean that
stands beside it), and seconds of processor time a client.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from benchmarks.quickstart import images_of
from benchmarks.records import matched_psnr
from lightning_recon.attacks import RGAP, Attack, GaussNewtonInversion, InvertingGradients
from lightning_recon.attacks.features.spectrum import Spectrum
from lightning_recon.audit.local_estimate import MAX_UNKNOWNS, local_estimate
from lightning_recon.clients import FedSGD
from lightning_recon.defenses import QSGD, Defense, GaussianNoise
from lightning_recon.observation import Observation
from lightning_recon.targets import ConvNet, LeNet, Target, TinyViT
from lightning_recon.updates import DataSpec, PrivateBatch

NUM_PUBLIC = 256
NOISE = 0.01  # norm of the noise, of the gradient's


class Row(NamedTuple):
    """A setting."""

    target: Callable[[int], Target]
    """Of images so many pixels wide."""
    batch_size: int = 1
    defense: str = ""


def smooth(activation: type[nn.Module], width: int = 16) -> Target:
    """Return a ConvNet without kinks: another activation, and average pools."""
    target = ConvNet(10, width)
    for place, layer in enumerate(target.features):
        if isinstance(layer, nn.ReLU):
            target.features[place] = activation()
        elif isinstance(layer, nn.MaxPool2d):
            target.features[place] = nn.AvgPool2d(2)
    return target


def lenet(size: int) -> Target:
    """Return the sigmoid LeNet for images of that size."""
    return LeNet(10, size)


ROWS = {
    **{f"lenet-{size}": Row(lenet, size) for size in (1, 2, 4, 5)},
    "noise-1": Row(lenet, 1, "noise"),
    "qsgd-1": Row(lenet, 1, "qsgd"),
    "silu-1": Row(lambda size: smooth(nn.SiLU)),
    "gelu-1": Row(lambda size: smooth(nn.GELU)),
    "relu-1": Row(lambda size: ConvNet(10, 16)),
    "vit-1": Row(lambda size: TinyViT(10, size)),
}
ATTACKS: dict[str, Callable[..., Attack]] = {
    "second": lambda target, **more: GaussNewtonInversion(target, **more),
    "rgap": lambda target, client, defenses, adaptive: RGAP(target, client, defenses),
    "inverting": lambda target, **more: InvertingGradients(target, iterations=4800, **more),
}


def observed(attack: Attack, batch: PrivateBatch, client: int, noise: bool) -> Observation:
    """Return what the server sees of a client; noise is scaled to its gradient."""
    if noise:
        clean = attack.client(attack.target, batch, seed=0)
        numbers = torch.cat([part.flatten() for part in clean.values()])
        (defense,) = attack.federation.defenses
        assert isinstance(defense, GaussianNoise)
        defense.noise_std = NOISE * float(numbers.norm()) / math.sqrt(len(numbers))
    return attack.federation.play(batch, client)


def attacked(
    name: str, row: Row, client: int, data: tuple[Tensor, Tensor, Tensor]
) -> dict[str, Any]:
    """Return what an attack finds of a client."""
    test, labels, public = data
    here = slice(row.batch_size * client, row.batch_size * (client + 1))
    images, mean = test[here], public.mean(0)
    public = public[:NUM_PUBLIC]
    chains: dict[str, list[Defense]] = {
        "": [],
        "noise": [GaussianNoise(1.0)],
        "qsgd": [QSGD(16)],
    }
    attack = ATTACKS[name](
        row.target(test.shape[-1]),
        client=FedSGD(mode="eval"),
        defenses=chains[row.defense],
        adaptive=bool(row.defense),
    )
    attack.bind(DataSpec((3, *test.shape[2:]), 10, row.batch_size), public)
    masks = torch.ones_like(images[:, :1], dtype=torch.bool)
    batch = PrivateBatch(images, labels[here], masks, torch.arange(len(images)))
    observation = observed(attack, batch, client, row.defense == "noise")
    started = time.process_time()
    with attack.computing():
        found = attack.reconstruct(observation)
    seconds = time.process_time() - started
    estimate = None
    if name == "second" and row.defense and images.numel() <= MAX_UNKNOWNS:
        estimate = local_estimate(observation, batch, Spectrum(public.double())).mse.tolist()
    return {
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


def main() -> None:
    """Attack, and print a row for each setting and attack."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cifar", required=True, help="an .npz with x_test, y_test and x_train")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=["lenet-1"])
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=["second"])
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--first", type=int, default=0, help="number of the first client")
    parser.add_argument("--size", type=int, default=32, help="images are made smaller: pixels")
    parser.add_argument("--output", type=Path, default=Path("second_order.jsonl"))
    options = parser.parse_args()
    test, labels, public = images_of(options.cifar)
    if options.size != test.shape[-1]:
        test, public = (nn.functional.adaptive_avg_pool2d(x, options.size) for x in (test, public))
    data = test, labels, public
    done: dict[tuple[str, str, int], dict[str, Any]] = {}
    for line in options.output.read_text().splitlines() if options.output.exists() else ():
        one = json.loads(line)
        if one["size"] == options.size:
            done[one["row"], one["attack"], one["client"]] = one
    print("| row | attack | clients | median | mean | worst | > 90 dB | mean image |", end="")
    print(" mean / estimate, by MSE | s/client |\n|" + "---|" * 10)
    for name in options.rows:
        for attack in options.attacks:
            found = []
            for client in range(options.first, options.first + options.clients):
                if (name, attack, client) not in done:
                    one = attacked(attack, ROWS[name], client, data)
                    one |= {"row": name, "attack": attack, "client": client, "size": options.size}
                    with options.output.open("a") as file:
                        file.write(json.dumps(one) + "\n")
                    done[name, attack, client] = one
                found.append(done[name, attack, client])
            print(table(name, attack, found), flush=True)


if __name__ == "__main__":
    main()
