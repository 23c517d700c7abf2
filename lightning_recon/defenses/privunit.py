"""PrivUnit2: a random unit vector that tends to lie in a cap around the true direction."""

import functools
import math
from abc import abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from scipy.optimize import minimize_scalar
from scipy.special import betaincinv, betaln, expit
from torch import Tensor

from lightning_recon.defenses.base import LocalRandomizer, chunks, clipped, positive, update_norm
from lightning_recon.errors import InputError
from lightning_recon.updates import Update

_MIN_LOG_TAIL = -640.0  # of a cap: float64 ends a little below, at -708
_MIN_LOG_TAIL_LOW = -200.0  # the same below 60 dimensions, where such a cap is a point anyhow
MAX_EPSILON = 1e6
"""Above it the squares of the cap's logarithms leave float64; from 20 on nothing is protected."""


class Cap(NamedTuple):
    """A cap of the sphere and how often it is hit; chosen for the smallest error."""

    log_tail: float
    """Log of the probability q that a uniform direction lies in the cap, at most 1/2."""
    probability: float
    """Probability that the released vector lies in it."""
    gain: float
    """m, the mean of the released vector's component along the true direction, before scaling."""

    @property
    def tail(self) -> float:
        """The probability q itself; 0 where it is too small for a float."""
        return math.exp(self.log_tail)


def best_cap(epsilon: float, log_mean: Callable[[float], float], min_log_tail: float) -> Cap:
    """Return the cap of the smallest error among those that use the budget to the full.

    A direction from the cap with probability p, from the rest otherwise, is epsilon-LDP exactly if
    p (1 - q) / ((1 - p) q) = e^epsilon, q the cap's measure.  The estimate is the vector over m,
    so that its error falls with m = A (e^eps - 1)/(1 + q (e^eps - 1)), where A is the integral of
    the component along the axis over the cap.

    Args:
        epsilon: above 0.
        log_mean: log A as a function of log q.
        min_log_tail: of the log q that are tried.
    """
    log_excess = epsilon + math.log(-math.expm1(-epsilon))  # of e^eps - 1

    def negative_log_gain(log_tail: float) -> float:
        total = log_tail + log_excess
        return max(0.0, total) + math.log1p(math.exp(-abs(total))) - log_excess - log_mean(log_tail)

    found = minimize_scalar(
        negative_log_gain,
        bounds=(max(-epsilon - 30, min_log_tail), math.log(0.5)),
        method="bounded",
        options={"xatol": 1e-9},
    )
    log_tail = float(found.x)
    logit = epsilon + log_tail - math.log1p(-math.exp(log_tail))
    return Cap(log_tail, float(expit(logit)), math.exp(-float(found.fun)))


class CapRandomizer(LocalRandomizer):
    """What PrivUnit2 and PrivUnitG share: an estimate of a vector in the ball of radius C.

    Both are made for unit vectors.  An update x shorter than C becomes one by one more coordinate,
    sqrt(C^2 - |x|^2), which is left out of the estimate again: unbiased, and a function of the
    release alone, so that the guarantee is untouched.  (Bhowmick et al. release the norm by a
    mechanism of its own, with a share of the budget.)

    Memory: the update is changed in place; the noise is drawn twice, piece by piece, and never
    held.

    Args:
        epsilon: the privacy budget of one release, above 0.
        clip_norm: the L2 norm C that no update exceeds afterwards, above 0.
    """

    def __init__(self, epsilon: float, clip_norm: float) -> None:
        super().__init__(epsilon)
        if epsilon > MAX_EPSILON:
            name = type(self).__name__
            raise InputError(f"{name}: epsilon must be at most {MAX_EPSILON:g}, not {epsilon:g}")
        self.clip_norm = positive(self, "clip_norm", clip_norm)

    @abstractmethod
    def draw(
        self, dimension: int, generator: torch.Generator
    ) -> tuple[float, float, Callable[[float], float]]:
        """Return how one release is put together, for unit vectors of ``dimension`` numbers.

        Returns:
            The component along the true direction, the gain m, and a function that returns the
            factor of the normal vector orthogonal to it from the square of that vector's norm.
        """

    def forward(self, update: Update, *, generator: torch.Generator) -> Update:
        """Return the estimate of the update clipped to ``clip_norm``, in place."""
        if not any(tensor.numel() for tensor in update.values()):
            return update
        norm = update_norm(update)
        to_unit = 1 / max(norm, self.clip_norm)
        extra = math.sqrt(max(0.0, 1 - (norm * to_unit) ** 2))
        dimension = 1 + sum(tensor.numel() for tensor in update.values())
        along, gain, orthogonal_factor = self.draw(dimension, generator)

        extra_noise = torch.randn((), generator=generator, device=generator.device).item()
        state = generator.get_state()
        inner, square = extra * extra_noise, extra_noise**2
        for chunk in chunks(update):
            noise = _normal(chunk, generator)
            inner += to_unit * torch.dot(noise, chunk.double()).item()
            square += noise.square().sum().item()
        across = orthogonal_factor(max(0.0, square - inner**2))

        # along u + across (g - <g, u> u), with the same g
        generator.set_state(state)
        scale = self.clip_norm / gain
        for chunk in chunks(update):
            noise = _normal(chunk, generator).to(chunk.dtype)
            chunk.mul_(scale * to_unit * (along - across * inner)).add_(noise, alpha=scale * across)
        return update

    def stand_in(self, update: Update, observed: Update) -> Update:
        """Return the clipped update, of which the release is the unbiased estimate."""
        return clipped(update, self.clip_norm)


