"""The hybrid mechanism: piecewise or Duchi's, chosen at random."""

import math

import torch
from torch import Tensor

from lightning_recon.defenses.coordinate_sampling import CoordinateSampling
from lightning_recon.defenses.duchi import duchi
from lightning_recon.defenses.piecewise import piecewise

_THRESHOLD = 0.61  # of epsilon, below which Duchi's mechanism alone has the smaller worst variance


def hybrid(values: Tensor, epsilon: float, generator: torch.Generator) -> Tensor:
    """Return the piecewise estimate with probability 1 - e^(-eps/2), else Duchi's.

    Each number chooses for itself.  The variance is then the same for all numbers.  With a budget
    of at most .61 it is always Duchi's.

    Args:
        values: any shape, float64, in [-1, 1].
        epsilon: the budget of one number, above 0.
        generator: on the device of the values.
    """
    if epsilon <= _THRESHOLD:
        return duchi(values, epsilon, generator)
    choice = torch.rand(
        values.shape, generator=generator, device=values.device, dtype=torch.float64
    )
    return torch.where(
        choice < -math.expm1(-epsilon / 2),
        piecewise(values, epsilon, generator),
        duchi(values, epsilon, generator),
    )


class Hybrid(CoordinateSampling):
    """Mixes the piecewise mechanism with Duchi's on a few sampled coordinates.

    Wang et al., ICDE 2019, Section III-C and Algorithm 4.

    Args:
        epsilon: the privacy budget of one release, above 0.
        clip_value: the absolute value that no coordinate exceeds, above 0.
    """

    def perturb(self, values: Tensor, epsilon: float, generator: torch.Generator) -> Tensor:
        """Return the estimate of one of the two mechanisms for each number."""
        return hybrid(values, epsilon, generator)
