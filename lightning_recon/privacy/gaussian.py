"""The exact privacy of one Gaussian release.

Balle & Wang, "Improving the Gaussian Mechanism for Differential Privacy: Analytical Calibration
and Optimal Denoising", ICML 2018, Theorem 8.
"""

import math

from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr


def gaussian_delta(epsilon: float, sensitivity: float, std: float) -> float:
    """Return the smallest delta at which noise of ``std`` is (epsilon, delta)-DP.

    Args:
        epsilon: at least 0.
        sensitivity: L2 sensitivity D of what is released, above 0.
        std: standard deviation of the noise per coordinate, above 0.
    """
    a = sensitivity / (2 * std)
    b = epsilon * std / sensitivity
    # exp(epsilon) overflows long before the product does: multiply in the log domain
    return float(ndtr(a - b) - math.exp(min(0.0, epsilon + float(log_ndtr(-a - b)))))


def gaussian_epsilon(sensitivity: float, std: float, delta: float) -> float:
    """Return the smallest epsilon at which noise of ``std`` is (epsilon, delta)-DP.

    Args:
        sensitivity: L2 sensitivity D of what is released, above 0.
        std: standard deviation of the noise per coordinate, above 0.
        delta: in (0, 1).

    >>> round(gaussian_epsilon(1.0, 3.731, 1e-5), 2)
    1.0
    """
    if gaussian_delta(0.0, sensitivity, std) <= delta:
        return 0.0
    ratio = sensitivity / std
    # without the second term of the theorem, which only helps: Phi(ratio/2 - eps/ratio) = delta
    upper = ratio * (ratio / 2 + math.sqrt(2 * math.log(1 / delta)))
    return float(
        brentq(lambda eps: gaussian_delta(eps, sensitivity, std) - delta, 0.0, upper, rtol=1e-12)
    )
