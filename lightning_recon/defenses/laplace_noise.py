"""Laplace noise of a given scale on every coordinate of an update."""

import math

import torch

from lightning_recon.defenses.base import Defense, Encoding, Shapes, chunks, dense
from lightning_recon.defenses.laplace import add_laplace_
from lightning_recon.errors import InputError
from lightning_recon.updates import Update


class LaplaceNoise(Defense):
    """Adds independent Laplace noise to every coordinate, whatever its sensitivity.

    The perturbation that attacks are compared under since Zhu, Liu & Han, "Deep Leakage from
    Gradients", NeurIPS 2019, Section 5.1.  For a guarantee take
    :class:`~lightning_recon.defenses.laplace.Laplace`, which bounds the update first.

    Args:
        scale: b, at least 0; the standard deviation is sqrt(2) b.
    """

    citation = "Zhu et al., NeurIPS 2019"

    def __init__(self, scale: float) -> None:
        super().__init__()
        if not 0 <= scale < math.inf:
            raise InputError(f"LaplaceNoise: scale must be at least 0, not {scale}")
        self.scale = scale

    def forward(self, update: Update, *, generator: torch.Generator) -> Update:
        """Return the update with noise added, in place."""
        if self.scale > 0:
            for chunk in chunks(update):
                add_laplace_(chunk, self.scale, generator)
        return update

    def variance(self, update: Update, observed: Update) -> Update | None:
        """Return 2 b^2 for every number; None without noise."""
        if self.scale == 0:
            return None
        return {name: torch.full_like(observed[name], 2 * self.scale**2) for name in update}

    def encode(self, encoding: Encoding, shapes: Shapes) -> Encoding:
        """Return 32 bits for each value: noise has no zeros and no levels."""
        return dense(shapes) if self.scale > 0 else encoding
