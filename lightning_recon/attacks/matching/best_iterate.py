"""What the attacks share that drive L-BFGS without a line search.

It may leap away from a solution that it had nearly reached, so what counts is the best iterate and
not the last one.  It is stored with the objective that was computed AT it, not one step later.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_recon.attacks.gradient_matching import Evidence, GradientMatching
from lightning_recon.observation import Observation, Reconstruction
from lightning_recon.updates import Update


class Best(NamedTuple):
    """The best dummies of one client."""

    observed: Update | None
    """What they were compared with; None: they come from a checkpoint."""
    objective: Tensor
    """num_restarts."""
    dummy: Tensor
    """R ..., the restarts one after the other."""


class BestIterate(GradientMatching):
    """Gradient matching without a box, that returns the best dummies which it ever evaluated.

    The arguments are those of :class:`GradientMatching`.
    """

    is_batchable = False
    """The best dummies are kept of one client."""
    _best: Best | None = None

    def project(self, dummy: Tensor) -> None:
        """Leave the dummies where the optimizer puts them."""

    def differentiate(self, dummy: Tensor, evidence: Evidence) -> tuple[dict[str, Tensor], Tensor]:
        """Return the parts of the objective and the gradient; remember the best dummies."""
        parts, gradient = super().differentiate(dummy, evidence)
        total = torch.stack([part.detach() for part in parts.values()]).sum(0)
        total = total.nan_to_num(torch.inf)
        dummy = dummy.detach()
        best = self._best
        if best is None or not (best.observed is None or best.observed is evidence.observed):
            self._best = Best(evidence.observed, total, dummy.clone())
            return parts, gradient
        value, kept = best.objective.to(total), best.dummy.to(dummy)
        is_better = (total < value).repeat_interleave(len(dummy) // len(total))
        is_better = is_better.view(-1, *[1] * (dummy.ndim - 1))
        self._best = Best(
            evidence.observed, torch.minimum(total, value), dummy.where(is_better, kept)
        )
        return parts, gradient

    def finish(self, dummy: Tensor, evidence: Any) -> Reconstruction:
        """Return the best dummies of the best restart."""
        with torch.enable_grad():
            self.differentiate(dummy, evidence)  # the last step's have not been evaluated yet
        return super().finish(dummy if self._best is None else self._best.dummy, evidence)

    def reconstruct(self, observation: Observation) -> Reconstruction:
        """Run all iterations on one client."""
        # a control may run between two iterations of fit
        kept, self._best = self._best, None
        try:
            return super().reconstruct(observation)
        finally:
            self._best = kept

    def _begin_client(self, *, keep_dummy: bool) -> None:
        if not keep_dummy:
            self._best = None
        super()._begin_client(keep_dummy=keep_dummy)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the best dummies, too."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["best"] = None if self._best is None else tuple(self._best[1:])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See :meth:`on_save_checkpoint`."""
        super().on_load_checkpoint(checkpoint)
        best = checkpoint.get("best")
        self._best = None if best is None else Best(None, *best)
