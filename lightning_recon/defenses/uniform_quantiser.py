"""Rounding to the nearest of a few levels."""

import math

import torch

from lightning_recon.defenses.base import Defense, Encoding, Shapes, whole
from lightning_recon.defenses.rounding import dead_zone, largest, quantised, round_to_levels_
from lightning_recon.updates import Update


class UniformQuantiser(Defense):
    """Rounds every entry to the nearest of evenly spaced levels: biased, and without randomness.

    The deterministic quantiser of Yue, Jin, Wong, Baron & Dai, "Gradient Obfuscation Gives a False
    Sense of Security in Federated Learning", USENIX Security 2023: signed levels 0, 1/s, ..., 1 of
    a tensor's largest absolute value, s = ``num_levels`` - 1.  No entry moves by more than half a
    step; a number half-way goes to the even level.

    Args:
        num_levels: magnitudes that an entry can have, 0 among them; at least 2.
    """

    citation = "Yue et al., USENIX Security 2023"

    def __init__(self, num_levels: int) -> None:
        super().__init__()
        self.num_steps = whole(self, "num_levels", num_levels, at_least=2) - 1

    def forward(self, update: Update, *, generator: torch.Generator) -> Update:
        """Return the rounded update, in place."""
        return round_to_levels_(update, self.num_steps, math.inf, None)

    def stand_in(self, update: Update, observed: Update) -> Update:
        """Return the update, free within half a step of what was observed."""
        return {
            name: dead_zone(tensor, observed[name], largest(observed[name]) / self.num_steps / 2)
            for name, tensor in update.items()
        }

    def encode(self, encoding: Encoding, shapes: Shapes) -> Encoding:
        """Return a sign and a level for each value, and a scale for each tensor."""
        return quantised(encoding, shapes, 1 + self.num_steps.bit_length())
