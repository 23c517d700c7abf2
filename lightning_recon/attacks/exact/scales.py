"""Images of a row or a mixture whose scale nobody tells.

Where the layer has a bias, the gradient of the bias is its last column, and what belongs to one
sample alone divides by it.  Without, a row shows a sample up to a factor.  Its brightest pixel has
one of 255 levels: the one by which the other pixels come nearest to levels is taken.  A wrong one
is found out by the slopes, which depend on the scale through softmax.
"""

import torch
from torch import Tensor

from lightning_recon.attacks.linear_layer import (
    FAINT,
    MAX_EXCESS,
    Candidates,
    grid_misfit,
    read_candidates,
)

_LEVELS = 255
_LOOKED_AT = 256  # pixels by which the level is chosen
_PART = 256  # images at a time


def row_sizes(gradient: Tensor) -> Tensor:
    """Return how large rows of a gradient are, K (D + 1), by their bias or else their weights."""
    bias = gradient[:, -1]
    return bias.abs() if bias.any() else gradient.abs().amax(1)


def read_rows(gradient: Tensor, image_shape: tuple[int, int, int]) -> Candidates:
    """Return the images that rows of a gradient may hold, K (D + 1)."""
    weight, bias = gradient[:, :-1], gradient[:, -1]
    if bias.any():
        return read_candidates(weight, bias, image_shape)
    size = row_sizes(gradient)
    rows = (size > FAINT * size.max()).nonzero()[:, 0] if len(size) else size.long()
    unit = by_peak(weight[rows])
    kept = (unit - unit.clamp(0, 1)).square().mean(1) <= MAX_EXCESS
    images = _by_levels(unit[kept])
    return Candidates(images.view(-1, *image_shape), grid_misfit(images), rows[kept])


def as_images(mixed: Tensor) -> Tensor:
    """Return the images of multiples of samples, N D, of what the layer reads, N (D + 1)."""
    if mixed[:, -1].any():
        images: Tensor = mixed[:, :-1] / mixed[:, -1:]
        return images
    return _by_levels(by_peak(mixed[:, :-1]))


def by_peak(lines: Tensor) -> Tensor:
    """Return N D multiples of images, of which the largest pixel is 1."""
    peak = lines.abs().argmax(1, keepdim=True)
    scaled: Tensor = lines / lines.gather(1, peak)
    return scaled


def _by_levels(unit: Tensor) -> Tensor:
    """Return images of N D ones whose largest pixel is 1, scaled as their levels tell."""
    step = max(1, unit.shape[1] // _LOOKED_AT)
    tried = torch.arange(_LEVELS, 0, -1, device=unit.device).to(unit) / 255
    best = [
        torch.stack([grid_misfit(level * part) for level in tried]).argmin(0)
        for part in torch.split(unit[:, ::step], _PART)
    ]
    return unit * tried[torch.cat(best)][:, None] if best else unit
