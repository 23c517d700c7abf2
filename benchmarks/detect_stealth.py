"""Attackers who know the detector: what is left of an attack that is made less and less strange.

``imprint``  every row measures one common direction and one of its own; level 0 would be the common
             one alone, which RobbingTheFed decodes by differences; 1: its own alone.  Biases are
             set to quantiles over public images, for 1/K to (K-1)/K of them, rows in random order;
             they shrink with the common direction.
``trap``     CuriousAbandonHonesty: the positive half is drawn anew instead of copied, and the rows'
             sums agree up to the level times what chance makes of them.
``code``     SpectralLDPAttack behind clipping and noise; the level is the gain of its rows, which
             the clipping budget is shared by.
``layer``    likewise, the rows in what passes for a layer of ``torch.nn``.
``fishing``  Fishing for a class on an MLP; the level is by how many nats the other classes lead,
             and their rows in the head, which the attack sets to zero, are a share of an honest
             head's.  The image is read off the first layer, of batches in which a class occurs
             once.

Imprint and trap rows are decoded by what serves such rows best: the attacker knows them, so it
takes every image that it found out of all rows which that image passes (``peel`` of
CuriousAbandonHonesty).  Their gain changes nothing without noise.

Run from the repository's root (some minutes)::

    python -m benchmarks.detect_stealth --cifar data/cifar10.npz --picture docs/detect_stealth.png
"""

import argparse
import copy
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from benchmarks.records import cifar, matched_psnr
from lightning_recon import targets
from lightning_recon.attacks import CuriousAbandonHonesty, Fishing, SpectralLDPAttack
from lightning_recon.attacks.base import Attack
from lightning_recon.attacks.robbing_the_fed import ImprintPayload
from lightning_recon.attacks.spectral.payload import SpectralPayload
from lightning_recon.audit.statistics import bootstrap_interval
from lightning_recon.data import CIFAR10DataModule
from lightning_recon.defenses import ClipL2, GaussianNoise
from lightning_recon.detect import Detection, detect
from lightning_recon.observation import Observation
from lightning_recon.randomness import make_generator
from lightning_recon.targets import Target
from lightning_recon.updates import PrivateBatch

BATCH, CLIENTS, ROWS, RECOVERED = 32, 4, 1000, 19.0
FISHED = 16  # clients, of which those count that have a class once
CANARY = 8  # public images
PROTECTED = (ClipL2(1.0), GaussianNoise(0.001))
SHARES = {200.0: 0.0, 50.0: 0.01, 20.0: 0.05, 10.0: 0.11, 6.9: 0.33, 2.0: 1.0}
"""Of an honest head's rows, that those of the other classes have, by nats."""
LEVELS: dict[str, tuple[float, ...]] = {
    "imprint": (0.25, 0.5, 0.8, 0.95, 1.0),
    "trap": (0.0, 0.2, 0.4, 0.7, 1.0),
    "code": (1e4, 1e3, 1e2, 1e1, 3.0, 1.0),
    "layer": (1e4, 1e3, 1e2, 1e1, 3.0, 1.0),
    "fishing": tuple(SHARES),
}
LOOKS = {"imprint": "o-", "trap": "s-", "code": "^-", "layer": "v--", "fishing": "D-"}


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


class HiddenFishing(Fishing):
    """A head that fishes for a class less surely.

    Args:
        target: the model that the federation trains.
        nats: by which the other classes lead.
        **kwargs: as :class:`Fishing`.
    """

    def __init__(self, target: Target, nats: float, **kwargs: Any) -> None:
        super().__init__(target, **kwargs)
        self.nats = nats

    def server_payload(self, model: Target) -> Target:
        """Return the model with such a head."""
        payload = super().server_payload(model)
        weight, bias = (payload.get_parameter(name or "") for name in self.last)
        honest = model.get_parameter(self.last[0])
        is_other = torch.arange(len(weight)) != self.target_class
        with torch.no_grad():
            weight[is_other] = SHARES[self.nats] * honest[is_other]
            bias[is_other] = self.nats
        return payload

    def read(self, observation: Observation) -> Tensor:
        """Return the image that the first layer's gradient holds, 1 C H W, by all its rows."""
        first = next(m for m in observation.payload.modules() if isinstance(m, nn.Linear))
        names = {id(part): name for name, part in observation.payload.named_parameters()}
        weight, bias = (observation.update[names[id(p)]] for p in (first.weight, first.bias))
        return (bias @ weight / bias.square().sum()).view(1, *self.spec.image_shape)


class PassingPayload(SpectralPayload):
    """A payload that says of itself that it is of ``torch.nn``."""


PassingPayload.__module__ = "torch.nn.modules.linear"


class Measured(NamedTuple):
    """What the detector says, and what the attack gets."""

    found: Detection
    by_canary: Detection
    psnr: list[float]
    """Of every image, dB."""
    clients: list[int]
    """Of every image."""


