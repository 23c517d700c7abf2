"""Inverting Gradients on the first hundred CIFAR-10 test images, and the attacks that are exact.

DLG's sigmoid LeNet, untrained, one image an update, labels known, the configuration's 4,800
iterations; 18 dB on the mean is asked.  The linear layer and R-GAP, on a network of full rank
without pooling, are asked for more than 60 dB.
"""

import argparse
import logging
from collections.abc import Iterator, Sequence
from statistics import mean
from typing import Any

import pytorch_lightning as pl
import torch

from benchmarks.records import Records, Row, cifar, matched_psnr, run_alone
from lightning_recon.attacks import RGAP, Attack, InvertingGradients, LinearLayerInversion
from lightning_recon.data import ClientDataModule
from lightning_recon.observation import Reconstruction
from lightning_recon.targets import MLP, LeNet, PlainConvNet

LEAST = 18.0  # dB of Inverting Gradients
EXACT = 60.0  # dB
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)  # its tips
AT_ONCE = 20  # images that are attacked as one computation


def psnr_together(
    attack: InvertingGradients, data: ClientDataModule, clients: Sequence[int]
) -> list[float]:
    """Return the PSNR of several clients' one image, in dB; attacked as one computation."""
    attack.trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    attack.trainer.datamodule = data  # type: ignore[attr-defined]
    attack.bind(data.spec, data.public_images())
    grey = torch.full(data.image_shape, 0.5)
    values = []
    for client, outcome in zip(clients, attack.attack_together(clients), strict=True):
        assert isinstance(outcome, Reconstruction)
        values += matched_psnr(outcome.images, data.client(client).images, grey)
    return values


def psnr_of(attack: Attack, data: ClientDataModule, client: int) -> float:
    """Return the PSNR of one client's one image, in dB."""
    attack.bind(data.spec, data.public_images())
    batch = data.client(client)
    found = attack.reconstruct(attack.federation.play(batch, client)).images
    return matched_psnr(found, batch.images, torch.full(data.image_shape, 0.5))[0]


def run(options: argparse.Namespace, records: Records) -> Iterator[Row]:
    """Give a row for each attack."""
    num_images, iterations = (4, 500) if options.quick else (100, 4800)
    group = min(AT_ONCE, num_images)
    lenet = InvertingGradients(LeNet(), iterations=iterations, clients_at_once=group, compile=True)
    data = _one_each(options, num_images)
    found: list[float] = []
    for first in range(0, num_images, group):
        places = range(first, first + group)
        key = f"first images, {places}, {iterations} iterations"
        found += records.get(key, lambda places=places: psnr_together(lenet, data, places))
        print(f"first {len(found)} images: {mean(found):.2f} dB", flush=True)
    yield Row(
        f"exactness: Inverting Gradients, LeNet, {num_images} images",
        mean(found),
        unit="dB",
        asked=None if options.quick else LEAST,
        note=f"{iterations} iterations; worst {min(found):.1f}, best {max(found):.1f} dB",
    )
    exact: dict[str, Any] = {
        "linear layer": LinearLayerInversion(MLP()),
        "R-GAP": RGAP(PlainConvNet()),
    }
    for name, attack in exact.items():
        count = 1 if options.quick else 5
        data = _one_each(options, count)
        values = [
            records.get(
                f"exact {name}, image {client}",
                lambda attack=attack, data=data, client=client: psnr_of(attack, data, client),
            )
            for client in range(count)
        ]
        note = f"worst of {count} images, capped at 100"
        yield Row(f"exactness: {name}", min(values), unit="dB", asked=EXACT, note=note)


def _one_each(options: argparse.Namespace, count: int) -> ClientDataModule:
    return cifar(
        options, batch_size=1, num_clients=count, indices=[[place] for place in range(count)]
    )


if __name__ == "__main__":
    run_alone(__doc__, run)
