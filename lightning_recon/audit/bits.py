"""How many bits of an image came through, and how many the noisy channel could have carried.

A Gaussian source of independent coefficients that is known with squared errors D_f out of variances
V_f has been told of by the sum of 1/2 log2(V_f / D_f) bits (Cover & Thomas, "Elements of
Information Theory", section 10.3).  Coefficients are those of the DCT of opponent colours; errors
and variances are pooled over all images of a run and over rings of equal frequency.  Images are no
Gaussian source: a strong prior makes the sum larger than what was told, and what is worse than the
guess makes it negative.  More than the channel carries, or less than nothing, cannot have been
told, and the figure ends there.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from lightning_recon.attacks.spectral.code import OPPONENT, dct_matrix, rings
from lightning_recon.audit.schema import BitsJson
from lightning_recon.defenses import (
    Defense,
    Laplace,
    LaplaceNoise,
    PrivUnit2,
    PrivUnitG,
)
from lightning_recon.defenses.privunit import Cap, privunit_cap
from lightning_recon.defenses.privunit_gaussian import privunitg_cap
from lightning_recon.observation import Channel

ROUNDING = (1 / 255) ** 2 / 12  # squared error of a pixel of 8 bits, the least that counts

Powers = dict[str, list[float]]
"""Squared coefficients by channel and ring, summed over images and ring: of the ``guess``'s error,
of the ``attack``'s, and of that on ``noise_only``; ``size``: how many coefficients that are."""


def powers(images: Mapping[str, Tensor], truth: Tensor, guess: Tensor) -> Powers:
    """Return what :func:`bits_told` needs of one client.

    Args:
        images: by name, B C H W: the reconstruction of each true image; NaN where there is none,
            and the guess counts.
        truth: B C H W in [0, 1], C 3 or 1.
        guess: C H W, that of one who learned nothing.
    """
    found = {"guess": _power(truth - guess)}
    for name, shown in images.items():
        found[name] = _power(torch.where(shown.isnan(), guess, shown) - truth)
    sizes = _by_ring(torch.ones(truth.shape[1:], dtype=torch.float64))
    return {name: part.tolist() for name, part in {**found, "size": len(truth) * sizes}.items()}


def bits_told(pooled: Sequence[Powers], name: str, num_images: int) -> float:
    """Return the bits an image that reconstructions tell beyond the guess; 0 for the guess itself.

    Args:
        pooled: of all clients, at least one.
        name: ``attack`` or ``noise_only``.
        num_images: of all clients together.
    """
    size, guess, error = (
        torch.tensor([part[key] for part in pooled], dtype=torch.float64).sum(0)
        for key in ("size", "guess", name)
    )
    held = size > 0
    least = size[held] * ROUNDING
    ratio = (guess[held] + least) / (error[held] + least)
    return float((size[held] * ratio.log2()).sum()) / (2 * num_images)


def told_of_run(
    pooled: Sequence[Powers], capacities: Sequence[float], num_images: int
) -> BitsJson | None:
    """Return the figures of a run; None where no channel bounds them.

    Args:
        pooled: of the clients.
        capacities: what the channel carries of an image, of the same clients.
        num_images: of all of them.
    """
    if not pooled:
        return None
    capacity = math.fsum(capacities) / len(capacities)

    def told(name: str) -> float:
        return min(max(0.0, bits_told(pooled, name, num_images)), capacity)

    has_control = all("noise_only" in part for part in pooled)
    return {
        "read": told("attack"),
        "capacity": capacity,
        "noise_only": told("noise_only") if has_control else None,
    }


def channel_bits(
    channel: Channel, defenses: Iterable[Defense], num_samples: int, num_numbers: int
) -> float | None:
    """Return how many bits of an image a protected update can carry at most.

    - A clip and Gaussian noise: N / 2 log2(1 + E / (N s^2)), E = C^2 / B (Shannon 1949).
    - A clip and Laplace noise of scale b, s^2 = 2 b^2: at most as many and N / 2 log2(pi / e), by
      which a Gaussian's entropy exceeds Laplace's; and at most E / s^2 log2(e), twice the Gaussian
      channel's, which is the most that a unit of energy tells however thinly it is spread
      (Verdu, "On channel capacity per unit cost", IEEE Trans. Information Theory 36, 1990).
    - PrivUnit: what a direction tells is p log2(p / q) + (1 - p) log2((1 - p) / (1 - q)), the
      divergence of the release from one that knows nothing, where the cap of measure q is hit with
      probability p.  One update's samples share it.

    Args:
        channel: of the update's clip and Gaussian noise.
        defenses: that the update passes.
        num_samples: B, of the batch, or of all clients of a round together.
        num_numbers: N, what a sample is sent as.

    Returns:
        Bits; None where none of these bounds them.
    """
    bounds = []
    num_samples = -(-num_samples // channel.num_clients)
    share = num_samples**2 if channel.clips_samples else num_samples
    if channel.clip_norm and channel.noise_std:
        ratio = channel.clip_norm**2 / share / channel.noise_std**2
        bounds.append(num_numbers / 2 * math.log2(1 + ratio / num_numbers))
    for defense in defenses:
        if isinstance(defense, PrivUnit2):
            cap = privunit_cap(defense.epsilon, max(2, num_samples * num_numbers))
            bounds.append(_cap_bits(cap) / num_samples)
        elif isinstance(defense, PrivUnitG):
            bounds.append(_cap_bits(privunitg_cap(defense.epsilon)) / num_samples)
        elif isinstance(defense, Laplace | LaplaceNoise) and defense.scale:
            # an L1 norm bounds the L2 norm
            own = defense.clip_norm if isinstance(defense, Laplace) else None
            clip_norm = min(filter(None, (own, channel.clip_norm)), default=None)
            if clip_norm is not None:
                ratio = clip_norm**2 / share / (2 * defense.scale**2)
                spread = math.log2(1 + ratio / num_numbers) + math.log2(math.pi / math.e)
                bounds.append(min(num_numbers / 2 * spread, ratio * math.log2(math.e)))
    return min(bounds, default=None)


def _cap_bits(cap: Cap) -> float:
    inside = cap.probability * (math.log(cap.probability) - cap.log_tail)
    outside = 1 - cap.probability
    if outside > 0:
        inside += outside * (math.log(outside) - math.log1p(-cap.tail))
    return inside / math.log(2)


def _power(images: Tensor) -> Tensor:
    """Return the squares of the coefficients, summed over images and rings, channels x rings."""
    channels, height, width = images.shape[1:]
    opponent = torch.tensor(OPPONENT, dtype=torch.float64)[:channels, :channels]
    opponent /= opponent.norm(dim=1, keepdim=True)
    colours = torch.einsum("oc,bchw->bohw", opponent, images.double())
    coefficients = dct_matrix(height) @ colours @ dct_matrix(width).T
    return _by_ring(coefficients.square().sum(0))


def _by_ring(squares: Tensor) -> Tensor:
    """Return the sums of C H W squares by channel and ring, all in one row."""
    ring = rings(*squares.shape[1:])
    total = squares.new_zeros(len(squares), int(ring.max()) + 1)
    return total.index_add_(1, ring.flatten(), squares.flatten(1)).flatten()
