"""A defense of your own: entries are left out at random."""

import torch

from lightning_recon.defenses import Defense
from lightning_recon.defenses.base import Encoding, Shapes
from lightning_recon.errors import InputError
from lightning_recon.updates import Update


class RandomDrop(Defense):
    """Sets every entry to 0 with the same probability, each by itself.

    Args:
        drop: the probability, in [0, 1).

    Raises:
        InputError: if it is out of its range.
    """

    citation = "none: an example"

    def __init__(self, drop: float = 0.5) -> None:
        super().__init__()
        if not 0 <= drop < 1:
            raise InputError(f"RandomDrop: drop must lie in [0, 1), not {drop}")
        self.drop = drop

    def bind(self, norm_bound: float | None) -> float | None:
        """Return the bound that came in: what is left out makes no norm larger."""
        return norm_bound

    def forward(self, update: Update, *, generator: torch.Generator) -> Update:
        """Return what is kept; what is random comes from the generator alone."""
        sent = {}
        for name, tensor in update.items():
            kept = torch.rand(tensor.shape, generator=generator, device=tensor.device) >= self.drop
            sent[name] = tensor * kept
        return sent

    def stand_in(self, update: Update, observed: Update) -> Update:
        """Return the update where something was observed, as the adaptive attacker expects it.

        What a defense behind this one changed is in ``observed``, too: behind noise no entry is 0,
        and all would count as kept.
        """
        return {name: tensor * (observed[name] != 0) for name, tensor in update.items()}

    def encode(self, encoding: Encoding, shapes: Shapes) -> Encoding:
        """Return the values that are kept, on average, and a seed, which tells their places."""
        kept = encoding.num_values * (1 - self.drop)
        return encoding._replace(num_values=kept, overhead=encoding.overhead + 64)
