"""The table of docs/rog.md: what quantised, sparsified and FedAvg updates give away.

    python -m benchmarks.rog_table --root data/imagenet --records rog.jsonl --grids docs

For every obfuscation and client the same observed update is given to the published matching loop
(Yue et al., USENIX Security 2023: latents of a quarter of the side, bicubic, Adam .05 with a cosine
to a tenth, 100 iterations, nothing of the obfuscation inside) and to the project's attacks.  Every
result is appended to the records file at once; a run that was stopped goes on where it was.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import yaml
from jsonargparse import ArgumentParser
from torch import Tensor, nn
from torchvision.io import write_jpeg
from torchvision.utils import make_grid

from lightning_recon.attacks import Attack
from lightning_recon.audit.matching import match
from lightning_recon.clients import FedAvg
from lightning_recon.data import ImageNetDataModule
from lightning_recon.functional.image_quality import psnr
from lightning_recon.observation import Observation

ROOT = Path(__file__).parents[1]
ITERATIONS = 100


class Obfuscation(NamedTuple):
    """One row of the table."""

    defenses: list[dict[str, Any]]
    client: dict[str, Any]


def _row(
    *defenses: tuple[str, dict[str, Any]], client: dict[str, Any] | None = None
) -> Obfuscation:
    chain = [{"class_path": name, "init_args": arguments} for name, arguments in defenses]
    return Obfuscation(chain, client or {"class_path": "FedSGD"})


OBFUSCATIONS = {
    "none": _row(),
    "qsgd16": _row(("QSGD", {"num_levels": 16})),
    "qsgd4": _row(("QSGD", {"num_levels": 4})),
    "topk95": _row(("TopK", {"sparsity": 0.95})),
    "topk99": _row(("TopK", {"sparsity": 0.99})),
    "sign": _row(("SignSGD", {"scaled": False})),
    "fedavg": _row(
        client={"class_path": "FedAvg", "init_args": {"learning_rate": 0.003, "epochs": 5}}
    ),
}
TARGETS = {"lenet": "ROGLeNet", "vgg7": "VGG7", "resnet9": "ResNet9"}
SIZED = ("lenet", "vgg7")  # their linear layers depend on the image size


def published_loop(
    observation: Observation, size: int, learning_rate: float | None, epochs: int
) -> Tensor:
    """Return the images that the published matching loop finds, B 3 size size.

    Args:
        observation: with labels; its update is taken for a gradient as it is.
        size: height and width of the images.
        learning_rate: of FedAvg's local steps; None: FedSGD.
        epochs: local steps on the whole batch.
    """
    model, labels = observation.payload, observation.labels
    assert labels is not None
    observed = dict(observation.update)
    if learning_rate is not None:
        observed = {name: -change / learning_rate for name, change in observed.items()}
    generator = torch.Generator().manual_seed(observation.seed)
    latent = torch.rand(len(labels), 3, size // 4, size // 4, generator=generator)
    latent.requires_grad_()
    optimizer = torch.optim.Adam([latent], lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, ITERATIONS, eta_min=0.005)
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in model.named_parameters()}
    for _ in range(ITERATIONS):
        images = F.interpolate(latent, scale_factor=4, mode="bicubic")
        if learning_rate is None:
            simulated = _gradient(model, leaves, images, labels)
        else:
            weights = dict(leaves)
            for _ in range(epochs):
                gradient = _gradient(model, weights, images, labels)
                weights = {n: weights[n] - learning_rate * gradient[n] for n in weights}
            simulated = {n: (leaves[n] - weights[n]) / learning_rate for n in leaves}
        distance = torch.stack(
            [(simulated[name] - observed[name]).square().sum() for name in simulated]
        ).sum()
        optimizer.zero_grad()
        (latent.grad,) = torch.autograd.grad(distance, [latent])
        optimizer.step()
        schedule.step()
    return F.interpolate(latent.detach(), scale_factor=4, mode="bicubic").clamp(0, 1)


def _gradient(
    model: nn.Module, weights: dict[str, Tensor], images: Tensor, labels: Tensor
) -> dict[str, Tensor]:
    loss = F.cross_entropy(torch.func.functional_call(model, weights, (images,)), labels)
    gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
    return dict(zip(weights, gradients, strict=True))


def make_attack(
    config: str, row: Obfuscation, target: str, size: int, changes: dict[str, Any]
) -> Attack:
    """Return the attack of a configuration file on another obfuscation and target."""
    model = yaml.safe_load((ROOT / "configs" / f"{config}.yaml").read_text())["model"]
    model["init_args"] |= {
        "defenses": row.defenses,
        "client": row.client,
        "target": {
            "class_path": TARGETS[target],
            "init_args": {"image_size": size} if target in SIZED else {},
        },
        "known": ["labels", "num_samples", "client"],
        **changes,
    }
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Attack, "model")
    attack: Attack = parser.instantiate(parser.parse_object({"model": model})).model
    return attack


METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "published": ("rog_qsgd", {"adaptive": False}),  # for the observation alone
    "rog_naive": ("rog_qsgd", {"adaptive": False}),
    "rog_adaptive": ("rog_qsgd", {"adaptive": True}),
    "rog_third": (
        "rog_qsgd",
        {
            "adaptive": True,
            "analytic_start": True,
            "iterations": 3,  # more of them fit the rounding, and not the images
            "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.005}},
            "lr_scheduler": None,
        },
    ),
    "feature_inversion": ("feature_inversion", {}),
    "feature_inversion_denoiser": (
        "feature_inversion",
        {"iterations": 30, "refined_error": 0.2},
    ),
}
"""Configuration file and what is changed in it, by the names of the columns."""


def _denoiser(weights: str | None) -> dict[str, Any]:
    """Return the change of a configuration that puts an FFDNet in the place of its priors."""
    if weights is None:
        sys.exit("feature_inversion_denoiser needs --denoiser, a file of an FFDNet's weights")
    network = {"class_path": "FFDNet", "init_args": {"weights": str(Path(weights).absolute())}}
    arguments = {"noise_std": 0.03, "weight": 0.18, "denoiser": network}
    return {"priors": [{"class_path": "DenoiserPrior", "init_args": arguments}]}


def measure(
    name: str,
    row: Obfuscation,
    target: str,
    data: ImageNetDataModule,
    client: int,
    method: str,
    denoiser: str | None,
) -> tuple[dict[str, Any], Tensor]:
    """Return the figures of one method on one client, and its images in the truth's order."""
    batch = data.client(client)
    config, changes = METHODS[method]
    size = data.image_shape[1]
    if method == "feature_inversion_denoiser":
        changes = {**changes, **_denoiser(denoiser)}
    attack = make_attack(config, row, target, size, changes)
    attack.bind(data.spec, data.public_images())
    observation = attack.federation.play(batch, client)
    started = time.monotonic()
    if method == "published":
        local = attack.client
        if isinstance(local, FedAvg):
            images = published_loop(observation, size, local.learning_rate, local.epochs)
        else:
            images = published_loop(observation, size, None, 1)
    else:
        images = attack.reconstruct(observation).images
    seconds = time.monotonic() - started
    figures = {
        "row": name,
        "target": target,
        "size": size,
        "client": client,
        "method": method,
        "psnr": _psnr(images, batch.images),
        "seconds": round(seconds, 1),
        "mean_image": _psnr(data.public_images().mean(0).expand_as(batch.images), batch.images),
    }
    if method == "feature_inversion" and client == 0:  # the control costs as much as the attack
        noise = attack.reconstruct(attack.federation.play_noise(batch.labels, client))
        figures["noise_only"] = _psnr(noise.images, batch.images)
    order = match(images, batch.images).row
    return figures, images[order]


