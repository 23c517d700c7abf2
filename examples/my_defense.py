"""A defense of your own: the update is sent in bfloat16."""

import torch

from lightning_recon.defenses import Defense
from lightning_recon.defenses.base import Encoding, Shapes
from lightning_recon.updates import Update


class BFloat16(Defense):
    """Rounds every entry to bfloat16, 8 significant bits."""

    citation = "none: an example"

    def forward(self, update: Update, *, generator: torch.Generator) -> Update:
        """Return the rounded update; nothing here is random."""
        return {name: tensor.bfloat16().to(tensor.dtype) for name, tensor in update.items()}

    def stand_in(self, update: Update, observed: Update) -> Update:
        """Return the update itself: the adaptive attacker passes straight through the rounding."""
        return update

    def encode(self, encoding: Encoding, shapes: Shapes) -> Encoding:
        """Return half the bits for each value."""
        return encoding._replace(bits_per_value=min(encoding.bits_per_value, 16.0))
