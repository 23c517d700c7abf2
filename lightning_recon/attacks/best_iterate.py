"""What the attacks share that drive L-BFGS without a line search.

It may leap away from a solution that it had nearly reached, so what counts is the best iterate and
not the last one.  It is stored with the objective that was computed AT it, not one step later.
"""

from typing import Any

import torch
from torch import Tensor

from lightning_recon.attacks.gradient_matching import Evidence, GradientMatching
from lightning_recon.structures import Observation, Reconstruction


class BestIterate(GradientMatching):
    """Gradient matching without a box, that returns the best dummies which it ever evaluated.

    The arguments are those of :class:`GradientMatching`.
    """

    _best: tuple[Tensor, Tensor] | None = None
    """Of each restart the least objective, num_restarts, and the dummies, R ..."""

    def project(self, dummy: Tensor) -> None:
        """Leave the dummies where the optimizer puts them."""

    def differentiate(self, dummy: Tensor, evidence: Evidence) -> tuple[dict[str, Tensor], Tensor]:
        """Return the parts of the objective and the gradient; remember the best dummies."""
        parts, gradient = super().differentiate(dummy, evidence)
        total = torch.stack([part.detach() for part in parts.values()]).sum(0)
        dummy = dummy.detach()
        # a restart that was lost holds no finite dummies
        finite = dummy.reshape(len(total), -1).isfinite().all(1) & total.isfinite()
        total = total.where(finite, torch.inf)
        if self._best is None or self._best[1].shape != dummy.shape:
            self._best = total, dummy.clone()
            return parts, gradient
        value, best = (tensor.to(dummy) for tensor in self._best)
        is_better = (total < value).repeat_interleave(len(dummy) // len(total))
        is_better = is_better.view(-1, *[1] * (dummy.ndim - 1))
        self._best = torch.minimum(total, value), dummy.where(is_better, best)
        return parts, gradient

    def finish(self, dummy: Tensor, evidence: Any) -> Reconstruction:
        """Return the best dummies of the best restart."""
        with torch.enable_grad():
            self.differentiate(dummy, evidence)  # the last step's have not been evaluated yet
        assert self._best is not None
        return super().finish(self._best[1], evidence)

    def reconstruct(self, observation: Observation) -> Reconstruction:
        """Run all iterations on one client."""
        self._best = None
        return super().reconstruct(observation)

    def on_train_epoch_start(self) -> None:
        """Begin the next client."""
        self._best = None
        super().on_train_epoch_start()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the best dummies, too."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["best"] = self._best

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See :meth:`on_save_checkpoint`."""
        super().on_load_checkpoint(checkpoint)
        self._best = checkpoint.get("best")
