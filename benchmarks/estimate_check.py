"""What an attack gets beside what the local estimate says, over networks and defenses.

    python -m benchmarks.estimate_check --cifar CIFAR10.npz [--size 8] [--clients 3]

GaussNewtonInversion, to which the defense and the labels are granted, on one image a client, first
CIFAR-10 test images made smaller by averages; 256 public images.  A cell is mean image, attack and
local estimate in dB, each of the mean squared error over the clients: a guess, what one attack
gets, and what a linearised Gaussian attacker would get.  Every client is a line of the output file.
``--explain``: of every client on which the attack is more than 1 dB off the estimate, what a
linear attacker gets with the very noise of that client, and the attack from the true image.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from benchmarks.second_order import (
    DEFENSES,
    EXACT,
    NUM_PUBLIC,
    ROWS,
    attacked,
    of_size,
    played,
    recorded,
)
from lightning_recon.attacks import GaussNewtonInversion
from lightning_recon.attacks.features.spectrum import Spectrum
from lightning_recon.audit.local_estimate import local_estimate
from lightning_recon.functional.image_quality import decibels

NETWORKS = ("lenet-1", "silu-1", "gelu-1", "vit-1", "relu-1")


def main() -> None:
    """Attack, and print a row for each network; cells that were never attacked are a dash."""
    names = [name for name in DEFENSES if name not in EXACT]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cifar", required=True, help="an .npz with x_test, y_test and x_train")
    parser.add_argument("--size", type=int, default=8, help="of the images, in pixels")
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--defenses", nargs="+", choices=names, default=names, help="to attack")
    parser.add_argument("--explain", action="store_true", help="clients more than 1 dB off")
    parser.add_argument("--output", type=Path, default=Path("estimate_check.jsonl"))
    options = parser.parse_args()
    data = of_size(options.cifar, options.size)
    done = recorded(options.output, options.size)
    print(f"| network | {' | '.join(names)} |\n|{'---|' * (1 + len(names))}")
    for network in options.networks:
        cells = []
        for defense in names:
            found = []
            for client in range(options.clients):
                key = f"{network} {defense}", "second", client
                if key not in done and defense in options.defenses:
                    row = ROWS[network]._replace(defense=defense)
                    done[key] = attacked("second", row, client, data)
                    done[key] |= {"row": key[0], "attack": key[1], "client": client}
                    done[key] |= {"size": options.size}
                    with options.output.open("a") as file:
                        file.write(json.dumps(done[key]) + "\n")
                if key in done:
                    found.append(done[key])
            cells.append(cell(found) if found else "-")
        print(f"| {network} | {' | '.join(cells)} |", flush=True)
    if options.explain:
        chosen = [one for one in done.values() if one["row"].split()[0] in options.networks]
        explain(data, [one for one in chosen if abs(above(one)) > 1])


def above(one: dict[str, Any]) -> float:
    """Return by how many dB an attack is above the estimate."""
    estimate: float = min(100.0, decibels(one["estimate_mse"][0]))
    return one["psnr"][0] - estimate


def explain(data: tuple[Tensor, Tensor, Tensor], clients: list[dict[str, Any]]) -> None:
    """Print beside attack and estimate what tells why they differ.

    The estimate is the mean over noise, and one draw may be kinder: what the same linear attacker
    gets with the noise of that client.  The attack may end in a wrong valley: where it ends when it
    starts at the true image, which no attack may, and without softening.  What is left between the
    two is that the network is not linear.
    """
    spectrum = Spectrum(data[2][:NUM_PUBLIC].double())
    for one in clients:
        network, defense = one["row"].split()
        row = ROWS[network]._replace(defense=defense)
        attack, batch, observation = played("second", row, one["client"], data)
        drawn = local_estimate(observation, batch, spectrum).drawn_mse
        assert isinstance(attack, GaussNewtonInversion)
        assert drawn is not None
        attack.soft_iterations = 0
        with attack.computing():
            _, evidence = attack.initialize(observation)
            ((found, _),) = attack.loop.run(batch.images, evidence)
        error = float((found.clamp(0, 1) - batch.images).square().mean())
        print(
            f"{one['row']}, client {one['client']}: attack {one['psnr'][0]:.1f}, estimate "
            f"{decibels(one['estimate_mse'][0]):.1f}, with the noise drawn "
            f"{decibels(float(drawn)):.1f}; attack from the truth {decibels(error):.1f} dB",
            flush=True,
        )


def cell(found: list[dict[str, list[float]]]) -> str:
    """Return mean image, attack and estimate of some clients, in dB."""
    errors = [
        np.mean(10 ** (-np.array([one["mean_image"] for one in found]) / 10)),
        np.mean(10 ** (-np.array([one["psnr"] for one in found]) / 10)),
        np.mean([one["estimate_mse"] for one in found]),
    ]
    return " / ".join(f"{min(100.0, -10 * np.log10(max(error, 1e-12))):.1f}" for error in errors)


if __name__ == "__main__":
    main()
