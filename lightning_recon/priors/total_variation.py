"""Total variation.

Rudin, Osher & Fatemi, "Nonlinear total variation based noise removal algorithms", Physica D 60,
1992.
"""

import torch.nn.functional as F
from torch import Tensor

from lightning_recon.priors.base import Prior


class TotalVariation(Prior):
    """Isotropic total variation: the mean length of the gradient.

    The gradient's length is taken over both directions and all channels of a pixel together, so
    that edges of the channels fall on the same place.

    Args:
        weight: of the penalty, at least 0.
        smoothing: length below which gradients count quadratically, above 0.
    """

    def __init__(self, weight: float = 1.0, smoothing: float = 1e-3) -> None:
        super().__init__(weight)
        self.smoothing = smoothing

    def forward(self, images: Tensor) -> Tensor:
        """Return the weighted penalty, R."""
        down = F.pad(images[..., 1:, :] - images[..., :-1, :], (0, 0, 0, 1))
        right = F.pad(images[..., 1:] - images[..., :-1], (0, 1))
        squares = (down.square() + right.square()).sum(1)
        return self.weight * (squares + self.smoothing**2).sqrt().mean((1, 2))
