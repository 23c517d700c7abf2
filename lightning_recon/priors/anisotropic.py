"""Total variation of each channel and direction by itself.

Geiping, Bauermeister, Droege & Moeller, "Inverting Gradients", NeurIPS 2020, eq. 4; the length is
the sum of absolute values, not the Euclidean one of :class:`TotalVariation`.
"""

from torch import Tensor

from lightning_recon.priors.base import Prior


class AnisotropicTotalVariation(Prior):
    """Mean absolute difference of vertical neighbours plus that of horizontal ones.

    Args:
        weight: of the penalty, at least 0.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Return the weighted penalty, R."""
        down = (images[..., 1:, :] - images[..., :-1, :]).abs().mean((1, 2, 3))
        right = (images[..., 1:] - images[..., :-1]).abs().mean((1, 2, 3))
        return self.weight * (down + right)
