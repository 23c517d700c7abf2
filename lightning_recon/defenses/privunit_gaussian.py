"""PrivUnitG: PrivUnit2 with a normal vector in place of one on the sphere."""

import functools
import math
from collections.abc import Callable

import torch
from scipy.special import ndtri, ndtri_exp

from lightning_recon.defenses.privunit import Cap, CapRandomizer, best_cap, uniform


@functools.lru_cache(maxsize=64)
def privunitg_cap(epsilon: float) -> Cap:
    """Return the best half-space; it does not depend on the dimension.

    Args:
        epsilon: above 0.
    """

    def log_mean(log_tail: float) -> float:
        edge = float(ndtri_exp(log_tail))
        return -(edge**2) / 2 - 0.5 * math.log(2 * math.pi)

    return best_cap(epsilon, log_mean, -math.inf)


class PrivUnitG(CapRandomizer):
    """Sends a normal vector whose component along the update's direction tends to be large.

    Asi, Feldman & Talwar, "Optimal Algorithms for Mean Estimation under Local Differential
    Privacy", ICML 2022, Algorithm 2, with their optimal parameters.  The estimate is unbiased for
    the clipped update.  Across the update's direction its noise is normal with a standard
    deviation of sigma C on every coordinate, :attr:`sigma` = 1/m whatever the dimension.

    Args:
        epsilon: the privacy budget of one release, above 0.
        clip_norm: the L2 norm C that no update exceeds afterwards, above 0.
    """

    citation = "Asi, Feldman & Talwar, ICML 2022"

    @property
    def sigma(self) -> float:
        """Standard deviation of the noise on a unit vector, per coordinate."""
        return 1 / privunitg_cap(self.epsilon).gain

    def draw(
        self, dimension: int, generator: torch.Generator
    ) -> tuple[float, float, Callable[[float], float]]:
        """Return the component along the direction, the gain, and the rest's factor."""
        cap = privunitg_cap(self.epsilon)
        if uniform(generator) <= cap.probability:
            log_tail = math.log(uniform(generator)) + cap.log_tail
            along = -float(ndtri_exp(log_tail))
        else:
            along = float(ndtri(uniform(generator) * (1 - cap.tail)))
        return along, cap.gain, lambda square: 1.0
