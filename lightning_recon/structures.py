"""The records that walk from the client's data to the scores; no I/O.

Nothing between :class:`Observation` and the matching of reconstructions to the truth may touch
a :class:`PrivateBatch`.  Named tuples, because Lightning moves those between devices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor, nn

if TYPE_CHECKING:
    from lightning_recon.clients import Client
    from lightning_recon.defenses import Defense

Update = dict[str, Tensor]
"""What a client sends, by parameter name: a gradient (FedSGD) or a weight delta (FedAvg)."""
Buffers = dict[str, Tensor]
"""A model's buffers, by name: the running statistics of batch norm, and whatever else it keeps."""


class PrivateBatch(NamedTuple):
    """One client's batch: what the client owns and the auditor keeps."""

    images: Tensor
    """B C H W in [0, 1], as the client trains on them: 0 outside the subject if it uses masks."""
    labels: Tensor
    """B, int64."""
    masks: Tensor
    """B 1 H W, bool: True on the subject; all True where no masks are used."""
    indices: Tensor
    """B, int64: the images' places in the data set."""


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
    (:func:`lightning_recon.functional.batch_statistics.batch_statistics`)."""


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
