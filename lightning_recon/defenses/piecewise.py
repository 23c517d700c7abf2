"""The piecewise mechanism: a value near the true one, or anywhere."""

import math

import torch
from torch import Tensor

from lightning_recon.defenses.coordinate_sampling import CoordinateSampling


def piecewise(values: Tensor, epsilon: float, generator: torch.Generator) -> Tensor:
    """Return a number in [-C', C'] for each number t, of which t is the mean.

    With C' = (e^(eps/2) + 1)/(e^(eps/2) - 1), l = (C' + 1) t/2 - (C' - 1)/2 and r = l + C' - 1:
    uniform on [l, r] with probability e^(eps/2)/(e^(eps/2) + 1), else uniform on the rest.  The
    variance is t^2/(e^(eps/2) - 1) + (e^(eps/2) + 3)/(3 (e^(eps/2) - 1)^2).

    Args:
        values: any shape, float64, in [-1, 1].
        epsilon: the budget of one number, above 0.
        generator: on the device of the values.
    """
    bound = 1 / math.tanh(epsilon / 4)
    near = 1 / (1 + math.exp(-epsilon / 2))
    low = (bound + 1) / 2 * values - (bound - 1) / 2
    is_near, place = torch.rand(
        (2, *values.shape), generator=generator, device=values.device, dtype=torch.float64
    )
    inside = low + (bound - 1) * place
    outside = (bound + 1) * place - bound  # the two outer pieces put together
    outside = torch.where(outside < low, outside, outside + (bound - 1))
    return torch.where(is_near < near, inside, outside)


class Piecewise(CoordinateSampling):
    """Releases a number near the true one, or anywhere, for a few sampled coordinates.

    Wang et al., ICDE 2019, Algorithms 2 and 4.

    Args:
        epsilon: the privacy budget of one release, above 0.
        clip_value: the absolute value that no coordinate exceeds, above 0.
    """

    def perturb(self, values: Tensor, epsilon: float, generator: torch.Generator) -> Tensor:
        """Return a number in [-C', C'] for each number."""
        return piecewise(values, epsilon, generator)
