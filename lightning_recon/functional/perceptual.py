"""Distances of two images from the features that a trained network gives them: LPIPS and DISTS.

The networks themselves are in :mod:`lightning_recon.metrics.perceptual`; here is what is done with
their features, given as one B C h w tensor a layer (channels and sizes differ between layers).

Sources:
    LPIPS: Zhang, Isola, Efros, Shechtman, Wang, "The Unreasonable Effectiveness of Deep Features
    as a Perceptual Metric", CVPR 2018, equation 1.
    DISTS: Ding, Ma, Wang, Simoncelli, "Image Quality Assessment: Unifying Structure and Texture
    Similarity", IEEE TPAMI 44(5), 2022, equations 6 to 8.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def lpips(
    features_x: Sequence[Tensor], features_y: Sequence[Tensor], weights: Sequence[Tensor]
) -> Tensor:
    """Return the learned perceptual distance of each pair of images.

    At every position of a layer the features are scaled to length 1 over the channels; the
    weighted squared differences are summed over channels, averaged over positions and summed over
    layers.

    Args:
        features_x: L tensors, B C h w.
        features_y: the same shapes.
        weights: L tensors, C, of at least 0.

    Returns:
        B values of at least 0; 0 for the same features.

    Examples:
        >>> import torch
        >>> x, y = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 2.0])
        >>> lpips([x.view(1, 2, 1, 1)], [y.view(1, 2, 1, 1)], [torch.tensor([0.5, 0.25])])
        tensor([0.7500])
    """
    total = features_x[0].new_zeros(len(features_x[0]))
    for x, y, weight in zip(features_x, features_y, weights, strict=True):
        difference = (_unit(x) - _unit(y)).square()
        total = total + (difference * weight[:, None, None]).sum(dim=1).mean(dim=(1, 2))
    return total


def dists(
    features_x: Sequence[Tensor],
    features_y: Sequence[Tensor],
    texture_weights: Sequence[Tensor],
    structure_weights: Sequence[Tensor],
) -> Tensor:
    """Return the deep image structure and texture distance of each pair of images.

    Each channel of each layer gives two similarities: of its means over the image (texture), and
    of its variations, by their covariance (structure).  The distance is 1 less their weighted mean.

    Args:
        features_x: L tensors, B C h w; the image itself is the first.
        features_y: the same shapes.
        texture_weights: L tensors, C; the paper's alpha.
        structure_weights: L tensors, C; the paper's beta.

    Returns:
        B values in [0, 2]; 0 for the same features, seldom above 1.

    Examples:
        >>> import torch
        >>> x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> dists([x], [x], [torch.ones(3)], [torch.ones(3)]).abs() < 1e-6
        tensor([True, True])
    """
    stability = 1e-6
    similarity = features_x[0].new_zeros(len(features_x[0]))
    for x, y, texture, structure in zip(
        features_x, features_y, texture_weights, structure_weights, strict=True
    ):
        mean_x, mean_y = x.mean(dim=(2, 3)), y.mean(dim=(2, 3))
        centred_x, centred_y = x - mean_x[..., None, None], y - mean_y[..., None, None]
        variances = centred_x.square().mean(dim=(2, 3)) + centred_y.square().mean(dim=(2, 3))
        covariance = (centred_x * centred_y).mean(dim=(2, 3))
        texture_likeness = (2 * mean_x * mean_y + stability) / (
            mean_x.square() + mean_y.square() + stability
        )
        structure_likeness = (2 * covariance + stability) / (variances + stability)
        similarity = similarity + (texture * texture_likeness).sum(dim=1)
        similarity = similarity + (structure * structure_likeness).sum(dim=1)
    weights = [*texture_weights, *structure_weights]
    return 1.0 - similarity / torch.cat([weight.flatten() for weight in weights]).sum()


def l2_pool(x: Tensor) -> Tensor:
    """Halve the size of feature maps: the root of their squares' average under a small window.

    The window is the outer product of (1, 2, 1) / 4 with itself, at every second position; DISTS
    has it in place of max-pooling, which aliases.

    Args:
        x: B C h w.

    Returns:
        B C, ceil(h / 2), ceil(w / 2).

    Examples:
        >>> import torch
        >>> l2_pool(torch.full((1, 1, 5, 5), 2.0))[0, 0, 1:-1, 1:-1]
        tensor([[2.]])
    """
    window = torch.tensor([0.25, 0.5, 0.25], device=x.device, dtype=x.dtype)
    kernel = (window[:, None] * window).expand(x.shape[1], 1, 3, 3)
    pooled = F.conv2d(x.square(), kernel, stride=2, padding=1, groups=x.shape[1])
    return (pooled + 1e-12).sqrt()


def _unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(dim=1, keepdim=True) + 1e-8).sqrt()