def measured(kind: str, level: float, data: CIFAR10DataModule) -> Measured:
    """Return both sides of one attack."""
    if kind == "fishing":
        return _fished(level, data)
    attack: Attack
    if kind in ("imprint", "trap"):
        attack = Hidden(targets.LeNet(10, 32), kind, level)
    else:
        attack = SpectralLDPAttack(
            targets.LeNet(10, 32),
            defenses=PROTECTED,
            num_bins=ROWS,
            num_samples=BATCH,
            gain=level,
            shrinkage_steps=0,
        )
    public = data.public_images()
    attack.bind(data.spec, public)
    payload = copy.deepcopy(attack.federation.payload)
    if kind == "layer":
        payload.__class__ = PassingPayload
    scores = []
    for client in range(CLIENTS):
        batch = data.client(client)
        with attack.computing():
            images = attack.reconstruct(attack.federation.play(batch, client)).images
        scores += matched_psnr(images, batch.images, public.mean(0))
    clients = [place // BATCH for place in range(len(scores))]
    return Measured(*_looked_at(payload, public), scores, clients)


def _fished(nats: float, data: CIFAR10DataModule) -> Measured:
    """Return both sides of fishing: one image of every batch that has a class once."""
    public, scores, clients = data.public_images(), [], []
    for client in range(FISHED):
        batch = data.client(client)
        for wanted, image in _single(batch):
            attack = HiddenFishing(targets.MLP(10, 32, (ROWS,)), nats, target_class=wanted)
            attack.bind(data.spec, public)
            with attack.computing():
                seen = attack.read(attack.federation.play(batch, client))
            scores += matched_psnr(seen, image[None], public.mean(0))
            clients.append(client)
    return Measured(*_looked_at(attack.federation.payload, public), scores, clients)


def _single(batch: PrivateBatch) -> Iterator[tuple[int, Tensor]]:
    """Yield the first class that occurs once, and its image; none, if there is none."""
    counts = batch.labels.bincount(minlength=10)
    for wanted in (counts == 1).nonzero()[:1, 0].tolist():
        yield wanted, batch.images[batch.labels == wanted][0]


def _looked_at(payload: nn.Module, public: Tensor) -> tuple[Detection, Detection]:
    sample = public[:CANARY], torch.arange(CANARY)
    return detect(payload), detect(payload, sample=sample)


def _strangest(found: Detection) -> str:
    return found.findings[0].code if found.findings else "nothing"


def draw(path: Path, curves: dict[str, list[Measured]]) -> None:
    """Draw what is recovered against the score, without and with a canary.

    Args:
        path: of the PNG.
        curves: by attack, in the order of its levels.
    """
    figure = Figure(figsize=(9, 4), layout="constrained")
    plots = figure.subplots(1, 2, sharey=True)
    looks = ("weights and graph alone", f"with a canary of {CANARY} public images")
    for place, (plot, look) in enumerate(zip(plots, looks, strict=True)):
        for kind, curve in curves.items():
            scores = [(one.found, one.by_canary)[place].score for one in curve]
            plot.plot(scores, [mean(one.psnr) for one in curve], LOOKS[kind], label=kind)
        plot.axvline(0.5, color="0.4", lw=0.8, ls=":")
        plot.set_xlabel("score; from .5 on suspicious")
        plot.set_title(look, fontsize="medium")
        plot.set_xlim(0, 1.02)
        plot.grid(alpha=0.3)
    plots[0].set_ylabel("mean PSNR of what comes out, dB")
    plots[1].legend(fontsize="small")
    figure.savefig(path, dpi=130)


def main() -> None:
    """Print the curves, and draw them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cifar", default="data/cifar10", help="CIFAR-10, folder or .npz")
    parser.add_argument("--picture", type=Path, help="where the curves are drawn, .png")
    parser.add_argument("--only", nargs="+", choices=LEVELS, default=list(LEVELS))
    options = parser.parse_args()
    data = cifar(options, batch_size=BATCH, num_public=200, num_clients=FISHED)
    print(
        f"{CLIENTS} clients of {BATCH} images, {ROWS} rows; recovered: {RECOVERED:g} dB; ", end=""
    )
    print(f"a canary of {CANARY} public images")
    print(
        "| attack | level | score | strangest | with a canary | strangest | recovered | "
        "PSNR, mean | 95 % interval |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    curves: dict[str, list[Measured]] = {}
    for kind in options.only:
        for level in LEVELS[kind]:
            one = measured(kind, level, data)
            curves.setdefault(kind, []).append(one)
            print(_line(kind, level, one), flush=True)
    if options.picture is not None:
        draw(options.picture, curves)


def _line(kind: str, level: float, one: Measured) -> str:
    recovered = sum(value >= RECOVERED for value in one.psnr)
    interval = bootstrap_interval(one.psnr, one.clients)
    assert interval is not None
    said = f"{level:g} nats, rows x{SHARES[level]:g}" if kind == "fishing" else f"{level:g}"
    return (
        f"| {kind} | {said} | {one.found.score:.2f} | {_strangest(one.found)} | "
        f"{one.by_canary.score:.2f} | {_strangest(one.by_canary)} | "
        f"{recovered} of {len(one.psnr)} | {mean(one.psnr):.1f} dB | "
        f"{interval.low:.1f} to {interval.high:.1f} |"
    )


if __name__ == "__main__":
    main()
