"""Iterations per second and restart of Inverting Gradients, ours and breaching's.

Geiping et al., NeurIPS 2020, on the same model, image and gradient, one iteration ours and theirs;
ours compiled.  Each ratio is the median over pairs that ran one right after the other.  Where the
processor computes in bfloat16: autocast against float32, and what it costs in PSNR.
"""

import argparse
import contextlib
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from benchmarks.peer import Peer, is_installed
from benchmarks.records import Records, Row, cifar, environment, matched_psnr, paired, run_alone
from lightning_recon.attacks import InvertingGradients
from lightning_recon.clients import FedSGD
from lightning_recon.data import ClientDataModule
from lightning_recon.targets import ConvNet, LeNet, Target, TorchvisionClassifier

BF16_SETTINGS = ("amx_bf16", "avx512_bf16")


class Case(NamedTuple):
    """One comparison."""

    name: str
    make_target: Callable[[], Target]
    image_size: int
    restarts: int
    iterations: int
    is_quick: bool
    asked: float
    """The least ratio that is asked for on a CPU."""
    asked_gpu: float | None = None


def _resnet18() -> Target:
    return TorchvisionClassifier("resnet18", num_classes=10)


def _convnet64() -> Target:
    return ConvNet(width=64)


CASES = [
    Case("LeNet 32x32, 1 restart", LeNet, 32, 1, 200, True, 2.5),
    Case("LeNet 32x32, 8 restarts", LeNet, 32, 8, 200, True, 8.0),
    Case("LeNet 32x32, 32 restarts", LeNet, 32, 32, 100, True, 14.0),
    Case("ConvNet64 32x32, 1 restart", _convnet64, 32, 1, 10, True, 1.3, 2.0),
    Case("ResNet-18 32x32, 1 restart", _resnet18, 32, 1, 10, True, 1.3, 2.0),
    Case("ResNet-18 224x224, 1 restart", _resnet18, 224, 1, 5, False, 1.35),
]
ON_GPU = [
    Case("ConvNet64 32x32, 8 restarts", _convnet64, 32, 8, 10, True, 4.0, 4.0),
    Case("ResNet-18 32x32, 8 restarts", _resnet18, 32, 8, 10, True, 4.0, 4.0),
]


def prepare(
    attack: InvertingGradients, data: ClientDataModule, device: str = "cpu"
) -> Callable[[], float]:
    """Return a function that gives the seconds of all iterations, after some that warm up."""
    attack.to(device)
    attack.bind(data.spec, data.public_images())
    start, evidence = attack.initialize(attack.federation.play(data.client(0), 0))

    def seconds() -> float:
        started = time.perf_counter()
        attack.loop.run(start, evidence)
        if start.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - started

    iterations, attack.loop.iterations = attack.loop.iterations, 3
    seconds()
    attack.loop.iterations = iterations
    return seconds


def compare(case: Case, options: argparse.Namespace, device: str) -> dict[str, float | None]:
    """Return iterations per second and restart, ours and the peer's, and their ratio."""
    data = cifar(options, batch_size=1, indices=[0], image_size=case.image_size)
    target = case.make_target()
    attack = InvertingGradients(
        target,
        client=FedSGD(mode="eval"),  # one image has no batch statistics, and the peer uses none
        num_restarts=case.restarts,
        compile=True,
        iterations=case.iterations,
    )
    seconds = prepare(attack, data, device)
    peer = None
    if is_installed():
        batch = data.client(0)
        peer = Peer(
            target.eval(), batch.images.to(device), batch.labels.to(device), case.iterations
        )
        peer.run()  # warm
    ours, theirs, ratio = paired(
        lambda: case.restarts * case.iterations / seconds(),
        None if peer is None else lambda: case.iterations / peer.run()[1],
        options.pairs,
    )
    torch.compiler.reset()
    return {"ours": ours, "peer": theirs, "ratio": ratio}


def has_bfloat16() -> bool:
    """Whether the processor computes in bfloat16 itself."""
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(found.get(name) for name in BF16_SETTINGS)


def bfloat16(options: argparse.Namespace) -> dict[str, float]:
    """Return how much faster ConvNet64 is under autocast, and the PSNR lost by it, in dB."""
    data = cifar(options, batch_size=1, indices=[0])
    contexts = {
        "float32": contextlib.nullcontext(),
        "bfloat16": torch.autocast("cpu", torch.bfloat16),
    }
    runs, quality = {}, {}
    for name, context in contexts.items():
        with context:
            runs[name] = prepare(InvertingGradients(_convnet64(), iterations=10), data)
            attack = InvertingGradients(_convnet64(), iterations=100 if options.quick else 300)
            attack.bind(data.spec, data.public_images())
            found = attack.reconstruct(attack.federation.play(data.client(0), 0)).images.float()
        truth = data.client(0).images
        (quality[name],) = matched_psnr(found, truth, truth.new_full(truth.shape[1:], 0.5))

    def rate(name: str) -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=name == "bfloat16"):
            return 10 / runs[name]()

    fast, plain, ratio = paired(lambda: rate("bfloat16"), lambda: rate("float32"), options.pairs)
    assert plain is not None
    assert ratio is not None
    return {
        "fast": fast,
        "plain": plain,
        "ratio": ratio,
        "psnr": quality["bfloat16"],
        "lost": quality["float32"] - quality["bfloat16"],
    }


def run(options: argparse.Namespace, records: Records) -> Iterator[Row]:
    """Give a row for every case."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for case in CASES + (ON_GPU if device == "cuda" else []):
        if options.quick and not case.is_quick:
            continue
        key = f"speed {case.name}, {options.pairs} pairs, {device}, {environment()}"
        found = records.get(key, lambda case=case: compare(case, options, device))
        asked = case.asked if device == "cpu" else case.asked_gpu
        unit = "iterations/s/restart"
        yield Row(f"speed: {case.name}, {device}", **found, unit=unit, asked=asked)
    if has_bfloat16():
        key = f"bfloat16 {options.pairs} pairs, {environment()}"
        found = records.get(key, lambda: bfloat16(options))
        name = "speed: ConvNet64 32x32, bfloat16 against our float32"
        yield Row(name, found["fast"], found["plain"], found["ratio"], "iterations/s")
        name = "speed: ConvNet64 32x32, PSNR lost by bfloat16"
        yield Row(name, found["lost"], unit="dB", note=f"of {found['psnr']:.1f} dB")


if __name__ == "__main__":
    run_alone(__doc__, run)