def _normal(chunk: Tensor, generator: torch.Generator) -> Tensor:
    """Return normal numbers for a piece of an update: the same whatever its type."""
    return torch.randn(chunk.shape, generator=generator, device=chunk.device).double()


def uniform(generator: torch.Generator) -> float:
    """Return a number in (0, 1]."""
    number = torch.rand((), generator=generator, device=generator.device, dtype=torch.float64)
    return 1 - number.item()


@functools.lru_cache(maxsize=64)
def privunit_cap(epsilon: float, dimension: int) -> Cap:
    """Return the best cap of the unit sphere in ``dimension`` dimensions.

    The component of a uniform direction along an axis is 2 b - 1 with b from
    Beta((dimension - 1)/2, (dimension - 1)/2).

    Args:
        epsilon: above 0.
        dimension: at least 2.
    """
    half = (dimension - 1) / 2

    def log_mean(log_tail: float) -> float:
        edge = float(betaincinv(half, half, math.exp(log_tail)))  # (1 - gamma) / 2
        constant = math.log(dimension - 1) + float(betaln(0.5, half))
        return half * (math.log(4 * edge) + math.log1p(-edge)) - constant

    return best_cap(epsilon, log_mean, _MIN_LOG_TAIL if dimension >= 60 else _MIN_LOG_TAIL_LOW)


class PrivUnit2(CapRandomizer):
    """Sends a random direction that tends to the update's own; pure LDP for a whole update.

    Bhowmick, Duchi, Freudiger, Kapoor & Rogers, "Protection Against Reconstruction and Its
    Applications in Private Federated Learning", arXiv 1812.00984, Algorithm 1.  The cap and its
    probability are not those of their Theorem 1, which only bounds them, but the exact optimum
    (Asi, Feldman & Talwar, ICML 2022): the estimate of the smallest error that is epsilon-LDP.

    The estimate is unbiased for the clipped update and has the norm C/m before the extra
    coordinate is left out, about sigma sqrt(d) C with the sigma of :class:`PrivUnitG`.

    Args:
        epsilon: the privacy budget of one release, above 0.
        clip_norm: the L2 norm C that no update exceeds afterwards, above 0.
    """

    citation = "Bhowmick et al., arXiv 1812.00984, 2018"

    def draw(
        self, dimension: int, generator: torch.Generator
    ) -> tuple[float, float, Callable[[float], float]]:
        """Return the component along the direction, the gain, and the rest's factor."""
        cap = privunit_cap(self.epsilon, dimension)
        half = (dimension - 1) / 2
        if uniform(generator) <= cap.probability:
            along = 1 - 2 * float(betaincinv(half, half, uniform(generator) * cap.tail))
        else:
            along = 2 * float(betaincinv(half, half, uniform(generator) * (1 - cap.tail))) - 1
        rest = math.sqrt(max(0.0, 1 - along**2))
        return along, cap.gain, lambda square: rest / math.sqrt(square) if square else 0.0
