"""How far the restarts of a second-order attack are, where a checkpoint keeps it."""

import math
from typing import Any, NamedTuple

from torch.optim import Optimizer

FIRST_DAMPING = 0.1
"""Of the mean diagonal of the normal equations."""


class Progress(NamedTuple):
    """How far one restart is."""

    damping: float = FIRST_DAMPING
    stage: int = 0
    steps: int = 0
    """In this stage."""
    is_done: bool = False
    rank: int = -1
    """Of the last Jacobian by all cosines, where the update counts as exact; -1: not known."""
    soft: int = 0
    """Linear models so far, where there are kinks."""
    variance: float = math.inf
    """That the equations are taken to have, while the prior fades; infinite: what they lack."""


class Restarts(Optimizer):
    """Holds every restart's :class:`Progress`, so that a run resumes; the steps are the attack's.

    Args:
        parameters: the dummy images.
        num_restarts: in them.
    """

    def __init__(self, parameters: Any, num_restarts: int) -> None:
        super().__init__(parameters, {"progress": [tuple(Progress())] * num_restarts})

    def step(self, closure: Any = None) -> Any:
        """Do what the closure does."""
        return closure()
