"""Duchi's mechanism: one of two values, chosen at random."""

import math

import torch
from torch import Tensor

from lightning_recon.defenses.coordinate_sampling import CoordinateSampling


def duchi(values: Tensor, epsilon: float, generator: torch.Generator) -> Tensor:
    """Return B or -B for each number, B = (e^eps + 1)/(e^eps - 1), of which it is the mean.

    P(B) = 1/2 + t / (2B); the variance is B^2 - t^2.

    Args:
        values: any shape, float64, in [-1, 1].
        epsilon: the budget of one number, above 0.
        generator: on the device of the values.
    """
    bound = 1 / math.tanh(epsilon / 2)
    uniform = torch.rand(
        values.shape, generator=generator, device=values.device, dtype=torch.float64
    )
    sign = torch.where(uniform < 0.5 + values / (2 * bound), 1.0, -1.0)
    return bound * sign.to(torch.float64)


class Duchi(CoordinateSampling):
    """Releases one of two values for each of a few sampled coordinates.

    Duchi, Jordan & Wainwright, "Minimax Optimal Procedures for Locally Private Estimation", JASA
    113(521), 2018, in the form for one number that Wang et al. (ICDE 2019, Algorithm 1) give.
    Their form for vectors answers with a corner of a cube; here the coordinates are sampled as for
    the piecewise mechanism, which has a smaller error in high dimension.

    Args:
        epsilon: the privacy budget of one release, above 0.
        clip_value: the absolute value that no coordinate exceeds, above 0.
    """

    citation = "Duchi et al., JASA 113(521), 2018; Wang et al., ICDE 2019"
    bits_per_value = 1.0

    def perturb(self, values: Tensor, epsilon: float, generator: torch.Generator) -> Tensor:
        """Return B or -B for each number."""
        return duchi(values, epsilon, generator)