def _psnr(images: Tensor, truth: Tensor) -> float:
    """Return the mean PSNR over all images, matched."""
    row = match(images, truth).row
    return float(psnr(images[row], truth).mean())


def run(options: argparse.Namespace, data: ImageNetDataModule) -> list[dict[str, Any]]:
    """Measure what the records file does not hold yet."""
    records: list[dict[str, Any]] = []
    path = Path(options.records)
    if path.is_file():
        records = [json.loads(line) for line in path.read_text().splitlines() if line]
    records = [record for record in records if record["size"] == options.size]
    done = {(r["row"], r["target"], r["client"], r["method"]) for r in records}
    for client in range(options.first, options.first + options.clients):
        for name in options.rows:
            pictures = [data.client(client).images]
            for method in options.methods:
                if (name, options.target, client, method) in done:
                    continue
                figures, images = measure(
                    name,
                    OBFUSCATIONS[name],
                    options.target,
                    data,
                    client,
                    method,
                    options.denoiser,
                )
                pictures.append(images)
                records.append(figures)
                with path.open("a") as file:
                    file.write(json.dumps(figures) + "\n")
                print(figures, file=sys.stderr, flush=True)
            if options.grids and client == 0 and len(pictures) == len(options.methods) + 1:
                grid = make_grid(torch.cat([images[:8] for images in pictures]), nrow=8)
                file_name = Path(options.grids) / f"rog_{options.target}_{name}.jpg"
                write_jpeg((grid * 255).round().to(torch.uint8), str(file_name), quality=85)
    return records


def table(records: Sequence[dict[str, Any]], target: str, methods: Sequence[str]) -> str:
    """Return the Markdown table: PSNR over all images, seconds a client, number of clients."""
    lines = [
        "| obfuscation | mean image | "
        + " | ".join(f"{method} (clients, s)" for method in methods)
        + " | noise only |",
        "|" + "---|" * (len(methods) + 3),
    ]
    for name in OBFUSCATIONS:
        of_row = [r for r in records if r["row"] == name and r["target"] == target]
        if not of_row:
            continue
        cells = [name, _mean(of_row, "mean_image")]
        for method in methods:
            found = [r for r in of_row if r["method"] == method]
            text = f"{_mean(found, 'psnr')} ({len(found)}, {_mean(found, 'seconds', 0)})"
            cells.append(text if found else "not run")
        best = [r for r in of_row if r["method"] == methods[-1] and "noise_only" in r]
        cells.append(_mean(best, "noise_only") if best else "not run")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _mean(records: Sequence[dict[str, Any]], key: str, digits: int = 2) -> str:
    return f"{sum(r[key] for r in records) / max(1, len(records)):.{digits}f}"


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", required=True, help="ImageNet, folders by WordNet id")
    parser.add_argument("--records", required=True, help="JSON lines; a run goes on from them")
    parser.add_argument("--grids", help="folder for pictures of the first client")
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--denoiser", help="weights of an FFDNet, for its prior")
    parser.add_argument("--first", type=int, default=0, help="the first client")
    parser.add_argument("--target", choices=sorted(TARGETS), default="lenet")
    parser.add_argument("--size", type=int, default=128, help="height and width of the images")
    parser.add_argument("--rows", nargs="+", choices=list(OBFUSCATIONS), default=list(OBFUSCATIONS))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS)[:-1])
    options = parser.parse_args()
    data = ImageNetDataModule(
        root=options.root,
        batch_size=16,
        image_size=options.size,
        num_clients=max(5, options.first + options.clients),
        num_public=128,
    )
    data.setup()
    records = run(options, data)
    print(table(records, options.target, options.methods))


if __name__ == "__main__":
    main()
