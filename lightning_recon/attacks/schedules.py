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
