"""Seconds until ours passes breaching's best configuration at its full budget, and both curves.

The same CIFAR-10 image, model and gradient, labels known to both; ours has 1,000 training images as
the server's own besides.  The peer's configuration is the better of two, "invertinggradients" and
"modern", on an image that is not among those reported, at a twentieth of the budget.  Both put
their images aside as they go, and these are scored after the run, since no attack sees the truth.
What counts is the first of ours that is better than the peer's result, in processor seconds.  The
curves are drawn in time_to_quality.svg.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.peer import Peer, is_installed
from benchmarks.records import Records, Row, cifar, environment, matched_psnr, run_alone
from lightning_recon.attacks import AnnealedInversion, GaussNewtonInversion
from lightning_recon.attacks.optimization import OptimizationAttack
from lightning_recon.clients import FedSGD
from lightning_recon.data import ClientDataModule
from lightning_recon.targets import ConvNet, LeNet, Target

BUDGET = 24_000  # of breaching's configurations
PEERS = ("invertinggradients", "modern")
CHOSEN_ON = 40  # number of the image
POINTS = 60  # of a curve


class Case(NamedTuple):
    """One model, and the attack of ours."""

    name: str
    make_target: Callable[[], Target]
    attack: type[OptimizationAttack]
    is_quick: bool


CASES = [
    Case("LeNet", LeNet, GaussNewtonInversion, True),
    Case("ConvNet, width 16", lambda: ConvNet(width=16), AnnealedInversion, False),
]


def own_curve(case: Case, target: Target, data: ClientDataModule) -> dict[str, Any]:
    """Return the seconds of our images, their PSNR and the mean image's."""
    seconds: list[float] = []
    kept: list[Tensor] = []

    class Watched(case.attack):  # type: ignore[name-defined, misc]
        """Puts its dummy images aside."""

        def iterate(self, dummy: Any, *rest: Any) -> dict[str, Tensor]:
            parts: dict[str, Tensor] = super().iterate(dummy, *rest)
            if self.loop.iteration % max(1, self.loop.iterations // POINTS) == 0:
                kept.append(dummy.detach().clone())
                seconds.append(time.process_time() - started)
            return parts

    attack = Watched(target, client=FedSGD(mode="eval"))
    attack.bind(data.spec, data.public_images())
    observation = attack.federation.play(data.client(0), 0)
    started = time.process_time()
    with attack.computing():
        start, evidence = attack.initialize(observation)
        ((last, _),) = attack.loop.run(start, evidence)
        kept.append(last)
        seconds.append(time.process_time() - started)
        images = [attack.finish(one, evidence).images for one in kept]
    truth = data.client(0).images
    mean = data.public_images().mean(0)
    return {
        "seconds": seconds,
        "psnr": [matched_psnr(found, truth, mean)[0] for found in images],
        "mean_image": matched_psnr(truth[:0], truth, mean)[0],
    }


def peer_curve(target: Target, data: ClientDataModule, name: str, budget: int) -> dict[str, Any]:
    """Return the same of the peer, whose last image is the one that it returns."""
    torch.manual_seed(0)
    batch = data.client(0)
    peer = Peer(target, batch.images, batch.labels, budget, name)
    started = time.process_time()
    found, _, kept = peer.watched(max(1, budget // POINTS))
    seconds, images = [at - started for at, _ in kept], [image for _, image in kept]
    seconds.append(time.process_time() - started)
    grey = torch.full(batch.images.shape[1:], 0.5)
    psnr = [matched_psnr(one, batch.images, grey)[0] for one in [*images, found]]
    return {"seconds": seconds, "psnr": psnr}


def _data(options: argparse.Namespace, image: int) -> ClientDataModule:
    return cifar(options, batch_size=1, indices=[image], num_public=1000)


def run(options: argparse.Namespace, records: Records) -> Iterator[Row]:
    """Give the rows of every model."""
    budget = BUDGET // 20 if options.quick else BUDGET
    images = 2 if options.quick else options.pairs
    curves = {}
    for case in CASES:
        if options.quick and not case.is_quick:
            continue
        # batch norm by its running statistics, as the peer takes it
        target = case.make_target().eval()
        place = f"quality {case.name}, {budget} iterations, {environment()}"
        name = ""
        if is_installed():
            ends = {
                peer: records.get(
                    f"{place}, choice {peer}",
                    lambda peer=peer, target=target: peer_curve(
                        target, _data(options, CHOSEN_ON), peer, budget // 20
                    )["psnr"][-1],
                )
                for peer in PEERS
            }
            name = max(PEERS, key=lambda peer: ends[peer])
        pairs = []
        for image in range(images):
            data = _data(options, image)
            ours = records.get(
                f"{place}, image {image}, {case.attack.__name__}",
                lambda case=case, target=target, data=data: own_curve(case, target, data),
            )
            peer = None
            if name:
                peer = records.get(
                    f"{place}, image {image}, {name}",
                    lambda target=target, data=data, name=name: peer_curve(
                        target, data, name, budget
                    ),
                )
            pairs.append((ours, peer))
        curves[case.name] = pairs
        yield from _rows(case, name, pairs, budget)
    draw(records.path.parent / "time_to_quality.svg", curves)


def _rows(case: Case, name: str, pairs: Sequence[tuple[Any, Any]], budget: int) -> list[Row]:
    title = f"time to quality: {case.name}"
    end = statistics.median(ours["psnr"][-1] for ours, _ in pairs)
    whole = statistics.median(ours["seconds"][-1] for ours, _ in pairs)
    if not name:
        return [Row(f"{title}, whole run", whole, unit="s", note=f"{end:.1f} dB")]
    reached, ratios = [], []
    for ours, peer in pairs:
        passed = (
            second
            for second, psnr in zip(ours["seconds"], ours["psnr"], strict=True)
            if psnr > peer["psnr"][-1]
        )
        # an image on which ours never gets there counts as infinitely slow
        reached.append(next(passed, float("inf")))
        ratios.append(reached[-1] / peer["seconds"][-1])
    theirs = statistics.median(peer["seconds"][-1] for _, peer in pairs)
    level = statistics.median(peer["psnr"][-1] for _, peer in pairs)
    above = sum(ours["psnr"][-1] > peer["psnr"][-1] for ours, peer in pairs)
    note = (
        f"{case.attack.__name__} until the {level:.1f} dB of {name} after {budget} iterations, "
        f"medians over {len(pairs)} images; at its end {end:.1f} dB, above on {above}"
    )
    ratio = statistics.median(ratios)
    is_reached = ratio < float("inf")
    shown = statistics.median(reached) if is_reached else None
    return [
        Row(title, shown, theirs, ratio if is_reached else None, "s", 1 / 3, True, note),
        Row(f"{title}, whole run", whole, theirs, whole / theirs, "s", note=f"{end:.1f} dB"),
    ]


def draw(path: Path, curves: dict[str, list[tuple[Any, Any]]]) -> None:
    """Draw PSNR against seconds, a panel for each model and a pair of lines for each image."""
    figure = Figure(figsize=(4.2 * len(curves), 3.2), layout="constrained")
    for panel, (name, pairs) in zip(
        figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True
    ):
        for place, (ours, peer) in enumerate(pairs):
            for color, label, one in (("C0", "ours", ours), ("C1", "breaching", peer)):
                if one is not None:
                    told = label if not place else None
                    panel.plot(one["seconds"], one["psnr"], color=color, lw=1, label=told)
        control = statistics.fmean(ours["mean_image"] for ours, _ in pairs)
        panel.axhline(control, color="0.5", lw=0.8, ls="--", label="mean image")
        panel.set(xscale="log", title=name, xlabel="processor seconds", ylabel="PSNR, dB")
        panel.legend(fontsize="small")
    figure.savefig(path)


if __name__ == "__main__":
    run_alone(__doc__, run)
