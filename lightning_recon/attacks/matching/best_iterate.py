"""The best dummies that were ever evaluated, for optimizers that may leap away from them.

L-BFGS without a line search may leave a solution that it had nearly reached, so what counts is the
best iterate and not the last one.  It is stored with the objective that was computed AT it, not one
step later.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_recon.updates import Update


class Best(NamedTuple):
    """The best dummies of one client."""

    observed: Update | None
    """What they were compared with; None: they come from a checkpoint."""
    objective: Tensor
    """One number a restart."""
    dummy: Tensor
    """The restarts one after the other."""


class BestIterate:
    """Remembers for every restart the dummies of least objective, of one client at a time."""

    def __init__(self) -> None:
        self.best: Best | None = None

    def see(self, dummy: Tensor, objective: Tensor, observed: Update) -> None:
        """Compare dummies with the best ones so far.

        Args:
            dummy: the restarts one after the other, detached.
            objective: one number a restart, computed at these dummies.
            observed: the update that they were compared with; another one begins anew.
        """
        total, best = objective.nan_to_num(torch.inf), self.best
        if best is None or not (best.observed is None or best.observed is observed):
            self.best = Best(observed, total, dummy.clone())
            return
        value, kept = best.objective.to(total), best.dummy.to(dummy)
        is_better = (total < value).repeat_interleave(len(dummy) // len(total))
        is_better = is_better.view(-1, *[1] * (dummy.ndim - 1))
        self.best = Best(observed, torch.minimum(total, value), dummy.where(is_better, kept))

    def forget(self) -> None:
        """Begin anew."""
        self.best = None

    def save(self) -> Any:
        """Return what a checkpoint keeps."""
        return None if self.best is None else tuple(self.best[1:])

    def load(self, kept: Any) -> None:
        """Take back what :meth:`save` returned."""
        self.best = None if kept is None else Best(None, *kept)
