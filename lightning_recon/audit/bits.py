"""How many bits of an image came through, and how many the noisy channel could have carried.

A Gaussian source of independent coefficients that is known with squared errors D_f out of variances
V_f has been told of by the sum of 1/2 log2(V_f / D_f) bits (Cover & Thomas, "Elements of
Information Theory", section 10.3).  Coefficients are those of the DCT of opponent colours; errors
and variances are pooled over a client's images and over rings of equal frequency.  Images are no
Gaussian source: a strong prior makes the count larger than what was told.
"""

import math

import torch
from torch import Tensor

from lightning_recon.attacks.spectral.code import OPPONENT, dct_matrix, ring_average
from lightning_recon.observation import Channel

ROUNDING = (1 / 255) ** 2 / 12  # squared error of a pixel of 8 bits, the least that counts


def bits_read(images: Tensor, truth: Tensor, guess: Tensor) -> float:
    """Return the bits an image that reconstructions tell beyond a guess; 0 for the guess itself.

    Args:
        images: B C H W, the reconstruction of each true image; NaN where there is none, and the
            guess counts.
        truth: B C H W in [0, 1], C 3 or 1.
        guess: C H W, that of one who learned nothing.
    """
    images = torch.where(images.isnan(), guess, images)
    variance, error = _power(truth - guess), _power(images - truth)
    ratio = (variance + ROUNDING) / (error + ROUNDING)
    return float(ratio.log2().sum()) / 2


def channel_bits(channel: Channel, num_samples: int, num_numbers: int) -> float | None:
    """Return how many bits a sample's share of a clipped, noisy update can carry at most.

    That is N / 2 log2(1 + E / (N s^2)), E = C^2 / B (Shannon 1949); None without clip or noise.

    Args:
        channel: what the update passes.
        num_samples: B, of the batch, or of all clients of a round together.
        num_numbers: N, what a sample is sent as.
    """
    if not channel.clip_norm or not channel.noise_std:
        return None
    num_samples = -(-num_samples // channel.num_clients)
    share = num_samples**2 if channel.clips_samples else num_samples
    ratio = channel.clip_norm**2 / share / channel.noise_std**2
    return num_numbers / 2 * math.log2(1 + ratio / num_numbers)


def _power(images: Tensor) -> Tensor:
    """Return the mean square of each coefficient's ring, C H W, float64."""
    channels, height, width = images.shape[1:]
    opponent = torch.tensor(OPPONENT, dtype=torch.float64)[:channels, :channels]
    opponent /= opponent.norm(dim=1, keepdim=True)
    colours = torch.einsum("oc,bchw->bohw", opponent, images.double())
    coefficients = dct_matrix(height) @ colours @ dct_matrix(width).T
    return ring_average(coefficients.square().mean(0))
