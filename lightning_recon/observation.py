"""What the server sees of a client, and what an attack makes of it; no I/O.

Nothing between :class:`Observation` and the matching of reconstructions to the truth may touch
a :class:`~lightning_recon.updates.PrivateBatch`.  Named tuples, because Lightning moves those
between devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor, nn

from lightning_recon.updates import Buffers, Update

if TYPE_CHECKING:
    from lightning_recon.clients import Client
    from lightning_recon.defenses import Defense


class Grant(str, Enum):
    """What an attacker may be told beside the update; every result prints what was."""

    LABELS = "labels"
    """Of the batch."""
    NUM_SAMPLES = "num_samples"
    """Of the batch."""
    CLIENT = "client"
    """The clients' protocol with its hyperparameters."""
    DEFENSES = "defenses"
    """The chain that the update passes."""
    BUFFERS = "buffers"
    """The payload's, as the client's training left them."""
    CLIP_NORM = "clip_norm"
    """Of the channel, before the server makes its payload."""
    NOISE_STD = "noise_std"
    """Of the channel, before the server makes its payload."""


class Channel(NamedTuple):
    """What the defenses do to an update, as far as a server knows before it makes its payload."""

    clip_norm: float | None = None
    """The least L2 norm that anything is clipped to; None: nothing is, or it is not known."""
    clips_samples: bool = False
    """Whether each sample's gradient is clipped by itself; told with ``clip_norm``."""
    noise_std: float | None = None
    """Of the Gaussian noise on every entry, 0 without any; None: it is not known."""
    num_clients: int = 1
    """Clients that are clipped each, and of whose updates the mean is seen.  One of them has a
    share of it, and ``noise_std`` is the noise that falls on that share, enlarged to an update."""

    def granted(self, grants: Sequence[Grant]) -> Channel:
        """Return the channel without what is not granted."""
        known = self if Grant.NOISE_STD in grants else self._replace(noise_std=None)
        if Grant.CLIP_NORM in grants:
            return known
        return known._replace(clip_norm=None, clips_samples=False)


class Observation(NamedTuple):
    """All that the server sees of one client: the threat model made a type.

    ``None`` means that the field is not shared with the attacker.
    """

    payload: nn.Module
    """The model that the server sent."""
    update: Update
    """What the client returned, after its defenses."""
    protocol: str
    """``"fedsgd"``, ``"fedavg"`` or ``"fedavg-adamw"``."""
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
    rounds: int = 1
    """Rounds of the client that the server has seen, this one included.  What it learned in the
    earlier ones stands in the payload, which is of this client alone from the second round on."""


HALF_LEVEL = 0.5 / 255
"""An image is exact if every pixel is within half a level of 8 bits."""


class Mark(str, Enum):
    """What an attack says of one of its images without any truth."""

    CERTIFIED = "certified"
    """Every pixel is within half a level: the image passed a test that a mixture fails."""
    LIKELY = "likely"
    """A mixture seldom comes as far, but something is left that the test does not explain."""
    GUESS = "guess"


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
    marks: tuple[Mark, ...] | None = None
    """R, or None where the attack has no test."""
    p_values: Tensor | None = None
    """R: how probable it is that a wrong image, of all that were tried, passes as well; with
    ``marks``."""


class Failure(NamedTuple):
    """What stands in for a :class:`Reconstruction` where the attack on a client failed."""

    reason: str
    """One line."""
