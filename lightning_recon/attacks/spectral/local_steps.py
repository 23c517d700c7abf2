"""What the server chooses for the local steps that it asks of its clients."""

import math
from typing import NamedTuple

from lightning_recon.clients import Client, FedAvg, FedAvgAdamW
from lightning_recon.clients.wrapped import WrappedClient
from lightning_recon.errors import InputError

ADAM_SIZE = 4.0  # of a gradient's coordinate in units of Adam's eps, about where it saturates
MAX_NUMBERS = 2**25  # of all rows under Adam: 130 MB
MIN_RATE = 1e-30  # of the local steps: the rows' gain is over the learning rate
MAX_RATE = 1e3  # from about ten times that the target explodes, and takes the clip


class LocalSteps(NamedTuple):
    """What rows are made for."""

    num_bins: int
    num_samples: int
    """Of one client's batch."""
    gains: tuple[float, ...]
    """Of the rows on the logits, by step of the first epoch: the later, the larger under
    momentum, which multiplies an early hit by what is left of the run."""
    num_spread: int = 0
    """A power of 2: columns that a sample's numbers are mixed into; 0: a column a number."""
    closes: bool = True
    """Whether a row of class B is closed by its first hit."""


def plan_steps(
    client: Client | None,
    num_samples: int,
    num_bins: int,
    least: int,
    gain: float,
    size: float,
    num_columns: int,
) -> LocalSteps:
    """Return what rows are made for.

    Under SGD rows hold what ``gain`` makes of them at a learning rate of 1, whatever the rate is.
    Adam moves a coordinate by lr g / (|g| + eps), never more than lr: the gradient is kept near
    eps, and as many columns are taken as memory holds.

    Args:
        client: the protocol; null: an update is one gradient.
        num_samples: of one client.
        num_bins: rows K; under Adam fewer, if columns need the room, but never fewer than
        least: so many.
        gain: see above.
        size: L2 norm of what a sample sends to a row.
        num_columns: numbers that it sends.

    Raises:
        InputError: if the steps make weights explode, or the protocol is not known.
    """
    if client is None:
        return LocalSteps(num_bins, num_samples, (gain,))
    while isinstance(client, WrappedClient):
        client = client.client
    if not isinstance(client, FedAvg):
        raise InputError(
            f"SpectralLDPAttack cannot read what {type(client).__name__} sends after several "
            "steps: its rows are made for SGD and AdamW; take FedSGD, FedAvg or FedAvgAdamW"
        )
    if not MIN_RATE <= client.learning_rate <= MAX_RATE:
        raise InputError(
            f"SpectralLDPAttack: at a learning_rate of {client.learning_rate:g} the rows or the "
            f"target explode in the local steps; what lies between {MIN_RATE:g} and {MAX_RATE:g} "
            "can be read"
        )
    if client.learning_rate * client.weight_decay >= 1:
        raise InputError(
            f"SpectralLDPAttack: a learning_rate of {client.learning_rate:g} with a weight_decay "
            f"of {client.weight_decay:g} makes every weight, and the rows, explode or vanish; "
            "lower one until their product is below 1"
        )
    if isinstance(client, FedAvgAdamW):
        room = 2 ** int(math.log2(MAX_NUMBERS / least))
        spread = max(2 ** math.ceil(math.log2(num_columns)), room)
        num_bins = min(num_bins, max(least, MAX_NUMBERS // spread))
        together = client.minibatch_size or num_samples
        step_gain = ADAM_SIZE * client.eps * together * spread**0.5 / size
        return LocalSteps(num_bins, num_samples, (step_gain,), spread, closes=False)
    in_epoch = client.num_steps(num_samples) // client.epochs
    weights = client.gradient_weights(num_samples)[:in_epoch]
    gains = tuple(gain / client.learning_rate * weights[0] / weight for weight in weights)
    return LocalSteps(num_bins, num_samples, gains)
