"""Rounds of CIFAR-10 for benchmarks.malicious_table: who holds what, and what counts as found."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_recon.attacks.base import Attack
from lightning_recon.audit.matching import match
from lightning_recon.functional.image_quality import psnr
from lightning_recon.observation import HALF_LEVEL, Observation
from lightning_recon.randomness import make_generator
from lightning_recon.updates import DataSpec, PrivateBatch, Update

SHAPE = (3, 32, 32)
NUM_NULLS = 2  # rounds of each line that are played with noise as well, where that is dear
Record = dict[str, float]


class Images(NamedTuple):
    """CIFAR-10: what clients hold, and what the server has."""

    images: Tensor
    """N C H W, uint8."""
    labels: Tensor
    public: Tensor
    """N C H W in [0, 1]."""

    def at(self, places: Tensor) -> PrivateBatch:
        """Return some of the images as a round."""
        masks = torch.ones(len(places), 1, *SHAPE[1:], dtype=torch.bool)
        return PrivateBatch(self.images[places].float() / 255, self.labels[places], masks, places)

    def drawn(self, seed: int, size: int) -> tuple[PrivateBatch, Tensor]:
        """Return a round's images, and others that it does not hold."""
        order = torch.randperm(len(self.images), generator=make_generator(seed, "malicious table"))
        return self.at(order[:size]), self.images[order[size:]][:size].float() / 255

    def fished(
        self, seed: int, size: int, *, one_class: bool
    ) -> tuple[PrivateBatch, int, PrivateBatch]:
        """Return a batch whose first image alone is of a class, or that is of one, and the class.

        The third is one more image of the class, which the batch does not hold.  The class goes
        round with the seed.
        """
        wanted = seed % 10
        order = torch.randperm(len(self.images), generator=make_generator(seed, "fished"))
        is_of = self.labels[order] == wanted
        own, others = order[is_of], order[~is_of]
        held = own[:size] if one_class else torch.cat([own[:1], others[: size - 1]])
        return self.at(held), wanted, self.at(own[-1:])


class Case(NamedTuple):
    """One line: a round's number is made a record."""

    name: str
    rounds: int
    measure: Callable[[int], Record]


def bound(attack: Attack, size: int, public: Tensor) -> Any:
    """Return an attack that knows of the data what it may."""
    attack.bind(DataSpec(SHAPE, 10, size), public)
    return attack


def noisy(seen: Observation, seed: int) -> Observation:
    """Return an observation of noise of the update's size."""
    generator = make_generator(seed, "noise round")
    update: Update = {
        name: part.std() * torch.randn(part.shape, generator=generator).to(part)
        for name, part in seen.update.items()
    }
    return seen._replace(update=update)


def count_exact(found: Tensor, images: Tensor) -> int:
    """Return how many of the images were found to the pixel."""
    apart = torch.cdist(images.flatten(1).float(), found.flatten(1).float())
    rows, columns = (apart <= 2 * HALF_LEVEL * images[0].numel() ** 0.5).nonzero().T
    furthest = (images[rows] - found[columns]).abs().flatten(1).amax(1)
    return len(rows[furthest <= HALF_LEVEL * (1 + 1e-6)].unique())


def exact_record(attack: Attack, batch: PrivateBatch, other: Tensor, seed: int) -> Record:
    """Play a round and count the images that are found exactly."""
    started = time.perf_counter()
    seen = attack.federation.play(batch, seed)
    played = time.perf_counter()
    found = attack.reconstruct(seen)
    seconds = time.perf_counter() - played
    noise = attack.reconstruct(noisy(seen, seed)).images if seed < NUM_NULLS else found.images[:0]
    return {
        "images": len(batch.images),
        "exact": count_exact(found.images, batch.images),
        "noise": count_exact(noise, batch.images),
        "other": count_exact(found.images, other),
        "round": played - started,
        "seconds": seconds,
    }


def matched(found: Tensor, images: Tensor, mean: Tensor) -> Tensor:
    """Return the PSNR of every image, the mean image standing for what was not found."""
    if not len(found):
        return psnr(mean, images)
    row = match(found.float(), images).row
    return psnr(torch.where((row < 0)[:, None, None, None], mean, found[row].float()), images)
