"""TernGrad: every entry becomes -1, 0 or 1 times the tensor's largest."""

import math

import torch

from lightning_recon.defenses.base import Defense, Encoding, Shapes
from lightning_recon.defenses.rounding import largest, quantised, round_to_levels_, weighted
from lightning_recon.updates import Update


class TernGrad(Defense):
    """Rounds every entry at random to 0 or to the tensor's largest magnitude, with its sign.

    Wen, Xu, Yan, Wu, Wang, Chen & Li, "TernGrad: Ternary Gradients to Reduce Communication in
    Distributed Deep Learning", NeurIPS 2017, with a scale for each tensor and without the clipping
    of outliers at 2.5 standard deviations that goes before it there.  The probability of an
    entry is |g| / max |g|: the estimate is unbiased, its variance |g| (max |g| - |g|).

    Args: none.
    """

    citation = "Wen et al., NeurIPS 2017"

    def forward(self, update: Update, *, generator: torch.Generator) -> Update:
        """Return the ternary update, in place."""
        return round_to_levels_(update, 1, math.inf, generator)

    def stand_in(self, update: Update, observed: Update) -> Update:
        """Return the update, of which the ternary one is the mean, weighted by the variance."""
        return {
            name: weighted(tensor, observed[name], largest(observed[name]), 1)
            for name, tensor in update.items()
        }

    def encode(self, encoding: Encoding, shapes: Shapes) -> Encoding:
        """Return log2(3) bits for each value, and a scale for each tensor."""
        return quantised(encoding, shapes, math.log2(3))
