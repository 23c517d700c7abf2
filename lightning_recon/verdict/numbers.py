"""What the numbers of an update show by themselves: noise, quantisation, sparsity, rank.

Nothing here is told by anybody.  The gradient of a linear layer's weights is a sum of one outer
product a sample, so that its rank is at most the number of samples: what lies beyond it in the
spectrum is rounding, or noise that somebody added.  Noise shows as the tail of a Gaussian matrix's
spectrum (Marchenko & Pastur, 1967), of which no gradient of an image has the shape.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_recon.attacks.features.linear_layers import Reading, read_entries
from lightning_recon.randomness import make_generator

_MIN_SIDE = 8  # of a matrix whose spectrum tells of noise
_MAX_SIDE = 512  # rows that are looked at
_ALIKE = (
    0.15  # spread of the tail over that of a Gaussian matrix, relative, up to which it is noise
)
_GAP = 30.0  # between two singular values, from which the rank ends there
_DENSE = 1e-3  # share of exact zeros above which no noise lies on every entry
_ROUNDED = 8.0  # times the rounding of the numbers that were sent, up to which it is no noise


class Numbers(NamedTuple):
    """What an update shows."""

    norm: float
    """L2, over all parameters."""
    zeros: float
    """Share of entries that are exactly 0, in [0, 1]."""
    reading: Reading
    """Of the entries of the largest matrix: exact, rounded to a grid, signs, or the largest."""
    noise_std: float | None
    """Of noise on every entry; 0: none is to be seen; None: it cannot be told."""
    rank: int | None
    """Of the largest linear layer's change, in one step at most as many as samples; None: it
    cannot be told."""


def read_numbers(update: Mapping[str, Tensor], rounding: Mapping[str, float]) -> Numbers:
    """Return what an update shows.

    Args:
        update: by parameter name; floating point.
        rounding: standard deviation of the rounding of an entry, by name: of weights that were
            sent as float32, some 2^-25 of their size.
    """
    norm = float(sum(float(part.double().square().sum()) for part in update.values()) ** 0.5)
    count = sum(part.numel() for part in update.values())
    zeros = sum(int((part == 0).sum()) for part in update.values()) / max(count, 1)
    matrices = {name: part for name, part in update.items() if part.ndim == 2 and part.any()}
    largest = max(matrices.values(), key=Tensor.numel, default=None)
    if largest is None:
        largest = max(update.values(), key=Tensor.numel).flatten(1) if update else None
    reading = Reading("exact", 0.0) if largest is None else read_entries(largest.flatten(1))
    if norm == 0:
        return Numbers(0.0, 1.0, reading, None, None)
    if reading.kind != "exact":
        return Numbers(norm, zeros, reading, None, None)
    noises: list[float] = []
    rank: int | None = None
    for name in sorted(matrices, key=lambda name: -matrices[name].numel()):
        noise, own = _spectrum(matrices[name], rounding.get(name, 0.0))
        if noise is not None:
            noises.append(noise)
        rank = rank or own  # of the largest, which sees most of an image
    noise_std = sorted(noises)[len(noises) // 2] if noises else None
    if noise_std is None and zeros > _DENSE:
        noise_std = 0.0
    return Numbers(norm, zeros, reading, noise_std, None if noise_std else rank)


def _spectrum(matrix: Tensor, rounding: float) -> tuple[float | None, int | None]:
    """Return the standard deviation of the noise on a matrix, and its rank without noise."""
    live = matrix[matrix.any(1)]
    live = live[:, live.any(0)].double()
    live = live[:_MAX_SIDE] if len(live) > _MAX_SIDE else live
    side = min(live.shape)
    if side < _MIN_SIDE:
        return None, None
    found = torch.linalg.svdvals(live)
    floor = 4 * _ROUNDED * rounding * max(live.shape) ** 0.5
    floor = max(floor, 1e-7 * float(found[0]))
    above = found[found > floor]
    if len(above) <= side // 2:
        drops = above[:-1] / above[1:] if len(above) > 1 else above[:0]
        ends = (drops > _GAP).nonzero()[:, 0]
        return 0.0, int(ends[0]) + 1 if len(ends) else len(above)
    generator = make_generator(0, "spectrum")
    noise = torch.randn(live.shape, generator=generator, dtype=torch.float64)
    ratio = found[side // 2 :] / torch.linalg.svdvals(noise)[side // 2 :]
    spread = float(ratio.std() / ratio.mean().clamp_min(1e-300))
    if spread > _ALIKE:
        return None, None
    std = float(ratio.mean())
    return (std if std > _ROUNDED * rounding else 0.0), None
