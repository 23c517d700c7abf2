"""The payloads of benchmarks.detect_table: its cases, and the honest models among them."""

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.nn.utils import prune

from lightning_recon import targets
from lightning_recon.captures.loading import load_torch
from lightning_recon.targets.names import weights_in
from lightning_recon.updates import PrivateBatch

SIZE, CLASSES = 32, 10
MAX_PARAMETERS = 30e6
"""Of a torchvision model that is made."""
MAX_CHANGED = 11.5e6
"""Likewise of one that is looked at changed, and not untrained alone."""
Payload = nn.Module | Mapping[str, Tensor]


class Case(NamedTuple):
    """One payload."""

    is_malicious: bool
    family: str
    """Of architectures: none of it is reported by thresholds that it took part in."""
    architecture: str
    variant: str
    """How an honest model came about; the attack and its strength."""
    make: Callable[[], Payload]

    @property
    def key(self) -> str:
        """What names the case in the records."""
        kind = "malicious" if self.is_malicious else "benign"
        return f"{kind} {self.architecture}: {self.variant}"


def honest(train: PrivateBatch, weights: Path) -> Iterator[Case]:
    """Yield the honest models.

    Args:
        train: images that they are trained on.
        weights: folder with published weights; those that are missing are left out.
    """
    yield from _published(weights)
    yield from _own(train)
    yield from _torchvision()


def family_of(architecture: str) -> str:
    """Return the family of an architecture: its name without sizes, residual networks together."""
    name = architecture.lower()
    for known in (
        "resnet",
        "resnext",
        "mobilenet",
        "vgg",
        "mlp",
        "vit",
        "lenet",
        "convnet",
        "efficientnet",
    ):
        if known in name:
            return {"resnext": "resnet"}.get(known, known)
    return re.split(r"[\d_]", name)[0].strip()


OWN: dict[str, tuple[Callable[[int], nn.Module], int]] = {
    "MLP 1000": (lambda seed: targets.MLP(CLASSES, SIZE, (1000, 100), seed=seed), 300),
    "MLP 256": (lambda seed: targets.MLP(CLASSES, SIZE, (256,), seed=seed), 600),
    "MLP wide start": (
        lambda seed: targets.MLP(CLASSES, SIZE, (512,), first_std=0.5, seed=seed),
        500,
    ),
    "MLP normalised": (
        lambda seed: normalised(targets.MLP(CLASSES, SIZE, (512, 64), seed=seed)),
        300,
    ),
    "LeNet": (lambda seed: targets.LeNet(CLASSES, SIZE, seed=seed), 500),
    "ROGLeNet": (lambda seed: targets.ROGLeNet(CLASSES, SIZE, num_features=256, seed=seed), 100),
    "ConvNet": (lambda seed: targets.ConvNet(CLASSES, seed=seed), 60),
    "TutorialCNN": (lambda seed: targets.TutorialCNN(CLASSES, SIZE, seed=seed), 400),
    "VGG7": (lambda seed: targets.VGG7(CLASSES, SIZE, width=16, seed=seed), 60),
    "ResNet9": (lambda seed: targets.ResNet9(CLASSES, width=16, seed=seed), 40),
    "PlainConvNet": (lambda seed: targets.PlainConvNet(CLASSES, SIZE, seed=seed), 200),
    "TinyViT": (lambda seed: targets.TinyViT(CLASSES, SIZE, seed=seed), 80),
}
"""This project's targets by seed, and the steps for which they are trained."""


def normalised(target: targets.Target) -> nn.Module:
    """Return a model that normalises its images before."""
    return targets.ModuleTarget(target, CLASSES, mean=[0.49, 0.48, 0.45], std=[0.25, 0.24, 0.26])


def _torchvision() -> Iterator[Case]:
    for name in torchvision.models.list_models(exclude="quantized_*"):
        size = torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"]
        if size > MAX_PARAMETERS or name.startswith("raft"):
            continue
        changes = list(CHANGES.items())[: 1 if size > MAX_CHANGED else None]
        for place, (variant, change) in enumerate(changes):
            make = partial(_changed, partial(_seeded, name, place), change)
            yield Case(False, family_of(name), name, variant, make)


