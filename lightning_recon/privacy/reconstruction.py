"""What a release allows an attacker to reconstruct: bounds that hold against every attack.

Reconstruction robustness (ReRo): an attacker who would guess right with probability kappa without
the release (the best guess, by whatever notion of right) is right with it with probability at most
gamma.  kappa = 1/1000 is identification among 1000 equally likely candidates.  Balle, Cherubin &
Hayes, "Reconstructing Training Data with Informed Adversaries", S&P 2022; Hayes, Mahloujifar &
Balle, "Bounding Training Data Reconstruction in DP-SGD", NeurIPS 2023; Kaissis, Hayes, Ziller &
Rueckert, "Bounding Data Reconstruction Attacks with the Hypothesis Testing Interpretation of
Differential Privacy", 2023.

Beside them the other end: the expected PSNR of the best attack that uses no prior.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from scipy.special import digamma, ndtr, ndtri

from lightning_recon.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_CAP = 100.0  # dB, as in image_quality.psnr


def rero_gaussian(
    sensitivity: float, std: float, kappa: float = 1e-3, num_rounds: int = 1
) -> float:
    """Return the ReRo bound of Gaussian noise, Phi(Phi^-1(kappa) + sqrt(T) D / s).

    Hayes et al. 2023; Kaissis et al. 2023.

    Args:
        sensitivity: L2 sensitivity D of what is released.
        std: standard deviation s of the noise per coordinate, above 0.
        kappa: success without the release, in (0, 1).
        num_rounds: how often it is released, each time with fresh noise.

    >>> round(rero_gaussian(1.0, 1.0), 4)
    0.0183
    """
    _check_kappa(kappa)
    return float(ndtr(ndtri(kappa) + math.sqrt(num_rounds) * sensitivity / std))


def rero_zcdp(rho: float, kappa: float = 1e-3) -> float:
    """Return the ReRo bound of rho-zCDP, exp(-[sqrt(ln 1/kappa) - sqrt(rho)]_+^2).

    Balle et al. 2022, by way of Rényi DP; looser than the Gaussian's own bound.

    Args:
        rho: of all rounds together, at least 0.
        kappa: success without the release, in (0, 1).
    """
    _check_kappa(kappa)
    return math.exp(-(max(0.0, math.sqrt(math.log(1 / kappa)) - math.sqrt(rho)) ** 2))


def rero_pure(epsilon: float, kappa: float = 1e-3) -> float:
    """Return the ReRo bound of epsilon-DP: min(e^eps kappa, 1 - e^-eps (1 - kappa)).

    Balle et al. 2022 for the first, Kaissis et al. 2023 (through the trade-off function) for both.

    Args:
        epsilon: of all rounds together, at least 0.
        kappa: success without the release, in (0, 1).
    """
    _check_kappa(kappa)
    first = math.exp(min(0.0, epsilon + math.log(kappa)))
    return min(first, 1 - math.exp(-epsilon) * (1 - kappa))


def channel_bits(
    noise_multiplier: float, num_images: float, num_coordinates: int | None = None
) -> float:
    """Return how many bits an image a clipped, noisy update can carry at most.

    Shannon's capacity of N parallel Gaussian channels that share the energy C^2, divided by the
    images that share it, (N / 2B) log2(1 + C^2 / (N s^2)); as N grows, C^2 / (2 B s^2 ln 2).

    Args:
        noise_multiplier: s / C, standard deviation of the noise over the clipping norm, at least 0.
        num_images: B, that share one clip, above 0.
        num_coordinates: N, numbers of the update; null: as many as there may be.

    Returns:
        Bits; infinity without noise.

    >>> round(channel_bits(0.0002, 16, 150528 * 16))
    264060
    """
    if noise_multiplier < 0 or num_images <= 0:
        raise InputError(
            "channel_bits: noise_multiplier must be at least 0 and num_images above 0, not "
            f"{noise_multiplier} and {num_images}"
        )
    if noise_multiplier == 0:
        return math.inf
    if num_coordinates is None:
        return 1 / (2 * num_images * noise_multiplier**2 * math.log(2))
    ratio = 1 / (num_coordinates * noise_multiplier**2)
    return num_coordinates / (2 * num_images) * math.log1p(ratio) / math.log(2)


def expected_psnr(noise_multiplier: float, energy: float, num_pixels: int) -> float:
    """Return the expected PSNR of the best attack without a prior, in dB; pixels not clamped.

    Ziller et al., arXiv 2402.12861: against a linear layer whose gradient takes the whole clipping
    budget, x_hat ~ N(x, z^2 energy I), so that the squared error is a Gamma variable:
    E[PSNR] = -(10 / ln 10) (psi(N/2) + ln(2 z^2 energy / N)) for a data range of 1.  An attack
    that subtracts neighbouring rows (cumulative bins) has twice the noise variance: 3 dB less.

    Args:
        noise_multiplier: z, the standard deviation of the noise over the clipping norm.
        energy: sum of the squares of all pixels that share one clip: of the one image under
            per-sample clipping, of the whole batch where its update is clipped once.  Above 0.
        num_pixels: N, numbers of one image (C H W).

    Returns:
        At most 100 dB, as for every PSNR of this project; without noise exactly that.
    """
    if noise_multiplier < 0 or energy <= 0 or num_pixels < 1:
        raise InputError(
            "expected_psnr: noise_multiplier must be at least 0, energy above 0 and num_pixels at "
            f"least 1, not {noise_multiplier}, {energy} and {num_pixels}"
        )
    if noise_multiplier == 0:
        return _CAP
    log_mse = float(digamma(num_pixels / 2)) + math.log(2 * noise_multiplier**2 / num_pixels)
    return min(_CAP, -10 / math.log(10) * (log_mse + math.log(energy)))


def clamped_psnr(
    images: Tensor,
    noise_multiplier: float,
    *,
    generator: torch.Generator,
    energy: float | None = None,
    num_draws: int = 8,
) -> Tensor:
    """Return the expected PSNR of the same attack with its pixels clamped to [0, 1], in dB.

    By Monte Carlo: the error of the clamped pixels depends on the image.  Over the 10^4 pixels and
    more of an image the PSNR hardly varies from draw to draw, and few are enough.

    Args:
        images: B C H W in [0, 1].
        noise_multiplier: z, the standard deviation of the noise over the clipping norm.
        generator: on the images' device.
        energy: as in :func:`expected_psnr`; null: of all these images together.
        num_draws: over which the PSNR is averaged.

    Returns:
        B.
    """
    import torch  # the bounds above need none of it

    from lightning_recon.functional.image_quality import psnr

    if energy is None:
        energy = float(images.double().square().sum())
    std = noise_multiplier * math.sqrt(energy)
    total = torch.zeros(len(images), dtype=torch.float64, device=images.device)
    for _ in range(num_draws):
        noise = torch.randn(images.shape, generator=generator, device=images.device)
        noisy = (images + std * noise.to(images.dtype)).clamp(0, 1)
        total += psnr(noisy, images, cap=_CAP).double()
    return total / num_draws


def _check_kappa(kappa: float) -> None:
    if not 0 < kappa < 1:
        raise InputError(f"kappa must lie between 0 and 1, not {kappa}")
