"""Each classic attack beside breaching's: mean PSNR on the same images, models and gradients.

Untrained models, one image an update (twenty for Robbing the Fed and for trap weights), the same
shortened budget for both.  R-GAP's row is of two images: the peer's takes minutes for each, and is
left out of --quick.  GradInversion's network has batch norm, whose running statistics are
those of public images, and runs in evaluation mode, as the peer assumes.  DLG's thousand steps are
50 iterations of L-BFGS with up to 20 each.  The two malicious servers send a layer each of their
own, of as many rows, in front of the same model; the peer gets the better of normalised pixels and
of [0, 1].  An image that was not recovered counts with the mean image.
"""

import argparse
import math
import time
import traceback
from collections.abc import Callable, Iterator
from statistics import mean, stdev
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.peer import Peer, april, as_chain, is_installed
from benchmarks.records import Records, Row, cifar, matched_psnr, run_alone
from lightning_recon.attacks import (
    APRIL,
    DLG,
    RGAP,
    Attack,
    CuriousAbandonHonesty,
    GradInversion,
    InvertingGradients,
    RobbingTheFed,
)
from lightning_recon.clients import FedSGD
from lightning_recon.data import ClientDataModule
from lightning_recon.targets import ConvNet, LeNet, PlainConvNet, Target, TinyViT

TOLERANCE = 0.3  # dB, by which ours may be below the peer
NUM_ROWS = 1000  # of a malicious layer
NUM_BINS, NUM_PUBLIC = 100, 5000  # of the formula: fifty images a bin make masses alike
EXACT = 60.0  # dB
STEPS = 20  # of L-BFGS, an iteration


class Case(NamedTuple):
    """One attack."""

    name: str
    target: Target
    attack: Callable[[Target, int], Attack]
    """Target, iterations -> ours."""
    peer: Callable[[Target, Tensor, Tensor, int], Tensor]
    """Target, images, labels, iterations -> the peer's images."""
    batch_size: int = 1
    num_images: int | None = None
    """Null: all that are asked for."""


def _warmed(target: Target, images: Tensor) -> Target:
    """Give batch norm the statistics of public images, and put it in evaluation mode."""
    target.train()
    for module in target.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # a plain mean
    with torch.no_grad():
        target(images)
    return target.eval()


def _named(attack: str, **changes: Any) -> Callable[[Target, Tensor, Tensor, int], Tensor]:
    """Return the peer's optimisation attack of a name."""

    def found(target: Target, images: Tensor, labels: Tensor, iterations: int) -> Tensor:
        return Peer(target, images, labels, iterations, attack, **changes).run()[0]

    return found


def _malicious(server: str) -> Callable[[Target, Tensor, Tensor, int], Tensor]:
    def found(target: Target, images: Tensor, labels: Tensor, iterations: int) -> Tensor:
        rows = f"case.server.model_modification.num_bins={NUM_ROWS}"
        results = []
        for is_normalised in (True, False):
            peer = Peer(
                target,
                images,
                labels,
                attack="imprint",
                changes=(rows,),
                server=server,
                is_normalised=is_normalised,
            )
            results.append(peer.run()[0])
        grey = images.mean(0)
        return max(results, key=lambda result: mean(matched_psnr(result, images, grey)))

    return found


def _april(target: Target, images: Tensor, labels: Tensor, iterations: int) -> Tensor:
    assert isinstance(target, TinyViT)
    target.requires_grad_(True)
    loss = torch.nn.functional.cross_entropy(target(images), labels)
    gradients = torch.autograd.grad(loss, list(target.parameters()))
    target.requires_grad_(False)
    names = [name for name, _ in target.named_parameters()]
    return april(target, dict(zip(names, gradients, strict=True)), labels)


