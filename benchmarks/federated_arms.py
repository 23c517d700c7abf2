"""One federation under servers that differ in who gets the payload, and the payload's effects.

The arms, and what is made of them: :mod:`benchmarks.federated_accuracy`.
"""

import argparse
import math
import time
from statistics import mean, median
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_recon.attacks import LDPAttack
from lightning_recon.data import CIFAR10DataModule
from lightning_recon.defenses import ClipL2, GaussianNoise, apply_chain
from lightning_recon.errors import InputError
from lightning_recon.randomness import derive_seed, make_generator
from lightning_recon.runs.federated import batch_of, calibrated, evaluate, scores
from lightning_recon.targets import ConvNet
from lightning_recon.updates import DataSpec, PrivateBatch, Update

PREFIX = "model."  # of the target's parameters in the payload
ARMS = {
    "honest": "to none (honest)",
    "one": "to one a round",
    "left_out": "to one, left out",
    "all": "to all",
}
"""Who gets the malicious payload, as it stands in the tables."""


class Federation(NamedTuple):
    """All data of one seed."""

    shards: list[PrivateBatch]
    """What each client holds."""
    public: Tensor
    """The server's own images, N C H W: for the payload's thresholds and for batch norm."""
    test: PrivateBatch


class Norms(NamedTuple):
    """L2 norms of one client's update."""

    update: float
    """The whole update, before clipping."""
    model: float
    """The part of the model's parameters, before clipping."""
    kept: float
    """The part of the model's parameters, after clipping and before the noise."""


class Run(NamedTuple):
    """What one arm with one seed came to."""

    curve: list[dict[str, Any]]
    """``arm``, ``seed``, ``round``, ``accuracy``, ``loss``; round 0 is the untrained model."""
    norms: dict[str, dict[str, float]]
    """Medians over all updates, by kind of client (``honest``, ``attacked``)."""
    attack: LDPAttack
    """Holds the trained model as its target."""
    seconds: float


def open_federation(args: argparse.Namespace, seed: int) -> Federation:
    """Deal the training images to the clients and the server.

    Raises:
        InputError: if the data are missing, or too few for one batch a client.
    """
    train = _open(args.root, "train", args.clients, args.num_public, seed)
    if train.batch_size < args.batch_size:
        raise InputError(
            f"each of {args.clients} clients would hold {train.batch_size} images; "
            f"--batch-size asks for {args.batch_size}"
        )
    test = _open(args.root, "test", 1, 0, seed)
    shards = [train.client(client) for client in range(args.clients)]
    return Federation(shards, train.public_images(), test.client(0))


