"""Random-k: a random few entries of each tensor."""

import torch

from lightning_recon.defenses.base import Defense, Encoding, Shapes
from lightning_recon.defenses.coordinate_sampling import sample_coordinates
from lightning_recon.defenses.top_k import checked_sparsity, num_kept
from lightning_recon.updates import Update

_SEED_BITS = 64.0


class RandomK(Defense):
    """Sends entries of every tensor that are chosen at random, and 0 for the others.

    Konecny, McMahan, Yu, Richtarik, Suresh & Bacon, "Federated Learning: Strategies for Improving
    Communication Efficiency", arXiv 1610.05492, the random mask of Section 2; the unbiased form is
    analysed by Wangni, Wang, Liu & Zhang, "Gradient Sparsification for Communication-Efficient
    Distributed Optimization", NeurIPS 2018.  The server draws the positions from the same seed, so
    that they cost no bits.

    Args:
        sparsity: the share of entries set to 0, in [0, 1); at least one of a tensor is kept.
        unbiased: multiply what is kept by d/k, so that the mean over masks is the update; its
            squared error is then (d/k - 1) times the squared norm, without it (1 - k/d) times.
    """

    citation = "Konecny et al., arXiv 1610.05492, 2016"

    def __init__(self, sparsity: float, unbiased: bool = True) -> None:
        super().__init__()
        self.sparsity = checked_sparsity(self, sparsity)
        self.unbiased = unbiased

    def bind(self, norm_bound: float | None) -> float | None:
        """Return the bound times the largest factor that a tensor is multiplied by."""
        if norm_bound is None or not self.unbiased:
            return norm_bound
        return norm_bound / (1 - self.sparsity)

    def forward(self, update: Update, *, generator: torch.Generator) -> Update:
        """Return the sparse update, in place."""
        for name, tensor in update.items():
            if tensor.numel() == 0:
                continue
            update[name] = tensor = tensor.contiguous()
            flat = tensor.view(-1)
            count = num_kept(len(flat), self.sparsity)
            kept = sample_coordinates(len(flat), count, generator)
            values = flat[kept] * self._factor(len(flat))
            flat.zero_()
            flat[kept] = values
        return update

    def stand_in(self, update: Update, observed: Update) -> Update:
        """Return the update where something was observed, times its factor, and 0 elsewhere."""
        return {
            name: tensor * (observed[name] != 0) * self._factor(tensor.numel())
            for name, tensor in update.items()
        }

    def encode(self, encoding: Encoding, shapes: Shapes) -> Encoding:
        """Return the kept values, and one seed."""
        kept = sum(num_kept(shape.numel(), self.sparsity) for shape in shapes.values())
        num_values = min(encoding.num_values, kept)
        return Encoding(num_values, encoding.bits_per_value, encoding.overhead + _SEED_BITS)

    def _factor(self, size: int) -> float:
        return size / num_kept(size, self.sparsity) if self.unbiased and size else 1.0