def cases(public: Tensor) -> list[Case]:
    """Return all attacks.

    Args:
        public: N C H W, images that belong to no client.
    """
    lenet = LeNet()
    convnet = _warmed(ConvNet(width=16), public)
    vit, plain = TinyViT(), PlainConvNet()
    evaluated = FedSGD(mode="eval")
    return [
        Case(
            "Robbing the Fed",
            lenet,
            lambda target, _: RobbingTheFed(target, num_bins=NUM_ROWS),
            _malicious("malicious-model-rtf"),
            batch_size=20,
        ),
        Case(
            "CAH",
            lenet,
            lambda target, _: CuriousAbandonHonesty(target, num_rows=NUM_ROWS),
            _malicious("malicious-model-cah"),
            batch_size=20,
        ),
        Case(
            "APRIL",
            vit,
            lambda target, _: APRIL(target),
            _april,
        ),
        Case(
            "Inverting Gradients",
            lenet,
            lambda target, n: InvertingGradients(target, iterations=n),
            _named("invertinggradients"),
        ),
        Case(
            "DLG",
            lenet,
            lambda target, n: DLG(target, iterations=max(1, n // STEPS)),
            lambda target, images, labels, n: _named("deepleakage", knows_labels=False)(
                target, images, labels, max(1, n // STEPS)
            ),
        ),
        Case(
            "GradInversion",
            convnet,
            lambda target, n: GradInversion(target, client=evaluated, num_restarts=4, iterations=n),
            _named("seethroughgradients", knows_labels=False),
        ),
        Case(
            "R-GAP",
            plain,
            lambda target, _: RGAP(target),
            lambda target, images, labels, _: Peer(
                as_chain(plain), images, labels, attack="rgap", is_normalised=False
            ).run()[0],
            num_images=2,
        ),
    ]


def compare(
    case: Case, data: ClientDataModule, client: int, iterations: int, with_peer: bool
) -> dict[str, Any]:
    """Return the PSNR of a client's images, ours and the peer's, and the seconds of each."""
    batch = data.client(client)
    missing = data.public_images().mean(0)
    attack = case.attack(case.target, iterations)
    started = time.perf_counter()
    attack.bind(data.spec, data.public_images())
    found = attack.reconstruct(attack.federation.play(batch, client))
    result: dict[str, Any] = {
        "ours": matched_psnr(found.images, batch.images, missing),
        "seconds": time.perf_counter() - started,
        "null": matched_psnr(batch.images[:0], batch.images, missing),
    }
    if found.labels is not None:
        result["labels"] = int((found.labels.sort()[0] == batch.labels.sort()[0]).sum())
    if not with_peer:
        return result
    torch.manual_seed(client)
    started = time.perf_counter()
    try:
        images = case.peer(case.target, batch.images, batch.labels, iterations)
        result["peer"] = matched_psnr(images, batch.images, missing)
    except Exception as error:  # whatever another project's code raises is its result
        trace = traceback.extract_tb(error.__traceback__)[-1]
        result["failure"] = f"{type(error).__name__} in {trace.name}: {error}"[:300]
    result["peer_seconds"] = time.perf_counter() - started
    return result


def run(options: argparse.Namespace, records: Records) -> Iterator[Row]:
    """Give a row for every attack, and one for the formula of Robbing the Fed."""
    num_images = 2 if options.quick else 20
    iterations = 200 if options.quick else 1000
    data = cifar(options, batch_size=1, num_public=64)
    public, is_cifar = data.public_images(), data.fallback is None
    if is_cifar:  # there are too few sample photographs
        for num_samples in (16, 64):
            yield formula(options, records, num_samples)
    for case in cases(public):
        wanted = min(num_images, case.num_images or num_images)
        size = min(case.batch_size, wanted)
        clients = [list(range(at, at + size)) for at in range(0, wanted, size)]
        data = cifar(
            options, batch_size=size, num_clients=len(clients), indices=clients, num_public=256
        )
        with_peer = is_installed() and not (options.quick and case.name == "R-GAP")
        results = []
        for client, places in enumerate(clients):
            key = f"parity {case.name}, images {places}, {iterations} iterations, {with_peer}"
            results.append(
                records.get(
                    key,
                    lambda case=case, data=data, client=client, peer=with_peer: compare(
                        case, data, client, iterations, peer
                    ),
                )
            )
        yield _row(case.name, results)


def _row(name: str, results: list[dict[str, Any]]) -> Row:
    ours = [value for result in results for value in result["ours"]]
    peer = [value for result in results for value in result.get("peer", [])]
    failures = [result["failure"] for result in results if "failure" in result]
    note = f"{len(ours)} images, mean image {mean(v for r in results for v in r['null']):.1f} dB"
    if failures:
        note += f"; the peer failed {len(failures)} times: {failures[0]}"
    value = mean(ours)
    if not peer or failures:
        return Row(f"parity: {name}", value, unit="dB", note=note)
    other = mean(peer)
    asked = (other - TOLERANCE) / other
    return Row(f"parity: {name}", value, other, value / other, "dB", asked=asked, note=note)


def formula(options: argparse.Namespace, records: Records, num_samples: int) -> Row:
    """Compare what Robbing the Fed recovers with n (1 - 1/K)^(n-1).

    The formula is that of bins of equal mass: they lie at the quantiles of many public images.
    """
    draws, clients = (1, 10) if options.quick else (5, 40)
    expected = num_samples * (1 - 1 / NUM_BINS) ** (num_samples - 1)

    def measure() -> dict[str, list[int]]:
        counts: dict[str, list[int]] = {"exact": [], "alone": []}
        for seed in range(draws):
            data = cifar(
                options,
                split="train",
                batch_size=num_samples,
                num_clients=clients,
                num_public=NUM_PUBLIC,
                seed=seed,
            )
            attack = RobbingTheFed(LeNet(), num_bins=NUM_BINS, bins="empirical")
            attack.bind(data.spec, data.public_images())
            grey = torch.full(data.image_shape, 0.5)
            for client in range(clients):
                batch = data.client(client)
                found = attack.reconstruct(attack.federation.play(batch, client)).images
                values = matched_psnr(found, batch.images, grey)
                counts["exact"].append(sum(value > EXACT for value in values))
                brightness = batch.images.mean((1, 2, 3), dtype=torch.float64)
                bins = torch.searchsorted(attack.edges, brightness)
                counts["alone"].append(int((bins.unique(return_counts=True)[1] == 1).sum()))
        return counts

    counts = records.get(
        f"formula {num_samples} samples, {draws} draws of {clients} clients", measure
    )
    exact, alone = mean(counts["exact"]), mean(counts["alone"])
    error = stdev(counts["exact"]) / math.sqrt(draws * clients)
    away = abs(exact - expected) / error
    name = f"parity: Robbing the Fed, {num_samples} images, standard errors from n(1-1/K)^(n-1)"
    note = (
        f"{exact:.2f} exact, {alone:.2f} alone in their bin, {expected:.2f} by the formula, "
        f"standard error {error:.2f} over {draws * clients} clients"
    )
    return Row(name, away, unit="standard errors", asked=1.0, is_most=True, note=note)


if __name__ == "__main__":
    run_alone(__doc__, run)
