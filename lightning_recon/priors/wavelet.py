"""Sparsity of wavelet coefficients.

Coifman & Donoho, "Translation-invariant de-noising", in Wavelets and Statistics, 1995: the Haar
transform without decimation.
"""

import torch
from torch import Tensor

from lightning_recon.errors import InputError
from lightning_recon.priors.base import Prior


class WaveletSparsity(Prior):
    """Mean absolute value of the undecimated Haar details, summed over the levels.

    Args:
        weight: of the penalty, at least 0.
        num_levels: at least 1; level l compares means over 2^(l-1) pixels.
        smoothing: size below which coefficients count quadratically, above 0.

    Raises:
        InputError: if there is no level.
    """

    def __init__(self, weight: float = 1.0, num_levels: int = 3, smoothing: float = 1e-3) -> None:
        super().__init__(weight)
        if num_levels < 1:
            raise InputError(f"WaveletSparsity: num_levels must be at least 1, not {num_levels}")
        self.num_levels = num_levels
        self.smoothing = smoothing

    def forward(self, images: Tensor) -> Tensor:
        """Return the weighted penalty, R; the images go on periodically beyond their borders."""
        penalty = images.new_zeros(len(images))
        for level in range(self.num_levels):
            step = 2**level
            below, right = images.roll(-step, 2), images.roll(-step, 3)
            diagonal = below.roll(-step, 3)
            details = [
                images + right - below - diagonal,
                images - right + below - diagonal,
                images - right - below + diagonal,
            ]
            squares = (torch.stack(details) / 4).square() + self.smoothing**2
            penalty = penalty + squares.sqrt().mean((0, 2, 3, 4))
            images = (images + right + below + diagonal) / 4
        return self.weight * penalty
