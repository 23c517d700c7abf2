"""Clipping of a whole update to an L2 norm."""

import torch

from lightning_recon.defenses.base import Defense, clipped
from lightning_recon.errors import InputError
from lightning_recon.rowsparse import RowSparse
from lightning_recon.updates import Update

_CHUNK = 2**20  # numbers summed in one go: float32 loses a tenth of a norm over 10^8 of them


class ClipL2(Defense):
    """Scales the whole update down to an L2 norm of at most ``clip_norm``.

    All parameters are clipped together, as in Abadi et al., "Deep Learning with Differential
    Privacy", CCS 2016, but once per update and not per sample.

    Args:
        clip_norm: the bound C, greater than 0.
    """

    def __init__(self, clip_norm: float) -> None:
        super().__init__()
        if not 0 < clip_norm < float("inf"):
            raise InputError(f"ClipL2: clip_norm must be a number above 0, not {clip_norm}")
        self.clip_norm = clip_norm

    def bind(self, norm_bound: float | None) -> float | None:
        """Return the smaller of the two bounds."""
        return self.clip_norm if norm_bound is None else min(norm_bound, self.clip_norm)

    def forward(self, update: Update, *, generator: torch.Generator) -> Update:
        """Return ``update * min(1, clip_norm / norm)``, in place."""
        norms = [
            torch.linalg.vector_norm(chunk).double()
            for tensor in update.values()
            if not isinstance(tensor, RowSparse)
            for chunk in torch.split(tensor.reshape(-1), _CHUNK)
        ]
        squares = [float(torch.stack(norms).square().sum())] if norms else []
        squares += [t.squared_norm() for t in update.values() if isinstance(t, RowSparse)]
        norm = sum(squares) ** 0.5
        if norm > self.clip_norm:
            for tensor in update.values():
                if isinstance(tensor, RowSparse):
                    tensor.scale_(self.clip_norm / norm)
                else:
                    tensor.mul_(self.clip_norm / norm)
        return update

    def stand_in(self, update: Update, observed: Update) -> Update:
        """Return the clipped update: clipping stands inside the attacker's loop."""
        return clipped(update, self.clip_norm)
