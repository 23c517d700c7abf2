"""What every prior is: a penalty on images that do not look like photographs."""

import math
from abc import ABC, abstractmethod

from torch import Tensor, nn

from lightning_recon.errors import InputError


class Penalty(nn.Module, ABC):
    """A penalty with a weight.

    Args:
        weight: what the penalty is multiplied by, at least 0.

    Raises:
        InputError: if the weight is negative.
    """

    def __init__(self, weight: float) -> None:
        super().__init__()
        if not 0 <= weight < math.inf:
            raise InputError(f"{type(self).__name__}: weight must be at least 0, not {weight}")
        self.weight = weight


class Prior(Penalty):
    """Minus the logarithm of a prior density of images, up to a constant.

    Args:
        weight: what the penalty is multiplied by, at least 0.

    Raises:
        InputError: if the weight is negative.
    """

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Return the weighted penalty of each image, R, per number of an image.

        Args:
            images: R 3 H W, about [0, 1].
        """
