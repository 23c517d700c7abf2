"""The exact privacy of Gaussian noise, for one release and for several.

Balle & Wang, "Improving the Gaussian Mechanism for Differential Privacy: Analytical Calibration
and Optimal Denoising", ICML 2018, Theorem 8.  T releases of standard deviation s are exactly as
private as one of s / sqrt(T) (Dong, Roth & Su, "Gaussian Differential Privacy", JRSS B 84, 2022,
Corollary 2), so that no accountant is needed where every release is noised alike.
"""

import math

from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr, ndtri

from lightning_recon.errors import InputError


def gaussian_delta(epsilon: float, sensitivity: float, std: float, num_rounds: int = 1) -> float:
    """Return the smallest delta at which noise of ``std`` is (epsilon, delta)-DP.

    Args:
        epsilon: at least 0.
        sensitivity: L2 sensitivity D of what is released, above 0.
        std: standard deviation of the noise per coordinate, above 0.
        num_rounds: how often it is released, each time with fresh noise.
    """
    std = std / math.sqrt(num_rounds)
    a = sensitivity / (2 * std)
    b = epsilon * std / sensitivity
    # exp(epsilon) overflows long before the product does: multiply in the log domain
    return float(ndtr(a - b) - math.exp(min(0.0, epsilon + float(log_ndtr(-a - b)))))


def gaussian_epsilon(sensitivity: float, std: float, delta: float, num_rounds: int = 1) -> float:
    """Return the smallest epsilon at which noise of ``std`` is (epsilon, delta)-DP.

    Args:
        sensitivity: L2 sensitivity D of what is released, above 0.
        std: standard deviation of the noise per coordinate, above 0.
        delta: in (0, 1).
        num_rounds: how often it is released, each time with fresh noise.

    >>> round(gaussian_epsilon(1.0, 3.731, 1e-5), 2)
    1.0
    >>> round(gaussian_epsilon(1.0, 37.31, 1e-5, num_rounds=100), 2)
    1.0
    """
    _check(sensitivity=sensitivity, std=std, delta=delta, num_rounds=num_rounds)
    std = std / math.sqrt(num_rounds)
    if gaussian_delta(0.0, sensitivity, std) <= delta:
        return 0.0
    ratio = sensitivity / std
    # without the second term of the theorem, which only helps: Phi(ratio/2 - eps/ratio) = delta
    upper = ratio * (ratio / 2 + math.sqrt(2 * math.log(1 / delta)))
    return float(
        brentq(lambda eps: gaussian_delta(eps, sensitivity, std) - delta, 0.0, upper, rtol=1e-12)
    )


def gaussian_std(epsilon: float, sensitivity: float, delta: float, num_rounds: int = 1) -> float:
    """Return the smallest standard deviation whose noise is (epsilon, delta)-DP.

    Args:
        epsilon: of all releases together, at least 0.
        sensitivity: L2 sensitivity D of what is released, above 0.
        delta: of all releases together, in (0, 1).
        num_rounds: how often it is released, each time with fresh noise.

    >>> round(gaussian_std(1.0, 1.0, 1e-5), 3)
    3.731
    """
    _check(sensitivity=sensitivity, delta=delta, num_rounds=num_rounds)
    if not 0 <= epsilon < math.inf:
        raise InputError(f"epsilon must be a number of at least 0, not {epsilon}")
    # two lower bounds on the ratio D/s: the theorem without its second term, and epsilon = 0
    quantile = float(ndtri(delta))
    root = math.sqrt(quantile**2 + 2 * epsilon)
    first = 2 * epsilon / (root - quantile) if quantile < 0 else quantile + root
    low = max(first, delta)
    high = 2 * low
    while gaussian_delta(epsilon, high, 1.0) < delta:
        high *= 2
    ratio = brentq(lambda r: gaussian_delta(epsilon, r, 1.0) - delta, low, high, rtol=1e-12)
    return sensitivity / float(ratio) * math.sqrt(num_rounds)


def classical_std(epsilon: float, sensitivity: float, delta: float) -> float:
    """Return the classical formula's standard deviation, D sqrt(2 ln(1.25 / delta)) / epsilon.

    Dwork & Roth, "The Algorithmic Foundations of Differential Privacy", 2014, Theorem A.1, which
    is proven for epsilon below 1.  For larger ones it may give too little noise: what it comes to
    is :func:`gaussian_epsilon` of it.

    Args:
        epsilon: that is claimed, above 0.
        sensitivity: L2 sensitivity D that is assumed, at least 0.
        delta: in (0, 1).

    >>> round(classical_std(1.0, 1.0, 1e-5), 3)
    4.845
    """
    return sensitivity * math.sqrt(2 * math.log(1.25 / delta)) / epsilon


def _check(*, sensitivity: float, delta: float, num_rounds: int, std: float = 1.0) -> None:
    for name, value in (("sensitivity", sensitivity), ("std", std)):
        if not 0 < value < math.inf:
            raise InputError(f"{name} must be a number above 0, not {value}")
    if not 0 < delta < 1:
        raise InputError(f"delta must lie between 0 and 1, not {delta}")
    if not num_rounds >= 1:
        raise InputError(f"num_rounds must be at least 1, not {num_rounds}")
