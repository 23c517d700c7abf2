"""How alike two images are: MSE, PSNR, SSIM, MS-SSIM and CW-SSIM, one value per image.

Every function takes ``preds`` and ``target`` as B C H W in [0, 1] (float32 or float64) and an
optional ``masks``, B 1 H W, bool, that restricts the comparison to the subject; it returns B
values.  No function clamps its inputs, keeps state or averages over the batch.

Sources:
    SSIM: Wang, Bovik, Sheikh, Simoncelli, "Image Quality Assessment: From Error Visibility to
    Structural Similarity", IEEE TIP 13(4), 2004.
    MS-SSIM: Wang, Simoncelli, Bovik, "Multi-scale Structural Similarity for Image Quality
    Assessment", Asilomar 2003.
    CW-SSIM: Sampat, Wang, Gupta, Bovik, Markey, "Complex Wavelet Structural Similarity: A New
    Image Similarity Index", IEEE TIP 18(11), 2009.
    Its wavelet: Portilla, Simoncelli, "A Parametric Texture Model Based on Joint Statistics of
    Complex Wavelet Coefficients", IJCV 40(1), 2000.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from lightning_recon.functional.image_size import MIN_SIDE

_NUM_ORIENTATIONS = 6
_MAX_SCALES = 4
_WINDOW = 7
_STABILITY = 0.01 / 255**2
_SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_LEAST_SIDES = (7, 22, 44, 99, 176)  # pixels, for 1 to 5 scales of MS-SSIM


def mse(preds: Tensor, target: Tensor, masks: Tensor | None = None) -> Tensor:
    """Return the mean squared error of each image.

    Args:
        preds: B C H W in [0, 1].
        target: B C H W in [0, 1].
        masks: B 1 H W, bool; the mean is then over the mask's pixels, all channels.

    Returns:
        B values in [0, 1]; 0 for an exact copy.

    Raises:
        ValueError: if the shapes disagree or a mask is empty.

    Examples:
        >>> import torch
        >>> mse(torch.zeros(2, 3, 8, 8), torch.full((2, 3, 8, 8), 0.5))
        tensor([0.2500, 0.2500])
    """
    check_images(preds, target, masks)
    error = (preds - target).square()
    if masks is None:
        return error.mean(dim=(1, 2, 3))
    return _mean_within(error, masks)


def decibels(error: float, cap: float = 300.0) -> float:
    """Return a mean squared error of images in [0, 1] as PSNR, in dB, at most ``cap``.

    Args:
        error: 0 and less, where an interval's end is one, count as ``cap``.
        cap: the largest value returned, in dB.

    Examples:
        >>> decibels(0.01), decibels(0.0, cap=100.0)
        (20.0, 100.0)
    """
    value = cap if error <= 0 else -10 * math.log10(error)
    return cap if value > cap else value  # NaN stays


def psnr(preds: Tensor, target: Tensor, masks: Tensor | None = None, cap: float = 100.0) -> Tensor:
    """Return the peak signal-to-noise ratio of each image, in dB, for a data range of 1.

    Args:
        preds: B C H W in [0, 1].
        target: B C H W in [0, 1].
        masks: B 1 H W, bool; the squared error is then averaged over the mask's pixels only.
        cap: the largest value returned, in dB.  An exact copy has an infinite PSNR, which would
            make every mean infinite; it counts as ``cap``.

    Returns:
        B values in dB, in [0, cap].

    Raises:
        ValueError: if the shapes disagree or a mask is empty.

    Examples:
        >>> import torch
        >>> target = torch.zeros(2, 1, 8, 8)
        >>> psnr(torch.stack([target[0], target[1] + 0.1]), target)
        tensor([100.,  20.])
    """
    if masks is not None:
        return (-10.0 * torch.log10(mse(preds, target, masks))).clamp(max=cap)
    check_images(preds, target, masks)
    value = peak_signal_noise_ratio(preds, target, data_range=1.0, reduction="none", dim=(1, 2, 3))
    return value.clamp(max=cap)


def ssim(preds: Tensor, target: Tensor, masks: Tensor | None = None) -> Tensor:
    """Return the structural similarity of each image, for a data range of 1.

    Gaussian window of 11 x 11 pixels (standard deviation 1.5), K1 = 0.01, K2 = 0.03, channels
    averaged, edges reflected: the map has the image's own size.

    Args:
        preds: B C H W in [0, 1], sides of at least 7 pixels.
        target: B C H W in [0, 1].
        masks: B 1 H W, bool; the value is then the mean of the SSIM map over the mask.  A window
            at the mask's edge still reaches 5 pixels beyond it.

    Returns:
        B values in [-1, 1]; 1 for an exact copy.

    Raises:
        ValueError: if the shapes disagree, the images are too small or a mask is empty.

    Examples:
        >>> import torch
        >>> target = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        >>> ssim(target, target)
        tensor([1., 1.])
        >>> bool((ssim(1 - target, target) < 0).all())
        True
    """
    check_images(preds, target, masks)
    _, similarity = structural_similarity_index_measure(
        preds, target, data_range=1.0, reduction="none", return_full_image=True
    )
    if masks is None:
        return similarity.mean(dim=(1, 2, 3))
    return _mean_within(similarity, masks)


def ms_ssim(preds: Tensor, target: Tensor) -> Tensor:
    """Return the multi-scale structural similarity of each image, for a data range of 1.

    The product over scales of the mean contrast-structure terms, at the coarsest scale of the
    mean SSIM, each to the power of its weight: .0448, .2856, .3001, .2363, .1333 from fine to
    coarse (the paper's).  A scale is half as wide as the one before.  Negative terms count as 0.

    Small images have fewer scales: as many as leave the window of 11 pixels room at the coarsest,
    5 from 176 pixels on the shorter side on, 4 from 99, 3 from 44, 2 from 22 (32x32 has 2), else 1.
    The weights of the scales that are left are divided by their sum, so that the value stays on
    one footing; values of different sizes of image are still not comparable.

    Args:
        preds: B C H W in [0, 1], sides of at least 7 pixels.
        target: B C H W in [0, 1].

    Returns:
        B values in [0, 1]; 1 for an exact copy.

    Raises:
        ValueError: if the shapes disagree or the images are too small.

    Examples:
        >>> import torch
        >>> target = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        >>> ms_ssim(target, target)
        tensor([1., 1.])
    """
    check_images(preds, target)
    num_scales = sum(min(preds.shape[-2:]) >= side for side in _LEAST_SIDES)
    if num_scales == 1:  # the library wants 11 pixels for it, SSIM does not
        return ssim(preds, target).clamp(min=0.0)
    weights = _SCALE_WEIGHTS[:num_scales]
    return multiscale_structural_similarity_index_measure(
        preds,
        target,
        data_range=1.0,
        reduction="none",
        betas=tuple(weight / sum(weights) for weight in weights),
        normalize="relu",
    ).to(preds.dtype)


def cw_ssim(preds: Tensor, target: Tensor, masks: Tensor | None = None) -> Tensor:
    """Return the complex-wavelet structural similarity of each image.

    A small translation, rotation or scaling of an image turns the phases of its complex wavelet
    coefficients by about the same angle within a neighbourhood.  The local index compares the
    coefficients c_x, c_y of the two images in a window, blind to such a common angle::

        (2 |sum c_x conj(c_y)| + K) / (sum |c_x|^2 + sum |c_y|^2 + K)

    The images' luma is decomposed into octaves of 6 orientations, by filters applied in the
    Fourier domain (see :func:`_oriented_filters`), each octave decimated to its own sampling
    rate.  Windows are 7 x 7 coefficients of the decimated band.  The result is the mean of the
    local indices over positions, then over orientations and octaves with equal weights.

    Octaves used: peak frequencies of 1/4, 1/8, 1/16, 1/32 cycles per pixel, as many as leave the
    coarsest band 14 coefficients (two windows) on its shorter side: 1 for images under 28 pixels,
    2 at 28 or 32, 3 at 56 or 64, all 4 from 112 on.

    Differences from the paper: six orientations; octaves are weighted equally; low-pass and
    high-pass residuals are not compared, so neither brightness nor detail above about 0.35
    cycles per pixel counts much; the window is cut at the edges of the image instead of left out,
    so that a subject at the edge still counts; the Fourier filters wrap around.  K is 0.01 for
    images in 0..255, as is usual, hence 0.01 / 255^2 here: flat regions in both images agree (1).

    Args:
        preds: B C H W in [0, 1], sides of at least 7 pixels; with C = 3 the channels are R, G, B
            and the luma is Rec. 601, otherwise it is the mean of the channels.
        target: B C H W in [0, 1].
        masks: B 1 H W, bool; local indices are then weighted by how much of the subject their
            centre holds.  Windows and filters at the edge of the mask reach beyond it.

    Returns:
        B values in [0, 1]; 1 for an exact copy.

    Raises:
        ValueError: if the shapes disagree, the images are too small or a mask is empty.

    Examples:
        >>> import torch
        >>> target = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        >>> cw_ssim(target, target)
        tensor([1., 1.])
        >>> bool((cw_ssim(target.flip(0), target) < 0.6).all())
        True
    """
    check_images(preds, target, masks)
    height, width = preds.shape[-2:]
    spectrum_x = torch.fft.fft2(luma(preds))  # B H W
    spectrum_y = torch.fft.fft2(luma(target))
    total = preds.new_zeros(len(preds))
    num_scales = _num_scales(height, width)
    for scale in range(num_scales):
        rows = _kept_frequencies(height, scale, preds.device)
        columns = _kept_frequencies(width, scale, preds.device)
        filters = _oriented_filters(
            rows.to(preds.dtype) / height, columns.to(preds.dtype) / width, 0.25 / 2**scale
        )
        filters = filters * (rows.numel() * columns.numel() / (height * width))
        kept_x = spectrum_x[:, rows[:, None] % height, columns[None, :] % width]
        kept_y = spectrum_y[:, rows[:, None] % height, columns[None, :] % width]
        weight = None
        if masks is not None:
            area = F.adaptive_avg_pool2d(masks.to(preds.dtype), (rows.numel(), columns.numel()))
            weight = area[:, 0] / area.sum(dim=(2, 3))[..., None]
        for gain in filters:  # one orientation at a time: bounded memory
            index = _local_index(torch.fft.ifft2(kept_x * gain), torch.fft.ifft2(kept_y * gain))
            total += index.mean(dim=(1, 2)) if weight is None else (index * weight).sum(dim=(1, 2))
    return total / (num_scales * _NUM_ORIENTATIONS)


def _local_index(x: Tensor, y: Tensor) -> Tensor:
    """Return the CW-SSIM of every window of two bands, both B h w complex; B h w real."""
    cross = x * y.conj()
    energy = x.abs().square() + y.abs().square()
    stacked = torch.stack([cross.real, cross.imag, energy], dim=1)  # B 3 h w
    half = _WINDOW // 2
    stacked = F.avg_pool2d(stacked, (_WINDOW, 1), 1, (half, 0), divisor_override=1)
    stacked = F.avg_pool2d(stacked, (1, _WINDOW), 1, (0, half), divisor_override=1)
    real, imaginary, energy = stacked.unbind(dim=1)
    return (2.0 * torch.hypot(real, imaginary) + _STABILITY) / (energy + _STABILITY)


def _oriented_filters(rows: Tensor, columns: Tensor, peak: float) -> Tensor:
    """Return one octave of a complex steerable pyramid as gains in the Fourier domain.

    Radially a cosine in log2 of the frequency, 1 at the peak and 0 an octave away, so that the
    squares of neighbouring octaves add up to 1.  In angle cos^5 over half the plane and 0 over
    the other half, which makes the coefficients complex (analytic), scaled so that the real
    parts of the orientations form a tight frame.

    Args:
        rows: h vertical frequencies, cycles per pixel.
        columns: w horizontal frequencies, cycles per pixel.
        peak: the octave's peak frequency, cycles per pixel.

    Returns:
        6 h w, real and non-negative.
    """
    radius = torch.hypot(rows[:, None], columns[None, :])
    angle = torch.atan2(rows[:, None], columns[None, :])
    octaves = torch.log2(radius.clamp(min=1e-9) / peak)
    radial = torch.where(octaves.abs() < 1, torch.cos(math.pi / 2 * octaves), 0.0)
    order = _NUM_ORIENTATIONS - 1
    scale = 2.0**order * math.factorial(order)
    scale /= math.sqrt(_NUM_ORIENTATIONS * math.factorial(2 * order))
    centres = torch.arange(_NUM_ORIENTATIONS, device=rows.device, dtype=rows.dtype)
    centres = centres * (math.pi / _NUM_ORIENTATIONS)
    angular = torch.cos(angle - centres[:, None, None]).clamp(min=0.0) ** order
    return 2.0 * scale * angular * radial


def _kept_frequencies(size: int, scale: int, device: torch.device) -> Tensor:
    """Return the whole cycles per image, in FFT order, that a band decimated by 2**scale keeps."""
    kept = math.ceil(size / 2**scale)
    positive = (kept + 1) // 2
    cycles = torch.arange(kept, device=device)
    return torch.where(cycles < positive, cycles, cycles - kept)


def _num_scales(height: int, width: int) -> int:
    """Return how many octaves leave the coarsest band two windows on its shorter side."""
    octaves = math.floor(math.log2(min(height, width) / (2 * _WINDOW)))
    return min(max(octaves + 1, 1), _MAX_SCALES)


def luma(images: Tensor) -> Tensor:
    """Return the luma, B H W, of B C H W: Rec. 601 for three channels, else their mean."""
    if images.shape[1] != 3:
        return images.mean(dim=1)
    weights = images.new_tensor([0.299, 0.587, 0.114])
    return (images * weights[:, None, None]).sum(dim=1)


def _mean_within(values: Tensor, masks: Tensor) -> Tensor:
    """Return the mean of B C H W over each mask's pixels and all channels: B values."""
    inside = torch.where(masks, values, 0.0).sum(dim=(1, 2, 3))
    return inside / (masks.sum(dim=(1, 2, 3)) * values.shape[1])


def check_images(preds: Tensor, target: Tensor, masks: Tensor | None = None) -> None:
    """Raise a ValueError that names the first thing wrong with the three arguments."""
    if preds.ndim != 4 or preds.shape != target.shape:
        raise ValueError(
            f"preds and target must both be B C H W; got {tuple(preds.shape)} and "
            f"{tuple(target.shape)}"
        )
    if min(preds.shape[-2:]) < MIN_SIDE:
        raise ValueError(
            f"images must be at least {MIN_SIDE} pixels on a side; got {tuple(preds.shape[-2:])}"
        )
    if masks is None:
        return
    expected = (len(preds), 1, *preds.shape[-2:])
    if masks.shape != expected or masks.dtype != torch.bool:
        raise ValueError(
            f"masks must be bool of shape {expected}; got {masks.dtype} {tuple(masks.shape)}"
        )
    if not bool(masks.flatten(1).any(dim=1).all()):
        raise ValueError("a mask is empty: it has no subject to compare")
