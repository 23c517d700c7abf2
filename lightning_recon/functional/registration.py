"""PSNR after the reconstruction was registered to the truth.

A reconstruction that is moved by some pixels shows all of the picture, and PSNR scarcely notices.
Attacks on networks that pool over the image cannot know where its content lay, so the field
scores them after registration, and takes the better of the two values (``R-PSNR`` in
github.com/JonasGeiping/breaching, which fits a similarity transform).

Here: the best whole-pixel translation within a bound, and optionally one affine map of the colours
for the whole image.  No rotation, scaling or mirror image: each further freedom raises the value
of a reconstruction that shows nothing.  The null controls have to be scored the same way.

All translations are tried, by correlation in the Fourier domain: the value is the best there is.
Phase correlation (Kuglin, Hines, "The Phase Correlation Image Alignment Method", 1975) would be as
fast, but it weighs all frequencies alike and misses the moves of noisy pictures without detail.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_recon.functional.image_quality import check_images, psnr


def registered_psnr(
    preds: Tensor,
    target: Tensor,
    masks: Tensor | None = None,
    max_shift: int | None = None,
    fit_colours: bool = False,
    cap: float = 100.0,
) -> Tensor:
    """Return the PSNR of each image after registration to its truth, in dB.

    The highest over all moves within the bound.  The border that a move uncovers repeats the
    image's edge, so that no pixel of the truth is left out.

    Args:
        preds: B C H W in [0, 1].
        target: B C H W in [0, 1].
        masks: B 1 H W, bool, of the target's subjects; the error is then averaged over them.
        max_shift: the largest move in either direction, in pixels; by default an eighth of the
            shorter side.
        fit_colours: whether each image's colours are mapped to its truth's, see
            :func:`match_colours`; the move is then that of least error between images whose
            channels have mean 0 and variance 1, or none if that is better.  A flat image scores
            as the truth's mean colour does.
        cap: the largest value returned, in dB.

    Returns:
        B values in dB, never below those of
        :func:`~lightning_recon.functional.image_quality.psnr`, at most ``cap``.

    Raises:
        ValueError: if the shapes disagree, a mask is empty or ``max_shift`` is negative or not
            below half of the shorter side.

    Examples:
        >>> import torch
        >>> target = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        >>> moved = shift_images(target, torch.tensor([[2, -1]]))
        >>> bool(psnr(moved, target) < 10), bool(registered_psnr(moved, target) > 15)
        (True, True)
    """
    check_images(preds, target, masks)
    if max_shift is None:
        max_shift = min(preds.shape[-2:]) // 8
    if fit_colours:
        shift = estimate_shift(_standardised(preds), _standardised(target), max_shift, masks)
    else:
        shift = estimate_shift(preds, target, max_shift, masks)
    candidates = [preds, shift_images(preds, shift)]
    if fit_colours:
        candidates = [match_colours(images, target, masks) for images in candidates]
    values = [psnr(images, target, masks, cap) for images in candidates]
    return torch.stack(values).amax(dim=0)


def estimate_shift(
    preds: Tensor, target: Tensor, max_shift: int, masks: Tensor | None = None
) -> Tensor:
    """Return the move of each image that leaves the least squared error against its truth.

    Args:
        preds: B C H W.
        target: B C H W.
        max_shift: the largest move in either direction, in pixels.
        masks: B 1 H W, bool, of the target; the error is then that within.

    Returns:
        B 2, int64: pixels downwards and to the right by which :func:`shift_images` is to move
        ``preds``.

    Raises:
        ValueError: if ``max_shift`` is negative or not below half of the shorter side.

    Examples:
        >>> import torch
        >>> target = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
        >>> estimate_shift(target.roll((3, -2), dims=(2, 3)), target, max_shift=4)
        tensor([[-3,  2]])
    """
    side = min(preds.shape[-2:])
    if not 0 <= 2 * max_shift < side:
        raise ValueError(
            f"max_shift must be at least 0 and below half of the {side} pixels of the shorter "
            f"side; got {max_shift}"
        )
    padded = F.pad(preds.double(), (max_shift,) * 4, mode="replicate")
    weights = torch.ones_like(target[:, :1]) if masks is None else masks
    weights = weights.double().expand_as(target)
    # sum of w (p - t)^2 = sum of w p^2 - 2 sum of w t p + a constant, for every place of the window
    errors = _correlate(padded.square(), weights) - 2.0 * _correlate(padded, weights * target)
    num_moves = 2 * max_shift + 1
    best = errors[:, :num_moves, :num_moves].flatten(1).argmin(dim=1)
    return max_shift - torch.stack([best // num_moves, best % num_moves], dim=1)


def shift_images(images: Tensor, shift: Tensor) -> Tensor:
    """Move each image by whole pixels; the border that this uncovers repeats the edge.

    Args:
        images: B C H W.
        shift: B 2, int64: pixels downwards and to the right.

    Returns:
        B C H W.

    Examples:
        >>> import torch
        >>> shift_images(torch.arange(4.0).view(1, 1, 1, 4), torch.tensor([[0, 1]]))
        tensor([[[[0., 0., 1., 2.]]]])
    """
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device) - shift[:, :1]  # B H
    columns = torch.arange(width, device=images.device) - shift[:, 1:]  # B W
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    moved = images.movedim(1, -1)[batch, rows[:, :, None], columns[:, None, :]]  # B H W C
    return moved.movedim(-1, 1)


def match_colours(preds: Tensor, target: Tensor, masks: Tensor | None = None) -> Tensor:
    """Map each image's colours to its truth's by the affine map of least squared error.

    One C x C matrix and one offset an image: twelve numbers for three channels, taken from the
    truth.

    Args:
        preds: B C H W.
        target: B C H W.
        masks: B 1 H W, bool; only their pixels take part in the fit, all are mapped.

    Returns:
        B C H W; a few values may leave [0, 1].

    Examples:
        >>> import torch
        >>> target = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> torch.allclose(match_colours(0.2 + 0.5 * target.flip(1), target), target, atol=1e-5)
        True
    """
    colours = preds.double().flatten(2)  # B C N
    known = torch.cat([colours, torch.ones_like(colours[:, :1])], dim=1)
    wanted = target.double().flatten(2)
    used = known if masks is None else known * masks.flatten(2)
    # normal equations: one rank-revealing inverse of a 4 x 4 matrix, on any device
    inverse = torch.linalg.pinv(used @ known.mT, rtol=1e-10, hermitian=True)
    mapping = wanted @ used.mT @ inverse  # B C (C + 1)
    mapped: Tensor = (mapping @ known).view_as(preds)
    return mapped.to(preds.dtype)


def _correlate(images: Tensor, windows: Tensor) -> Tensor:
    """Return, B h w, the sum over channels and pixels of each window laid on its image at i, j."""
    size = (images.shape[-2], images.shape[-1])
    products = torch.fft.rfft2(images) * torch.fft.rfft2(windows, s=size).conj()
    sums: Tensor = torch.fft.irfft2(products.sum(dim=1), s=size)
    return sums


def _standardised(images: Tensor) -> Tensor:
    """Return the images with mean 0 and variance 1 in each channel, float64."""
    centred = images.double() - images.double().mean(dim=(2, 3), keepdim=True)
    return centred / centred.square().mean(dim=(2, 3), keepdim=True).sqrt().clamp(min=1e-6)
