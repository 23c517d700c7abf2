"""How far one image of :class:`~lightning_recon.attacks.LDPAttack` is from what was observed.

In closed form, image by image: an image of 224x224 fits into a processor's cache, a batch does not,
and autograd would walk through the memory some forty times an iteration.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_recon.attacks.ldp_payload import statistics_of

MIN_STD = 1e-4  # of a pixel: keeps the likelihood finite where there is no noise


class Observed(NamedTuple):
    """What was read of one image."""

    row: Tensor
    """3 h w: its row's weight gradient over its bias gradient."""
    row_std: Tensor
    """Standard deviation of the noise on ``row``."""
    statistics: Tensor
    """9: channel means, variances, total variations."""
    statistics_std: Tensor
    """9: standard deviation of the noise on ``statistics``."""


class Mismatch(NamedTuple):
    """What an image adds to the objective."""

    parts: Tensor
    """3: of the row, the moments and the total variation."""
    gradient: Tensor
    """3 h w: of their sum."""


def mismatch(image: Tensor, observed: Observed, tv_weight: float) -> Mismatch:
    """Return the mismatch of an image, per pixel, in units of the noise.

    Args:
        image: 3 h w in [0, 1].
        observed: what it is held against.
        tv_weight: of the total variation's relative mismatch.
    """
    size = image.numel()
    found = statistics_of(image)
    difference = found.numbers - observed.statistics
    moments = difference[:6] / observed.statistics_std[:6].clamp_min(MIN_STD)
    level = observed.statistics[6:].clamp_min(0) + observed.statistics_std[6:]
    variation = difference[6:] / level
    gradient = image - observed.row
    squares = torch.linalg.vector_norm(gradient).square() / (size * observed.row_std.square())

    slope = 2 * moments / observed.statistics_std[:6].clamp_min(MIN_STD) / size
    gradient *= 2 / size / observed.row_std.square()
    # a channel has a third of the numbers
    gradient.addcmul_(found.centred, (slope[3:] * 6 / size)[:, None, None])
    gradient += (slope[:3] * 3 / size)[:, None, None]
    edge = (2 * tv_weight * variation / level)[:, None, None]
    for signs, later, earlier in (
        (found.down.sign_(), gradient[:, 1:], gradient[:, :-1]),
        (found.right.sign_(), gradient[..., 1:], gradient[..., :-1]),
    ):
        weight = edge * 3 / signs.numel()
        later.addcmul_(signs, weight)
        earlier.addcmul_(signs, -weight)
    variations = tv_weight * variation.square().sum()
    parts = torch.stack([squares, moments.square().sum() / size, variations])
    return Mismatch(parts, gradient)


def parts_of(found: Sequence[Tensor], like: Tensor) -> dict[str, Tensor]:
    """Return the parts of the objective by name, each of one number an image.

    Args:
        found: 3 numbers an image, as in :class:`Mismatch`.
        like: any tensor of the wanted type.
    """
    table = torch.stack(list(found)) if found else like.new_zeros(0, 3)
    return dict(zip(("rows", "moments", "total_variation"), table.unbind(1), strict=True))
