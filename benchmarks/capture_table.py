"""Twelve captures, each beside what every attack of an audit reads of it.

    python -m benchmarks.capture_table [--clients 5] [--data FOLDER]

Clients hold CIFAR-10's test images and train plainly; what they send is written as a capture and
read back.  Every attack that ``audit`` considers (quick effort) looks at every client, also those
that the audit would leave out; the last column is what the audit itself says.  A cell has the
images that are right (19 dB, and 4 dB above the best control of that image) and the mean PSNR over
all images, where one that did not come back counts with the mean image.
"""

import argparse
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.verdict import ROOT
from benchmarks.verdict_networks import QuickstartNet, TwoStrides, normalised
from lightning_recon.captures import Capture, CaptureWriter
from lightning_recon.clients import FedAvg
from lightning_recon.defenses import QSGD, ClipL2, Defense, GaussianNoise, TopK, apply_chain
from lightning_recon.defenses.base import bind_chain
from lightning_recon.randomness import make_generator
from lightning_recon.runs.captured import judge
from lightning_recon.targets import MLP, ConvNet, LeNet, ModuleTarget, ROGLeNet, Target
from lightning_recon.updates import PrivateBatch
from lightning_recon.verdict import Auditor, ClientAudit, Setting
from lightning_recon.verdict.client import Picture
from lightning_recon.verdict.evidence import look, shuffled
from lightning_recon.verdict.plan import plan_attacks
from lightning_recon.verdict.sent import read_reply

ATTACKS = (
    "LinearLayerInversion",
    "RGAP",
    "AnnealedInversion",
    "FeatureInversionAttack",
    "InvertingGradients",
)
SHAPE = (3, 32, 32)
LEARNING_RATE = 0.01


class Scene(NamedTuple):
    """What a capture is of."""

    words: str
    target: Callable[[], Target]
    batch_size: int
    steps: int = 1
    defenses: Callable[[], list[Defense]] = list


def local_dp(epsilon: float) -> list[Defense]:
    """Return what Flower's LocalDpMod does at clip 1, sensitivity 1, delta 1e-5."""
    noise = math.sqrt(2 * math.log(1.25 / 1e-5)) / epsilon
    return [ClipL2(1.0), GaussianNoise(noise_std=noise)]


def mlp() -> Target:
    """Return a network of linear layers."""
    return normalised(lambda: MLP(10, SHAPE[1], (200,)).requires_grad_(True))


SCENES = (
    Scene("MLP 200, 4 images", mlp, 4),
    Scene("MLP 200, 16 images, 5 steps", mlp, 16, 5),
    Scene("MLP 200, 4 images, LocalDpMod(1000)", mlp, 4, 1, lambda: local_dp(1000)),
    Scene("MLP 200, 4 images, LocalDpMod(1)", mlp, 4, 1, lambda: local_dp(1)),
    Scene("tutorials' CNN, 1 image", lambda: normalised(QuickstartNet), 1),
    Scene("tutorials' CNN, 4 images", lambda: normalised(QuickstartNet), 4),
    Scene("tutorials' CNN, 4 images, 5 steps", lambda: normalised(QuickstartNet), 4, 5),
    Scene("ROG's LeNet, 4 images, QSGD 16", lambda: ROGLeNet(10, SHAPE[1]), 4, 1,
          lambda: [QSGD(16)]),
    Scene("strided CNN, 4 images, top 10 %", lambda: ModuleTarget(TwoStrides, num_classes=10), 4, 1,
          lambda: [TopK(0.9)]),
    Scene("DLG's LeNet (sigmoid), 1 image", lambda: LeNet(10, SHAPE[1]), 1),
    Scene("DLG's LeNet (sigmoid), 4 images", lambda: LeNet(10, SHAPE[1]), 4),
    Scene("ConvNet 16 (pooled features), 1 image", lambda: ConvNet(10, width=16), 1),
)  # fmt: skip


def captured(scene: Scene, pool: Tensor, clients: int, folder: Path) -> tuple[Target, list[Tensor]]:
    """Write a capture of some clients, and return the network and the images of each."""
    target = scene.target().requires_grad_(True)
    writer = CaptureWriter(folder, "a benchmark", image_shape=list(SHAPE))
    payload = writer.add_payload(target.state_dict())
    held = []
    for number in range(clients):
        generator = make_generator(number, scene.words, "captures")
        size = scene.batch_size
        images = pool[torch.randperm(len(pool), generator=generator)[:size]]
        labels = torch.randint(10, (size,), generator=generator)
        batch = PrivateBatch(images, labels, torch.ones(size, 1, *SHAPE[1:]).bool(), labels)
        client = FedAvg(LEARNING_RATE, epochs=scene.steps, shuffle=False)
        update = client.run(target, batch, seed=number)[0]
        chain = scene.defenses()
        bind_chain(chain, None)
        sent = apply_chain(chain, update, generator=generator)
        after = {name: value + sent.get(name, 0) for name, value in target.state_dict().items()}
        facts = {"batch_size": size, "learning_rate": LEARNING_RATE, "steps": scene.steps}
        writer.add_reply(1, number, after, "weights", payload, **facts)
        held.append(images)
    return target, held


def row_of(scene: Scene, pool: Tensor, public: Tensor, clients: int) -> list[str]:
    """Return the cells of a capture: an attack each, and the audit's own word."""
    right: dict[str, list[bool]] = {name: [] for name in ATTACKS}
    found: dict[str, list[float]] = {name: [] for name in ATTACKS}
    verdicts: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        target, held = captured(scene, pool, clients, Path(folder) / "capture")
        setting = Setting(SHAPE, public)
        auditor = Auditor(target, 10, setting)
        capture = Capture(Path(folder) / "capture")
        for path in capture.files:
            reply = capture.read(path)
            images = held[int(reply.client)]
            verdicts.append(auditor.audit(reply).verdict)
            sent = read_reply(reply, auditor.target, SHAPE)
            training = auditor.training(reply, sent)
            auditor.target.load_state_dict(sent.state, strict=False)
            plans, _ = plan_attacks(auditor.target, sent, training, setting)
            for plan in plans:
                one = look(plan.make(0), sent.update, training, setting)
                control = look(plan.make(0), shuffled(sent.update, 0), training, setting)
                judged = judge(
                    _alone(plan.name, one.images, control.images), images, public.mean(0)
                )
                right[plan.name] += judged.right
                found[plan.name] += judged.psnr
    total = clients * scene.batch_size
    cells = [
        f"{sum(right[name])} of {total}, {np.mean(found[name]):.1f}" if found[name] else ""
        for name in ATTACKS
    ]
    said = ", ".join(f"{verdicts.count(word)} {word}" for word in dict.fromkeys(verdicts))
    return [*cells, said]


def _alone(name: str, images: Tensor, controls: Tensor) -> ClientAudit:
    """Return one attack's images as an audit has them."""
    pictures = [Picture(image, None, name, 0.0, {}) for image in images]
    return ClientAudit("", "cannot tell", "", [], {}, pictures, controls, None, {}, None, "")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=5)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with np.load(options.data / "cifar10-sample.npz") as arrays:
        pool, public = (
            torch.from_numpy(arrays[name]).permute(0, 3, 1, 2).float() / 255
            for name in ("x_test", "x_train")
        )
    heads = ["capture", *ATTACKS, "the audit says"]
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for scene in SCENES:
        cells = row_of(scene, pool, public[:256], options.clients)
        print(f"| {' | '.join([scene.words, *cells])} |", flush=True)


if __name__ == "__main__":
    main()
