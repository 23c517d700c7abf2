"""Several clients attacked as one batched computation; what cannot be, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn

from lightning_recon.attacks.matching.evidence import Evidence, stack_clients
from lightning_recon.errors import InputError
from lightning_recon.observation import Failure, Reconstruction

if TYPE_CHECKING:
    from lightning_recon.attacks.gradient_matching import GradientMatching

COUPLING = (torch.optim.LBFGS, torch.optim.Adafactor)
"""Optimizers of which a step on one number depends on the others of its tensor."""
Begun = dict[int, tuple[Tensor, Evidence]]
"""By client, what the attack's ``initialize`` returned."""


def check_batchable(attack: str, optimizer: OptimizerCallable, is_batchable: bool) -> None:
    """Make sure that clients can be optimised together.

    Args:
        attack: name of the attack, for messages.
        optimizer: of the dummies.
        is_batchable: whether the attack keeps clients apart.

    Raises:
        InputError: if the attack or the optimizer would mix them.
    """
    if not is_batchable:
        raise InputError(f"{attack} attacks one client at a time; leave out clients_at_once")
    made = optimizer([nn.Parameter(torch.zeros(1))])
    if isinstance(made, COUPLING):
        raise InputError(
            f"{attack}: {type(made).__name__} mixes what it optimises, which several clients must "
            "not be; leave out clients_at_once, or give another optimizer"
        )


def attack_together(
    attack: GradientMatching, clients: Sequence[int], *, noise_only: bool = False
) -> list[Reconstruction | Failure]:
    """Attack several clients as one computation; what cannot be, one after the other.

    Args:
        attack: that plays the server.
        clients: their numbers.
        noise_only: whether it is the null control.

    Returns:
        What each attack gives back; a failure if it fails and failures are recorded.
    """
    alone = attack.attack_noise if noise_only else attack.attack_client
    outcomes: dict[int, Reconstruction | Failure] = {}
    begun: Begun = {}
    for client in clients:
        found = attack.attempt(partial(_begin, attack, noise_only=noise_only), client)
        if isinstance(found, Failure):
            outcomes[client] = found
        else:
            begun[client] = found
    shapes: dict[Any, list[int]] = {}
    for client, (start, evidence) in begun.items():
        shapes.setdefault((start.shape, evidence.labels.shape), []).append(client)
    for group in shapes.values():
        outcomes |= _reconstruct(attack, {client: begun.pop(client) for client in group})
    for client in clients:
        if client not in outcomes:
            outcomes[client] = attack.attempt(alone, client)
    return [outcomes[client] for client in clients]


def _begin(attack: GradientMatching, client: int, *, noise_only: bool) -> tuple[Tensor, Evidence]:
    with attack.computing():
        return attack.initialize(attack.play(client, noise_only=noise_only))


def _reconstruct(attack: GradientMatching, begun: Begun) -> dict[int, Reconstruction]:
    """Return what is found of each client; nothing where it cannot be found together."""
    starts, evidences = zip(*begun.values(), strict=True)
    if len(begun) == 1 or len(starts[0]) == 0:
        return {}
    found: dict[int, Reconstruction] = {}
    was_compiled = attack.engine.is_compiled
    try:
        with attack.computing():
            together = stack_clients(evidences)
            ends = attack.loop.run(torch.cat(starts), together)
            # one client alone would be another program to compile
            attack.engine.is_compiled = False
            for place, (client, (dummy, curve)) in enumerate(zip(begun, ends, strict=True)):
                evidence = together.some(place, 1)._replace(notes=evidences[place].notes)
                reconstruction = attack.finish(dummy, evidence)
                found[client] = reconstruction._replace(curve=tuple(curve))
    except (InputError, RuntimeError, ValueError) as error:
        rank_zero_warn(
            f"{type(attack).__name__}: {len(begun)} clients could not be attacked together, and "
            f"are one by one ({' '.join(str(error).split())[:200]})"
        )
        return {}
    finally:
        attack.engine.is_compiled = was_compiled
    return found
