"""QSGD: stochastic rounding to a few levels."""

import math
from typing import Literal

import torch

from lightning_recon.defenses.base import Defense, Encoding, Shapes, whole
from lightning_recon.defenses.rounding import (
    largest,
    quantised,
    round_to_levels_,
    rounding_variance,
    smallest,
    weighted,
)
from lightning_recon.errors import InputError
from lightning_recon.updates import Update


class QSGD(Defense):
    """Rounds every entry at random to one of the two nearest levels, so that the mean is right.

    Alistarh, Grubic, Li, Tomioka & Vojnovic, "QSGD: Communication-Efficient SGD via Gradient
    Quantization and Encoding", NeurIPS 2017, Section 3.1.  The levels 0, 1/s, ..., 1 of a tensor's
    scale are counted with the 0, as by Yue et al. (USENIX Security 2023): s is ``num_levels`` - 1.
    An entry that lies at the fraction f of its step has the variance f (1 - f) (scale / s)^2.  The
    bits are those of the plain code, sign and level, not of the paper's Elias code.

    Args:
        num_levels: magnitudes that an entry can have, 0 among them; at least 2.
        scale: of a tensor: ``"max"``: its largest absolute value (Yue et al.); ``"l2"``: its L2
            norm (Alistarh et al.).
    """

    citation = "Alistarh et al., NeurIPS 2017"

    def __init__(self, num_levels: int = 16, scale: Literal["max", "l2"] = "max") -> None:
        super().__init__()
        self.num_steps = whole(self, "num_levels", num_levels, at_least=2) - 1
        if scale not in ("max", "l2"):
            raise InputError(f"QSGD: scale must be max or l2, not {scale!r}")
        self.scale = scale

    def forward(self, update: Update, *, generator: torch.Generator) -> Update:
        """Return the rounded update, in place."""
        order = 2 if self.scale == "l2" else math.inf
        return round_to_levels_(update, self.num_steps, order, generator)

    def stand_in(self, update: Update, observed: Update) -> Update:
        """Return the update, of which the rounded one is the mean, weighted by the variance.

        The step is the largest observed magnitude over s.  With the scale "l2" it is the smallest
        one above 0, which is right as soon as one entry of the tensor has the first level.
        """
        result = {}
        for name, tensor in update.items():
            seen = observed[name]
            step = smallest(seen) if self.scale == "l2" else largest(seen) / self.num_steps
            result[name] = weighted(tensor, seen, step, self.num_steps)
        return result

    def variance(self, update: Update, observed: Update) -> Update | None:
        """Return f (1 - f) step^2, f an entry's place within its step; see :meth:`stand_in`."""
        result = {}
        for name, tensor in update.items():
            seen = observed[name]
            step = smallest(seen) if self.scale == "l2" else largest(seen) / self.num_steps
            result[name] = rounding_variance(tensor, step, self.num_steps)
        return result

    def encode(self, encoding: Encoding, shapes: Shapes) -> Encoding:
        """Return a sign and a level for each value, and a scale for each tensor."""
        return quantised(encoding, shapes, 1 + self.num_steps.bit_length())
