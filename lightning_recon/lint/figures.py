"""The figures of Gaussian noise, and what was measured at so much of it."""

import math
from functools import cache
from itertools import pairwise

from lightning_recon.errors import InputError
from lightning_recon.lint.facts import Figure, Level
from lightning_recon.privacy.gaussian import gaussian_epsilon
from lightning_recon.privacy.sensitivity import Adjacency, client_sensitivity

MEASURED = {
    0.0002: 100.0,
    0.0004: 100.0,
    0.0008: 99.39,
    0.0016: 44.59,
    0.0032: 33.01,
    0.008: 25.11,
    0.02: 20.13,
}
"""Mean PSNR in dB of whole images of 224x224, by the ratio of noise to one image's share of the
norm, s sqrt(B) / C: of the strongest attack of this project, a malicious server's, C = 10 and
B = 16.  All of ``CodedLDPAttack``, 20 clients, from docs/coded.md; 100 for every pixel right.  The
mean image has 11.66."""


@cache
def gaussian_figure(
    noise_multiplier: float,
    level: Level,
    adjacency: Adjacency,
    rounds: int,
    delta: float,
    sampling_rate: float = 1.0,
) -> Figure:
    """Return the epsilon of Gaussian noise.

    Args:
        noise_multiplier: standard deviation over the norm of one contribution, at least 0.
        level: whose contribution that is.
        adjacency: what happens to it.
        rounds: how often it is released.
        delta: of all together.
        sampling_rate: with which a contribution takes part, by an independent coin.
    """
    if noise_multiplier == 0:
        return Figure(level, adjacency, rounds, math.inf, delta, "exact", "there is no noise")
    if sampling_rate < 1:
        from lightning_recon.privacy.accounting import pld_epsilon  # takes seconds

        try:
            epsilon = pld_epsilon(noise_multiplier, delta, rounds, sampling_rate, adjacency)
        except InputError:  # too little noise for it: sampling helps hardly
            pass
        else:
            rule = f"privacy loss distribution, drawn with probability {sampling_rate:.3g}"
            return Figure(level, adjacency, rounds, epsilon, delta, "at most", rule)
    sensitivity = client_sensitivity(1.0, adjacency)
    epsilon = gaussian_epsilon(sensitivity, noise_multiplier, delta, rounds)
    rule = f"analytic Gaussian mechanism, noise {noise_multiplier / sensitivity:.4g} sensitivities"
    return Figure(
        level, adjacency, rounds, epsilon, delta, "exact" if sampling_rate == 1 else "at most", rule
    )


def best_psnr(ratio: float | None) -> str:
    """Return what this project has measured at a ratio of noise to one image's share of the clip.

    Args:
        ratio: s sqrt(B) / C; 0: no noise; null: the channel is no clip with noise.
    """
    if ratio is None:
        return "not measured on such a channel"
    known = sorted(MEASURED)
    if ratio < known[0]:
        return "every pixel right (100 dB)"
    if ratio > known[-1]:
        return f"under {MEASURED[known[-1]]:.1f} dB; so much noise was not measured"
    for low, high in pairwise(known):
        if ratio <= high:
            share = math.log(ratio / low) / math.log(high / low)
            psnr = MEASURED[low] + share * (MEASURED[high] - MEASURED[low])
            return f"about {psnr:.1f} dB"
    raise AssertionError
