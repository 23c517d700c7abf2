"""The malicious payloads of benchmarks.detect_table: this project's attacks at five strengths."""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.detect_payloads import CLASSES, SIZE, Case, family_of, normalised
from lightning_recon import attacks, targets
from lightning_recon.attacks.fishing import NEVER
from lightning_recon.clients import Aggregate, FedSGD
from lightning_recon.clients.aggregate import ClientPayload
from lightning_recon.defenses import ClipL2, GaussianNoise
from lightning_recon.functional.labels.last_layer import last_linear_layer
from lightning_recon.updates import DataSpec, PrivateBatch

BATCH, ROUND = 8, 4
"""Images of a client, and clients of a round where it has several."""
Host = Callable[[int], targets.Target]
HOSTS: dict[str, Host] = {
    "LeNet": lambda seed: targets.LeNet(CLASSES, SIZE, seed=seed),
    "ConvNet": lambda seed: targets.ConvNet(CLASSES, seed=seed),
    "TutorialCNN": lambda seed: targets.TutorialCNN(CLASSES, SIZE, seed=seed),
    "VGG7": lambda seed: targets.VGG7(CLASSES, SIZE, width=16, seed=seed),
    "ResNet9": lambda seed: targets.ResNet9(CLASSES, width=16, seed=seed),
    "TinyViT": lambda seed: targets.TinyViT(CLASSES, SIZE, seed=seed),
    "MLP 256": lambda seed: targets.MLP(CLASSES, SIZE, (256,), seed=seed),
    **{
        name: partial(
            lambda name, seed: targets.TorchvisionClassifier(name, num_classes=CLASSES, seed=seed),
            name,
        )
        for name in ("resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1")
    },
}
"""Models that a malicious layer stands in front of."""
HEADED = {name: make for name, make in HOSTS.items() if name not in ("squeezenet1_1", "VGG7")}
"""Those that end in a linear layer with a bias."""
BIASED: dict[str, Host] = {
    **{
        f"MLP {'-'.join(map(str, hidden))}": partial(
            lambda hidden, seed: targets.MLP(CLASSES, SIZE, hidden, seed=seed), hidden
        )
        for hidden in ((128,), (256,), (512,), (800,), (1000,), (1000, 100), (300, 100, 50))
    },
    "MLP wide start": lambda seed: targets.MLP(CLASSES, SIZE, (512,), first_std=0.5, seed=seed),
    "MLP normalised": lambda seed: normalised(targets.MLP(CLASSES, SIZE, (512, 64), seed=seed)),
    "MLP normalised small": lambda seed: normalised(targets.MLP(CLASSES, SIZE, (128,), seed=seed)),
}
"""Models whose own first layer is set."""
BEHIND: dict[str, tuple[int, ...]] = {
    "TutorialCNN": (6, 16),
    "VGG": (16, 16, 32),
    "PlainConvNet": (12, 24, 24),
    "ConvNet": (32, 32),
}
"""Channels of convolutions, behind which a linear layer of some rows is set."""
STRENGTHS = (1024, 1.0), (512, 0.3), (256, 0.1), (128, 0.03), (64, 0.01)
"""Rows of the malicious layer, and their gain in units of the attack's own."""
SURE = 200.0, 100.0, 50.0, 25.0, 12.0
"""Nats by which a head that fishes for a class prefers the others; by which one that fishes for a
feature shifts all of them, which changes nothing of the model."""
SILENT = 1.0, 0.5, 0.25, 0.15, 0.1
"""Parts of the biases that silence a first layer for every image; a tenth does for usual ones."""
PROTECTED = {"defenses": (ClipL2(1.0), GaussianNoise(0.001)), "num_samples": BATCH}
TOGETHER = {"client": Aggregate(FedSGD(), num_clients=ROUND)}
ATTACKS: dict[str, Callable[..., attacks.Attack]] = {
    "RobbingTheFed": lambda host, rows, gain: attacks.RobbingTheFed(host, num_bins=rows, gain=gain),
    "CuriousAbandonHonesty": lambda host, rows, gain: attacks.CuriousAbandonHonesty(
        host, num_rows=rows, gain=gain
    ),
    "LDPAttack": lambda host, rows, gain: attacks.LDPAttack(
        host, num_bins=rows, gain=1e4 * gain, **PROTECTED
    ),
    "SpectralLDPAttack": lambda host, rows, gain: attacks.SpectralLDPAttack(
        host, num_bins=rows, gain=1e4 * gain, shrinkage_steps=0, **PROTECTED
    ),
    "CodedLDPAttack": lambda host, rows, gain: attacks.CodedLDPAttack(
        host, num_bins=rows, gain=1e4 * gain, shrinkage_steps=0, **PROTECTED
    ),
    "Loki": lambda host, rows, gain: attacks.Loki(
        host, num_bins=rows // 4, gain=gain, scaling=max(gain, 0.1), apart=False, **TOGETHER
    ),
}
BATCHES = 4, 8, 16, 32, 64
"""Sizes that SolitonBiases sets its biases for; half of them by public images."""


