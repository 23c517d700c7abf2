"""Squared length.

Yin et al., "See through Gradients: Image Batch Recovery via GradInversion", CVPR 2021, eq. 9.
"""

from torch import Tensor

from lightning_recon.priors.base import Prior


class SquaredNorm(Prior):
    """Mean squared distance of the pixels from grey.

    Args:
        weight: of the penalty, at least 0.
        centre: the grey, in [0, 1]; the paper's normalised pixels are around the mean colour.
    """

    def __init__(self, weight: float = 1.0, centre: float = 0.5) -> None:
        super().__init__(weight)
        self.centre = centre

    def forward(self, images: Tensor) -> Tensor:
        """Return the weighted penalty, R."""
        return self.weight * (images - self.centre).square().mean((1, 2, 3))
