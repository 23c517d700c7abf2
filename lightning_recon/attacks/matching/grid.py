"""Pixels of so many bits: an estimate and its covariance, brought to whole numbers one by one.

A few directions of a batch that an update does not tell move all of its pixels a little; where that
is less than half a level, the pixel is known, and what it tells moves the others nearer, as in
Babai's nearest plane ("On Lovász' lattice reduction and the nearest lattice point problem",
Combinatorica 6, 1986) and in the integers of satellite navigation (Teunissen, Journal of Geodesy
70, 1995): the best known first.
"""

import torch
from torch import Tensor

_CERTAIN, _UNSURE = 0.12, 0.35  # of a level, the standard deviation of pixels: half is the error
_AS_SURE = 1.2  # of the surest one's
_LEAST = 0.01  # of a level, that a whole number is taken to be known to


def whole(values: Tensor, covariance: Tensor) -> tuple[Tensor, int]:
    """Return values of which as many as can be told are whole numbers, and how many these are.

    Args:
        values: N, float64, an estimate of whole numbers.
        covariance: N N, float64, of its error; it is overwritten.
    """
    values, left = values.clone(), torch.arange(len(values), device=values.device)
    while len(left):
        spread = covariance.diagonal().clamp_min(0).sqrt()
        least = float(spread.min())
        if least > _UNSURE:
            break
        known = spread <= max(_CERTAIN, _AS_SURE * least)
        sure, rest = known.nonzero()[:, 0], (~known).nonzero()[:, 0]
        nearest = values[left[sure]].round()
        moved = nearest - values[left[sure]]
        own = covariance[sure][:, sure]
        own.diagonal().add_(_LEAST**2)
        factor, failed = torch.linalg.cholesky_ex(own)
        if int(failed):
            break
        across = torch.linalg.solve_triangular(factor, covariance[sure][:, rest], upper=False)
        there = torch.linalg.solve_triangular(factor, moved[:, None], upper=False)
        values[left[sure]] = nearest
        values[left[rest]] += (across.T @ there)[:, 0]
        covariance = covariance[rest][:, rest].addmm_(across.T, across, alpha=-1)
        left = left[rest]
    return values, len(values) - len(left)