def _open(root: str, split: Any, clients: int, num_public: int, seed: int) -> CIFAR10DataModule:
    """Return a data module whose clients share all images but the public ones."""
    data = CIFAR10DataModule(
        split=split, root=root, num_clients=clients, num_public=num_public, seed=seed
    )
    data.batch_size = max(1, (len(data.source) - num_public) // clients)
    return data


def is_attacked(arm: str, client: int, round_: int, clients: int) -> bool:
    """Return whether the server sends this client the malicious payload in this round."""
    return arm == "all" or (arm in ("one", "left_out") and client == round_ % clients)


def model_part(update: Update) -> Update:
    """Return the entries of the target's parameters, under the target's own names."""
    if not any(name.startswith(PREFIX) for name in update):
        return update
    return {
        name.removeprefix(PREFIX): tensor
        for name, tensor in update.items()
        if name.startswith(PREFIX)
    }


def norm_of(update: Update) -> float:
    """Return the L2 norm of a whole update."""
    norms = [torch.linalg.vector_norm(tensor.double()) for tensor in update.values()]
    return float(torch.linalg.vector_norm(torch.stack(norms)))


def client_update(
    attack: LDPAttack, payload: nn.Module, batch: PrivateBatch, *path: int
) -> tuple[Update, Norms]:
    """Return the model's part of what one client sends, and its norms on the way.

    Args:
        attack: holds the protocol and the defenses.
        payload: what the server sent: the target itself, or the target behind the structure.
        batch: the client's images of this round.
        *path: seed, round and client, from which all randomness is derived.
    """
    update = attack.client(payload, batch, seed=derive_seed(*path, "client"))
    whole, model = norm_of(update), norm_of(model_part(update))
    defenses = [defense for defense in attack.defenses if isinstance(defense, ClipL2)]
    bound = min((defense.clip_norm for defense in defenses), default=math.inf)
    # the payload's first parameters are the model's, in the model's order: from the same seed
    # they get the same noise in every arm
    update = apply_chain(
        list(attack.defenses),  # type: ignore[arg-type]
        update,
        generator=make_generator(*path, "defenses"),
    )
    return model_part(update), Norms(whole, model, model * min(1.0, bound / whole))


def make_attack(args: argparse.Namespace, public: Tensor, seed: int) -> LDPAttack:
    """Return the attack on a fresh target, its thresholds fitted on the public images."""
    attack = LDPAttack(
        ConvNet(width=args.width, seed=seed),
        defenses=[ClipL2(args.clip_norm), GaussianNoise(args.noise_std)],
        num_bins=args.num_bins,
        num_samples=args.batch_size,
        seed=seed,
    )
    spec = DataSpec((public.shape[1], public.shape[2], public.shape[3]), None, args.batch_size)
    attack.bind(spec, public)
    return attack


def train(args: argparse.Namespace, federation: Federation, arm: str, seed: int) -> Run:
    """Run the whole federated training of one arm."""
    start = time.perf_counter()
    attack = make_attack(args, federation.public, seed)
    model = attack.target
    malicious = attack.server_payload(model)  # holds the same model, not a copy
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=args.momentum)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.rounds)
    start_scores = evaluate(calibrated(model, federation.public), federation.test)
    curve: list[dict[str, Any]] = [{"arm": arm, "seed": seed, "round": 0, **start_scores}]
    norms: dict[str, list[Norms]] = {}
    for round_ in range(args.rounds):
        received: list[Update] = []
        for client, shard in enumerate(federation.shards):
            attacked = is_attacked(arm, client, round_, args.clients)
            update, update_norms = client_update(
                attack,
                malicious if attacked else model,
                batch_of(shard, args.batch_size, round_, seed, client),
                seed,
                round_,
                client,
            )
            norms.setdefault("attacked" if attacked else "honest", []).append(update_norms)
            if not (attacked and arm == "left_out"):
                received.append(update)
        for name, parameter in model.named_parameters():
            parameter.grad = torch.stack([update[name] for update in received]).mean(0)
        optimizer.step()
        schedule.step()
        done = round_ + 1
        if done % args.eval_every == 0 or done == args.rounds:
            found = evaluate(calibrated(model, federation.public), federation.test)
            curve.append({"arm": arm, "seed": seed, "round": done, **found})
    medians = {
        kind: {field: median(getattr(entry, field) for entry in entries) for field in Norms._fields}
        for kind, entries in norms.items()
    }
    return Run(curve, medians, attack, time.perf_counter() - start)


@torch.no_grad()
def forward_effect(attack: LDPAttack, federation: Federation, size: int) -> dict[str, float]:
    """Return what the structure does to the trained model's outputs on the test images.

    Args:
        attack: holds the trained model.
        federation: the public images and the test images.
        size: of the batches, which the payload is made for.
    """
    model = calibrated(attack.target, federation.public)
    payload = attack.server_payload(model).eval()
    batches = federation.test.images.split(size)
    plain = torch.cat([model(images) for images in batches])
    behind = torch.cat([payload(images) for images in batches])
    top = plain.topk(2, dim=1).values
    shift = (behind - plain).abs().amax(1)
    without, with_ = scores(plain, federation.test.labels), scores(behind, federation.test.labels)
    return {
        "accuracy_without": without["accuracy"],
        "accuracy_with": with_["accuracy"],
        "loss_without": without["loss"],
        "loss_with": with_["loss"],
        "predictions_changed": int((plain.argmax(1) != behind.argmax(1)).sum()),
        "shift_mean": float(shift.mean()),
        "shift_max": float(shift.max()),
        "margin_median": float((top[:, 0] - top[:, 1]).median()),
    }


def gradient_effect(
    args: argparse.Namespace, attack: LDPAttack, federation: Federation, seed: int
) -> dict[str, float]:
    """Return how far the structure turns the model's own gradient, before the defenses.

    Mean over the clients' first batches, at the trained model.
    """
    model = attack.target
    payload = attack.server_payload(model)
    cosines, distances = [], []
    for client, shard in enumerate(federation.shards):
        batch = batch_of(shard, args.batch_size, 0, seed, client)
        plain = _flat(attack.client(model, batch, seed=0))
        behind = _flat(model_part(attack.client(payload, batch, seed=0)))
        cosines.append(float(F.cosine_similarity(plain, behind, dim=0)))
        distances.append(float((behind - plain).norm() / plain.norm()))
    return {"gradient_cosine": mean(cosines), "gradient_distance": mean(distances)}


def _flat(update: Update) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in update.values()]).double()
