"""The schedules of step sizes that the papers give as shares of the iterations."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, MultiStepLR


def step_decay(optimizer: Optimizer, iterations: int) -> LRScheduler:
    """Return a schedule that divides the rate by 10 at 3/8, 5/8 and 7/8 of the iterations.

    Geiping et al., "Inverting Gradients", NeurIPS 2020, appendix.

    Args:
        optimizer: whose rate is changed.
        iterations: of the whole run.
    """
    milestones = [max(1, iterations * eighths // 8) for eighths in (3, 5, 7)]
    return MultiStepLR(optimizer, milestones, gamma=0.1)


def warm_cosine(optimizer: Optimizer, iterations: int, warmup: int = 50) -> LRScheduler:
    """Return a schedule that rises in a line and falls to 0 along half a cosine.

    Yin et al., "See through Gradients", CVPR 2021, section 4.

    Args:
        optimizer: whose rate is changed.
        iterations: of the whole run, the rise included.
        warmup: iterations of the rise, at most half of all.
    """
    return LambdaLR(optimizer, WarmCosine(iterations, min(warmup, iterations // 2)))


class WarmCosine:
    """The factor of :func:`warm_cosine` at an iteration; a class, so that it can be pickled."""

    def __init__(self, iterations: int, warmup: int) -> None:
        self.iterations = iterations
        self.warmup = warmup

    def __call__(self, iteration: int) -> float:
        """Return a factor in (0, 1]."""
        if iteration < self.warmup:
            return (iteration + 1) / (self.warmup + 1)
        done = (iteration - self.warmup) / max(1, self.iterations - self.warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


class Reheated:
    """Cycles of annealing: at an iteration, how far the temperature is, and the rate's factor.

    The first cycle takes two shares of the iterations and each other one, which begins in the midst
    of the fall.

    Args:
        iterations: of the whole run.
        cycles: at least 1.
        reheated: how far the temperature is where a cycle but the first begins, 0 to 1.
        last_rate: factor of the rate at the end of every cycle.
    """

    def __init__(self, iterations: int, cycles: int, reheated: float, last_rate: float) -> None:
        self.unit = iterations // (cycles + 1)
        self.first = iterations - (cycles - 1) * self.unit
        self.iterations, self.reheated, self.last_rate = iterations, reheated, last_rate

    def progress(self, iteration: int) -> float:
        """Return how far the temperature has fallen, 0 to 1."""
        place, length, start = self._place(iteration)
        return start + (1 - start) * min(1.0, place / max(1, length - 1))

    def begins_again(self, iteration: int) -> bool:
        """Return whether a cycle but the first begins here."""
        return self.first <= iteration < self.iterations and self._place(iteration)[0] == 0

    def __call__(self, iteration: int) -> float:
        """Return a factor in (0, 1]."""
        place, length, _ = self._place(iteration)
        return float(self.last_rate ** (place / max(1, length)))

    def _place(self, iteration: int) -> tuple[int, int, float]:
        if iteration < self.first or self.unit == 0:
            return iteration, self.first, 0.0
        since = min(iteration, self.iterations - 1) - self.first
        return since % self.unit, self.unit, self.reheated