def malicious(train: PrivateBatch) -> Iterator[Case]:
    """Yield the malicious payloads.

    Args:
        train: of whose images the first serve as public ones.
    """
    public = train.images[:50]
    for attack, make in ATTACKS.items():
        for host, made, seed in _seeded(HOSTS):
            rows, gain = STRENGTHS[seed]
            payload = partial(_payload, make, made, seed, (rows, gain), public)
            yield _case(host, f"{attack}, {rows} rows, gain x{gain:g}", payload)
    for host, made, seed in _seeded(BIASED):
        uses, batch = seed % 2 == 1, BATCHES[seed]
        said = f"SolitonBiases, batch {batch}{', public quantiles' if uses else ''}"
        yield _case(host, said, partial(_soliton, made, seed, batch, uses, public))
    for fish in ("class", "feature"):
        for host, made, seed in _seeded(HEADED):
            payload = partial(_fishing, made, seed, fish, SURE[seed], public)
            yield _case(host, f"Fishing for a {fish}, {SURE[seed]:g} nats", payload)
    for host, made, seed in _seeded(BIASED):
        payload = partial(_silent, made, seed, SILENT[seed], public)
        yield _case(host, f"ModelInconsistency, biases x{SILENT[seed]:g}", payload)
    for host, channels in BEHIND.items():
        for seed, (rows, _) in enumerate(STRENGTHS):
            payload = partial(_latent, channels, seed, rows, public)
            yield _case(host, f"ScaleMIA, {rows} rows", payload)


def _seeded(hosts: dict[str, Host]) -> Iterator[tuple[str, Host, int]]:
    """Yield every host with the number of every strength, which seeds it."""
    return ((host, make, seed) for host, make in hosts.items() for seed in range(len(STRENGTHS)))


def _case(host: str, variant: str, make: Callable[[], nn.Module]) -> Case:
    return Case(True, family_of(host), host, variant, make)


def bound(attack: attacks.Attack, public: Tensor, batch: int = BATCH) -> attacks.Attack:
    """Return an attack that knows the data."""
    attack.bind(DataSpec((3, SIZE, SIZE), CLASSES, batch), public)
    return attack


def sent(attack: attacks.Attack, place: int = 0) -> nn.Module:
    """Return what the server of a bound attack sends to one client of the round."""
    payload = attack.federation.payload
    return payload.for_client(place) if isinstance(payload, ClientPayload) else payload


def _payload(
    make: Any, made: Host, seed: int, strength: tuple[int, float], public: Tensor
) -> nn.Module:
    return sent(bound(make(made(seed), *strength), public))


def _soliton(made: Host, seed: int, batch: int, uses_public: bool, public: Tensor) -> nn.Module:
    attack = attacks.SolitonBiases(made(seed), uses_public=uses_public, num_samples=batch)
    return copy.deepcopy(bound(attack, public, batch).federation.payload)


def _fishing(made: Host, seed: int, fish: Any, nats: float, public: Tensor) -> nn.Module:
    """Return a payload that fishes, all its classes' biases scaled or shifted alike."""
    attack = attacks.Fishing(made(seed), fish=fish, target_class=seed)
    payload = copy.deepcopy(sent(bound(attack, public)))
    name = last_linear_layer(payload, public[:1])[1]
    bias = payload.get_parameter(name or "")
    with torch.no_grad():
        bias.copy_(bias * nats / NEVER if fish == "class" else bias - NEVER + nats)
    return payload


def _silent(made: Host, seed: int, part: float, public: Tensor) -> nn.Module:
    """Return what those clients are sent whose first layer is to be dead; the biases scaled."""
    attack = attacks.ModelInconsistency(made(seed), **TOGETHER)
    payload = copy.deepcopy(sent(bound(attack, public), place=1))
    first = next(m for m in payload.modules() if isinstance(m, nn.Linear))
    with torch.no_grad():
        first.bias.mul_(part)
    return payload


def _latent(channels: tuple[int, ...], seed: int, rows: int, public: Tensor) -> nn.Module:
    with targets.base.seeded(seed):
        layers: list[nn.Module] = []
        for before, after in zip((3, *channels), channels, strict=False):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        size = channels[-1] * (SIZE // 2 ** len(channels)) ** 2
        layers += [nn.Flatten(), nn.Linear(size, rows), nn.ReLU(), nn.Linear(rows, CLASSES)]
        host = targets.ModuleTarget(nn.Sequential(*layers), CLASSES)
    attack = attacks.ScaleMIA(host, kernel_size=1, decoder_steps=0)
    return sent(bound(attack, public))