def _plain(name: str) -> nn.Module:
    options: dict[str, Any] = {"weights": None}
    if "rcnn" in name or name.split("_")[0] in _DENSE:
        options["weights_backbone"] = None
    elif name in ("googlenet", "inception_v3"):
        options["init_weights"] = True
    model: nn.Module = torchvision.models.get_model(name, **options)
    return model


_DENSE = (
    "deeplabv3",
    "fcn",
    "fcos",
    "keypointrcnn",
    "lraspp",
    "maskrcnn",
    "retinanet",
    "ssd300",
    "ssdlite320",
)


def _seeded(name: str, seed: int) -> nn.Module:
    with targets.base.seeded(seed):
        return _plain(name)


def _own(train: PrivateBatch) -> Iterator[Case]:
    for name, (make, steps) in OWN.items():
        for place, (variant, change) in enumerate(CHANGES.items()):
            made = partial(make, place)
            yield Case(False, family_of(name), name, variant, partial(_changed, made, change))
        for done in (10, steps):
            trained = cache(partial(_trained, partial(make, 7), train, done))
            yield Case(False, family_of(name), name, f"trained for {done} steps", trained)
        for variant, change in list(CHANGES.items())[1:]:
            said = f"trained for {steps} steps, {variant}"
            yield Case(False, family_of(name), name, said, partial(_changed, trained, change))


def _published(weights: Path) -> Iterator[Case]:
    for name, file in (
        ("squeezenet1_0", "squeezenet1_0.pth"),
        ("resnet20", "cifar10_resnet20.th"),
        ("ffdnet", "ffdnet_rgb.pth"),
    ):
        if not (weights / file).is_file():
            continue
        state = weights_in(load_torch(weights / file))
        assert state is not None
        yield Case(False, family_of(name), name, "published weights", partial(dict, state))
        for bits in (8, 4):
            rounded = {key: _rounded(part, bits) for key, part in state.items()}
            said = f"published weights, {bits} bits"
            yield Case(False, family_of(name), name, said, partial(dict, rounded))


def _changed(make: Callable[[], nn.Module], change: Callable[[nn.Module], None]) -> nn.Module:
    model = copy.deepcopy(make())
    change(model)
    return model


def _trained(make: Callable[[], nn.Module], train: PrivateBatch, steps: int) -> nn.Module:
    """Return a model after so many steps of SGD."""
    with targets.base.seeded(1):
        model = make().requires_grad_().train()
        rate = 0.01 if isinstance(model, targets.TinyViT) else 0.05
        optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4)
        for _ in range(steps):
            batch = torch.randint(len(train.images), (64,))
            loss = F.cross_entropy(model(train.images[batch]), train.labels[batch])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    return model.eval()


def _nothing(model: nn.Module) -> None:
    pass


def _weights(model: nn.Module) -> Iterator[nn.Module]:
    return (one for one in model.modules() if isinstance(one, nn.Conv2d | nn.Linear | nn.Conv3d))


def _pruned(amount: float, rows: bool, model: nn.Module) -> None:
    """Set the smallest numbers of each layer, or the rows of the smallest norm, to zero."""
    layers = list(_weights(model))
    for layer in layers[:-1] if rows else layers:  # a head keeps its classes
        if rows:
            prune.ln_structured(layer, "weight", amount, n=2, dim=0)
        else:
            prune.l1_unstructured(layer, "weight", amount)
        prune.remove(layer, "weight")


def _quantised(bits: int, model: nn.Module) -> None:
    with torch.no_grad():
        for layer in _weights(model):
            layer.weight.copy_(_rounded(layer.weight, bits))


def _rounded(part: Tensor, bits: int) -> Tensor:
    """Return numbers on the levels of a symmetric quantiser."""
    if not part.is_floating_point() or part.ndim < 2:
        return part
    step = part.abs().max().clamp_min(1e-30) / (2 ** (bits - 1) - 1)
    return (part / step).round() * step


CHANGES: dict[str, Callable[[nn.Module], None]] = {
    "untrained": _nothing,
    "90 % pruned": partial(_pruned, 0.9, False),
    "half of the rows pruned": partial(_pruned, 0.5, True),
    "8 bits": partial(_quantised, 8),
    "4 bits": partial(_quantised, 4),
}
