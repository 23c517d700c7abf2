"""Attackers who know the detector: what is left of an attack that is made less and less strange.

The malicious rows of RobbingTheFed and CuriousAbandonHonesty are blended with rows as an honest
layer draws them, until the detector passes them.  The attacker decodes by what serves such rows
best: it knows them, so it takes every image that it found out of all rows which that image passes
(``peel`` of CuriousAbandonHonesty).

``imprint``  every row measures one common direction and one of its own; ``hidden`` 0 would be the
             common one alone, which RobbingTheFed decodes by differences; 1: its own alone.
             Biases are set to quantiles over public images, for 1/K to (K-1)/K of them, rows in
             random order; they shrink with the common direction.
``trap``     the positive half is drawn anew instead of copied, and the rows' sums agree up to
             ``hidden`` times what chance makes of them.

The gain is as in the attacks; the detector does not see it, and without noise it changes nothing.

Run from the repository's root (some minutes)::

    python -m benchmarks.detect_stealth --cifar data/cifar10.npz
"""

import argparse
import copy
from statistics import mean
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.records import cifar, matched_psnr
from lightning_recon import targets
from lightning_recon.attacks import CuriousAbandonHonesty
from lightning_recon.attacks.robbing_the_fed import ImprintPayload
from lightning_recon.audit.statistics import bootstrap_interval
from lightning_recon.data import CIFAR10DataModule
from lightning_recon.detect import Detection, detect
from lightning_recon.randomness import make_generator
from lightning_recon.targets import Target

BATCH, CLIENTS, ROWS, RECOVERED = 32, 4, 1000, 19.0
CANARY = 8  # public images
HIDDEN = {
    "imprint": (0.25, 0.5, 0.8, 0.95, 1.0),
    "trap": (0.0, 0.2, 0.4, 0.7, 1.0),
}


class Hidden(CuriousAbandonHonesty):
    """Rows that are made less strange.

    Args:
        target: the model that the federation trains.
        kind: ``imprint`` or ``trap``.
        hidden: in [0, 1], how far.
    """

    def __init__(self, target: Target, kind: str, hidden: float) -> None:
        super().__init__(target, num_rows=ROWS, peel=True)
        self.kind, self.hidden = kind, hidden

    def learn_public(self, images: Tensor) -> None:
        """Draw the rows, and set the biases."""
        super().learn_public(images)
        generator = make_generator(self.seed, "hidden")
        size = torch.Size(self.known_shape).numel()
        self.bias = torch.zeros(ROWS)
        if self.kind == "trap":
            self.weight = (_trapped(self.weight[0], self.hidden, generator),)
            return
        own = torch.randn(ROWS, size, generator=generator) / (3 * size) ** 0.5
        common = torch.full((size,), 1 / (3 * size) ** 0.5)
        share = 1 - self.hidden
        rows = share * common + (1 - share**2) ** 0.5 * own
        quantile = torch.linspace(1 / ROWS, 1 - 1 / ROWS, ROWS)
        quantile = quantile[torch.randperm(ROWS, generator=generator)]
        seen = rows @ images.flatten(1).T
        level = torch.stack([row.quantile(at) for row, at in zip(seen, quantile, strict=True)])
        self.weight, self.bias = (rows,), -level

    def server_payload(self, model: Target) -> ImprintPayload:
        """Return the model behind the rows."""
        return ImprintPayload(model, self.weight[0], self.bias, self.gain)


def _trapped(rows: Tensor, hidden: float, generator: torch.Generator) -> Tensor:
    """Return rows with positive halves of their own, whose sums stray as far as is wanted."""
    negative = rows.clamp_max(0)
    places = rows > 0
    drawn = torch.randn(rows.shape, generator=generator).abs() * places
    wanted = rows.sum(1) + hidden * rows.norm(dim=1) * torch.randn(len(rows), generator=generator)
    scale = (wanted - negative.sum(1)) / drawn.sum(1)
    return negative + drawn * scale.clamp_min(0)[:, None]


class Measured(NamedTuple):
    """What the detector says, and what the attack gets."""

    score: float
    strangest: str
    canary_score: float
    canary_strangest: str
    psnr: list[float]
    """Of every image."""


def measured(kind: str, hidden: float, data: CIFAR10DataModule) -> Measured:
    """Return both sides of one attack."""
    attack = Hidden(targets.LeNet(10, 32), kind, hidden)
    public = data.public_images()
    attack.bind(data.spec, public)
    payload = copy.deepcopy(attack.federation.payload)
    sample = public[:CANARY], torch.arange(CANARY)
    found, canary = detect(payload), detect(payload, sample=sample)
    scores = []
    for client in range(CLIENTS):
        batch = data.client(client)
        with attack.computing():
            images = attack.reconstruct(attack.federation.play(batch, client)).images
        scores += matched_psnr(images, batch.images, public.mean(0))
    return Measured(found.score, _strangest(found), canary.score, _strangest(canary), scores)


def _strangest(found: Detection) -> str:
    return found.findings[0].code if found.findings else "nothing"


def main() -> None:
    """Print the curves."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cifar", default="data/cifar10", help="CIFAR-10, folder or .npz")
    options = parser.parse_args()
    data = cifar(options, batch_size=BATCH, num_public=200, num_clients=CLIENTS)
    print(
        f"{CLIENTS} clients of {BATCH} images, {ROWS} rows; recovered: {RECOVERED:g} dB; ", end=""
    )
    print(f"a canary of {CANARY} public images")
    print(
        "| attack | hidden | score | strangest | with a canary | strangest | recovered | "
        "PSNR, mean | 95 % interval |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for kind, levels in HIDDEN.items():
        for hidden in levels:
            found = measured(kind, hidden, data)
            psnr = found.psnr
            recovered = sum(value >= RECOVERED for value in psnr)
            interval = bootstrap_interval(psnr, [place // BATCH for place in range(len(psnr))])
            assert interval is not None
            print(
                f"| {kind} | {hidden:g} | {found.score:.2f} | {found.strangest} | "
                f"{found.canary_score:.2f} | {found.canary_strangest} | "
                f"{recovered} of {len(psnr)} | "
                f"{mean(psnr):.1f} dB | {interval[0]:.1f} to {interval[1]:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
