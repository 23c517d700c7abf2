"""Which reconstruction shows which private image: the first step that may see the truth.

An attack returns its images in an order of its own, so they are assigned to the true ones before
they are scored: one to one, at the least total mean squared error (Kuhn, "The Hungarian Method
for the Assignment Problem", 1955).
"""

from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


class Matching(NamedTuple):
    """The assignment of reconstructions to true images."""

    row: Tensor
    """B, int64: the reconstruction assigned to each true image, or -1 where there is none."""


def match(reconstruction_images: Tensor, truth_images: Tensor) -> Matching:
    """Assign at most one reconstruction to each true image, and the other way around.

    As many pairs as possible are formed, however bad they are.  A reconstruction that holds a NaN
    or an infinity is a failure of the attack and is assigned to nothing.

    Args:
        reconstruction_images: R C H W; R may be 0, or less or more than B.
        truth_images: B C H W.

    Returns:
        The assignment, on the device of ``truth_images``.

    Raises:
        ValueError: if the images' shapes disagree.
    """
    if reconstruction_images.shape[1:] != truth_images.shape[1:]:
        raise ValueError(
            f"reconstructions of shape {tuple(reconstruction_images.shape[1:])} cannot be matched "
            f"to images of shape {tuple(truth_images.shape[1:])}"
        )
    row = torch.full((len(truth_images),), -1, dtype=torch.int64)
    if len(reconstruction_images) and len(truth_images):
        cost = _pairwise_mse(reconstruction_images, truth_images)
        possible = cost.isfinite()
        # A pair without a finite error is chosen only where nothing else is left, then dropped.
        impossible = 1.0 + len(row) * float(cost.where(possible, 0.0).max())
        chosen, truths = linear_sum_assignment(cost.where(possible, impossible).numpy())
        chosen, truths = torch.from_numpy(chosen), torch.from_numpy(truths)
        kept = possible[chosen, truths]
        row[truths[kept]] = chosen[kept]
    return Matching(row.to(truth_images.device))


def _pairwise_mse(reconstructions: Tensor, truths: Tensor) -> Tensor:
    """Return R B mean squared errors, float64 on the CPU, one batch of differences at a time."""
    truths = truths.to(reconstructions)
    errors = [
        (image - truths).square().flatten(1).mean(dim=1, dtype=torch.float64)
        for image in reconstructions
    ]
    return torch.stack(errors).cpu()
