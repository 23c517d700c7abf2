"""What the server sees of a client, and what an attack makes of it; no I/O.

Nothing between :class:`Observation` and the matching of reconstructions to the truth may touch
a :class:`~lightning_recon.updates.PrivateBatch`.  Named tuples, because Lightning moves those
between devices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor, nn

from lightning_recon.updates import Buffers, Update

if TYPE_CHECKING:
    from lightning_recon.clients import Client
    from lightning_recon.defenses import Defense


class Observation(NamedTuple):
    """All that the server sees of one client: the threat model made a type.

    ``None`` means that the field is not shared with the attacker.
    """

    payload: nn.Module
    """The model that the server sent."""
    update: Update
    """What the client returned, after its defenses."""
    protocol: str
    """``"fedsgd"`` or ``"fedavg"``."""
    labels: Tensor | None
    """B, int64."""
    num_samples: int | None
    seed: int
    """The attacker's own seed for this client; it has no part in the client's randomness."""
    client: Client | None = None
    """The clients' protocol with its hyperparameters; its randomness is not part of it."""
    defenses: tuple[Defense, ...] | None = None
    """The chain that the update passed; its randomness is not part of it."""
    buffers: Buffers | None = None
    """The payload's, as the client's local training left them, which no defense touches: in the
    client's ``train`` mode they tell the statistics of its batch
    (:func:`lightning_recon.attacks.matching.batch_statistics.batch_statistics`)."""


class Reconstruction(NamedTuple):
    """What an attack gives back: R images, R at most the number of samples."""

    images: Tensor
    """R C H W in [0, 1]."""
    labels: Tensor | None
    """R, int64, or None where the attack does not infer labels."""
    score: Tensor
    """R: the attacker's own objective, lower is better; the only legal way to choose."""
    notes: dict[str, float]
    """Counts and estimates that the attack reports, such as the noise level it measured."""
    curve: tuple[tuple[int, float], ...] = ()
    """(iteration, objective) pairs on the way here; empty for an analytic attack."""


class Failure(NamedTuple):
    """What stands in for a :class:`Reconstruction` where the attack on a client failed."""

    reason: str
    """One line."""
