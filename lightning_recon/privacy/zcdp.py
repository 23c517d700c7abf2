"""Zero-concentrated differential privacy, rho-zCDP: it adds up over rounds.

Bun & Steinke, "Concentrated Differential Privacy: Simplifications, Extensions, and Lower Bounds",
TCC 2016.
"""

import math


def gaussian_rho(sensitivity: float, std: float, num_rounds: int = 1) -> float:
    """Return the rho of Gaussian noise, T D^2 / (2 s^2); exact (Bun & Steinke, Proposition 1.6).

    Args:
        sensitivity: L2 sensitivity D of what is released, above 0.
        std: standard deviation s of the noise per coordinate, above 0.
        num_rounds: how often it is released, each time with fresh noise.

    >>> gaussian_rho(2.0, 1.0)
    2.0
    """
    return num_rounds * (sensitivity / std) ** 2 / 2


def pure_rho(epsilon: float, num_rounds: int = 1) -> float:
    """Return a rho that holds for every epsilon-DP mechanism, T epsilon tanh(epsilon / 2).

    The smallest one that holds for all of them (randomised response reaches it): Harrison &
    Manurangsi, "Exact zCDP Characterizations for Fundamental Differentially Private Mechanisms",
    FORC 2026.  Bun & Steinke's epsilon^2 / 2 is larger, hopelessly so for large epsilon.

    Args:
        epsilon: of one release, above 0.
        num_rounds: how often it is released, each time with fresh randomness.
    """
    return num_rounds * epsilon * math.tanh(epsilon / 2)


def zcdp_epsilon(rho: float, delta: float) -> float:
    """Return an epsilon at which every rho-zCDP mechanism is (epsilon, delta)-DP.

    Bun & Steinke, Proposition 1.3: rho + 2 sqrt(rho ln(1 / delta)).  An upper bound, and a loose
    one: for Gaussian noise :func:`~lightning_recon.privacy.gaussian.gaussian_epsilon` is exact.

    Args:
        rho: at least 0.
        delta: in (0, 1).
    """
    return rho + 2 * math.sqrt(rho * math.log(1 / delta))
