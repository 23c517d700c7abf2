"""Top-k: the largest entries of each tensor."""

import torch

from lightning_recon.defenses.base import Defense, Encoding, Shapes
from lightning_recon.errors import InputError
from lightning_recon.updates import Update


def checked_sparsity(owner: Defense, sparsity: float) -> float:
    """Return the share of entries set to 0 if it is in [0, 1).

    Raises:
        InputError: if it is not.
    """
    if not 0 <= sparsity < 1:
        raise InputError(
            f"{type(owner).__name__}: sparsity must be at least 0 and below 1, not {sparsity}; it "
            "is the share of entries set to 0"
        )
    return float(sparsity)


def num_kept(size: int, sparsity: float) -> int:
    """Return ceil((1 - sparsity) size), the entries of a tensor that are kept: at least one."""
    dropped = int(sparsity * size + 1e-6)  # .29 * 100 falls short of 29 in floating point
    return size - min(dropped, max(size - 1, 0))


class TopK(Defense):
    """Sends the entries of largest magnitude of every tensor, and 0 for the others.

    Aji & Heafield, "Sparse Communication for Distributed Gradient Descent", EMNLP 2017, with k for
    each tensor as by Yue et al. (USENIX Security 2023), and without error feedback, since one
    release has no past.  A contraction: the squared error is at most ``sparsity`` times the squared
    norm, tensor by tensor.

    Args:
        sparsity: the share of entries set to 0, in [0, 1); at least one of a tensor is kept.
    """

    citation = "Aji & Heafield, EMNLP 2017"

    def __init__(self, sparsity: float) -> None:
        super().__init__()
        self.sparsity = checked_sparsity(self, sparsity)

    def bind(self, norm_bound: float | None) -> float | None:
        """Return the same bound: entries only become 0."""
        return norm_bound

    def forward(self, update: Update, *, generator: torch.Generator) -> Update:
        """Return the sparse update, in place."""
        for name, tensor in update.items():
            update[name] = tensor = tensor.contiguous()
            flat = tensor.view(-1)
            kept = flat.abs().topk(num_kept(len(flat), self.sparsity), sorted=False).indices
            values = flat[kept]
            flat.zero_()
            flat[kept] = values
        return update

    def stand_in(self, update: Update, observed: Update) -> Update:
        """Return the update where something was observed, and 0 elsewhere.

        Behind noise no entry is 0 any more, and this is the update itself.
        """
        return {name: tensor * (observed[name] != 0) for name, tensor in update.items()}

    def encode(self, encoding: Encoding, shapes: Shapes) -> Encoding:
        """Return the kept values, and a position within its tensor for each of them."""
        kept = [num_kept(shape.numel(), self.sparsity) for shape in shapes.values()]
        places = zip(kept, shapes.values(), strict=True)
        positions = sum(k * max(shape.numel() - 1, 0).bit_length() for k, shape in places)
        return Encoding(
            min(encoding.num_values, sum(kept)),
            encoding.bits_per_value,
            encoding.overhead + positions,
        )
