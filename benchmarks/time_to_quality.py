"""Wall time until ours reaches what breaching's Inverting Gradients reaches in 4,800 iterations.

The same CIFAR-10 image, model and gradient.  The peer's time is that of its whole run.  Ours runs
its own defaults, compiled, with a shorter schedule; its dummy images are put aside every few
iterations and scored after the run, since the attack never sees the truth.  What counts is the
first of them that is as good as the peer's result; the time of the whole run, and that of the
compilation, which a client after the first does not need, stand beside it.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.peer import Peer, is_installed
from benchmarks.records import Records, Row, cifar, environment, matched_psnr, run_alone
from lightning_recon.attacks import InvertingGradients
from lightning_recon.clients import FedSGD
from lightning_recon.data import ClientDataModule
from lightning_recon.targets import ConvNet, LeNet, Target

PEER_ITERATIONS = 4800
NUM_CHECKPOINTS = 100


class Case(NamedTuple):
    """One model."""

    name: str
    make_target: Callable[[], Target]
    iterations: int
    """Of ours."""
    is_quick: bool


def _small_convnet() -> Target:
    return ConvNet(width=16)


CASES = [
    Case("LeNet", LeNet, 1500, True),
    Case("ConvNet, width 16", _small_convnet, 1500, False),
]


class _Watched(InvertingGradients):
    """Puts its dummy images aside as it goes, with the time at which it had them."""

    def watch(self) -> None:
        """Begin anew."""
        self.started = time.perf_counter()
        self.seconds: list[float] = []
        self.kept: list[Tensor] = []
        self.done = 0

    def iterate(
        self, dummy: nn.Parameter, evidence: Any, optimizer: Any, scheduler: Any
    ) -> dict[str, Tensor]:
        """Do one iteration; see above."""
        parts = super().iterate(dummy, evidence, optimizer, scheduler)
        self.done += 1
        if self.done % max(1, self.iterations // NUM_CHECKPOINTS) == 0:
            self.kept.append(dummy.detach().clone())
            self.seconds.append(time.perf_counter() - self.started)
        return parts


def timed_run(attack: _Watched, data: ClientDataModule, client: int) -> dict[str, Any]:
    """Return the seconds of compilation and of each checkpoint, and the checkpoints' PSNR."""
    attack.bind(data.spec, data.public_images())
    observation = attack.federation.play(data.client(client), client)
    iterations, attack.loop.iterations = attack.loop.iterations, 1
    attack.watch()
    start, evidence = attack.initialize(observation)
    attack.loop.run(start, evidence)
    compilation = time.perf_counter() - attack.started

    attack.loop.iterations = iterations
    attack.watch()
    start, evidence = attack.initialize(observation)
    attack.loop.run(start, evidence)
    truth = data.client(client).images
    grey = torch.full(truth.shape[1:], 0.5)
    # of several restarts the one that the attack itself would return
    images = [attack.finish(checkpoint, evidence).images for checkpoint in attack.kept]
    quality = [matched_psnr(found, truth, grey)[0] for found in images]
    return {"compilation": compilation, "seconds": attack.seconds, "psnr": quality}


def pair(case: Case, options: argparse.Namespace, image: int, iterations: int) -> dict[str, Any]:
    """Return one image's run of both."""
    data = cifar(options, batch_size=1, indices=[image])
    # batch norm by its running statistics, as the peer takes it
    target, client = case.make_target().eval(), FedSGD(mode="eval")
    peer: dict[str, float] = {}
    if is_installed():
        torch.manual_seed(image)
        batch = data.client(0)
        found, seconds = Peer(target, batch.images, batch.labels, iterations).run()
        grey = torch.full(batch.images.shape[1:], 0.5)
        peer = {"seconds": seconds, "psnr": matched_psnr(found, batch.images, grey)[0]}
    ours_iterations = max(1, case.iterations * iterations // PEER_ITERATIONS)
    attack = _Watched(target, client=client, compile=True, iterations=ours_iterations, seed=image)
    result = timed_run(attack, data, 0)
    torch.compiler.reset()
    return {"ours": result, "peer": peer}


def run(options: argparse.Namespace, records: Records) -> Iterator[Row]:
    """Give the rows of every model."""
    for case in CASES:
        if options.quick and not case.is_quick:
            continue
        images = 2 if options.quick else max(options.pairs, 5)
        iterations = PEER_ITERATIONS // 4 if options.quick else PEER_ITERATIONS
        pairs = []
        for image in range(images):
            key = f"quality {case}, image {image}, {iterations} iterations, {environment()}"
            key = key.replace(str(case.make_target), "")
            pairs.append(
                records.get(
                    key,
                    lambda case=case, image=image, n=iterations: pair(case, options, image, n),
                )
            )
        yield from _rows(case, pairs, iterations)


def _rows(case: Case, pairs: list[dict[str, Any]], iterations: int) -> list[Row]:
    name = f"time to quality: {case.name}"
    whole = median(run["ours"]["seconds"][-1] for run in pairs)
    last = median(run["ours"]["psnr"][-1] for run in pairs)
    compilation = median(run["ours"]["compilation"] for run in pairs)
    rows = [Row(f"{name}, compilation", compilation, unit="s")]
    if not pairs[0]["peer"]:
        return [Row(f"{name}, whole run", whole, unit="s", note=f"{last:.1f} dB"), *rows]
    reached, ratios = [], []
    for run in pairs:
        times, quality = run["ours"]["seconds"], run["ours"]["psnr"]
        wanted = run["peer"]["psnr"]
        first = next((t for t, value in zip(times, quality, strict=True) if value >= wanted), None)
        # an image on which ours never gets there counts as infinitely slow
        reached.append(float("inf") if first is None else first)
        ratios.append(reached[-1] / run["peer"]["seconds"])
    theirs = median(run["peer"]["seconds"] for run in pairs)
    psnr = median(run["peer"]["psnr"] for run in pairs)
    note = (
        f"until its {psnr:.1f} dB after {iterations} iterations, medians over {len(pairs)} images"
    )
    never = sum(value == float("inf") for value in reached)
    if never:
        note += f"; never on {never}"
    ratio = median(ratios)
    is_reached = ratio < float("inf")
    return [
        Row(
            name,
            median(reached) if is_reached else None,
            theirs,
            ratio if is_reached else None,
            "s",
            asked=1 / 3,
            is_most=True,
            note=note,
        ),
        Row(
            f"{name}, whole run",
            whole,
            theirs,
            median(run["ours"]["seconds"][-1] / run["peer"]["seconds"] for run in pairs),
            "s",
            note=f"{last:.1f} dB at its end",
        ),
        *rows,
    ]


if __name__ == "__main__":
    run_alone(__doc__, run)
