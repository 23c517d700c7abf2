"""PowerSGD: a low-rank matrix in place of each matrix."""

import math

import numpy as np
import torch
from torch import Tensor

from lightning_recon.defenses.base import Defense, Encoding, Shapes, dense, whole
from lightning_recon.updates import Update


def orthonormal(matrix: Tensor) -> Tensor:
    """Return an orthonormal basis of a tall matrix's columns."""
    is_half = matrix.dtype in (torch.float16, torch.bfloat16)  # of which there is no QR on the CPU
    basis: Tensor = torch.linalg.qr(matrix.float() if is_half else matrix).Q
    return basis.to(matrix.dtype)


class PowerSGD(Defense):
    """Replaces every matrix by its projection on few directions, found by one power iteration.

    Vogels, Karimireddy & Jaggi, "PowerSGD: Practical Low-Rank Gradient Compression for Distributed
    Optimization", NeurIPS 2019, Algorithm 1, from a random start and without error feedback, since
    one release has no past: with Q random and P an orthonormal basis of M Q, P P^T M is sent as P
    and M^T P.  A contraction, and biased.  Weights of convolutions are matrices of out x (in height
    width).  A tensor of one dimension, or for which P and M^T P are no smaller, is sent as it is.

    Args:
        rank: columns of P, at least 1.
    """

    citation = "Vogels et al., NeurIPS 2019"

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = whole(self, "rank", rank, at_least=1)

    def bind(self, norm_bound: float | None) -> float | None:
        """Return the same bound: a projection shortens."""
        return norm_bound

    def forward(self, update: Update, *, generator: torch.Generator) -> Update:
        """Return the update with matrices of low rank."""
        for name, tensor in update.items():
            if not self._compresses(tensor.shape):
                continue
            matrix = tensor.contiguous().view(tensor.shape[0], -1)
            start = torch.randn(
                (matrix.shape[1], self.rank), generator=generator, device=generator.device
            )
            basis = orthonormal(matrix @ start.to(matrix.dtype))
            update[name] = (basis @ (basis.T @ matrix)).reshape(tensor.shape)
        return update

    def stand_in(self, update: Update, observed: Update) -> Update:
        """Return the update projected on the columns of what was observed.

        These are the columns of P: what was sent of the client's matrix M is P^T M, all of it.
        A projection on the rows as well would let pass what P^T M is known not to have.
        """
        result = {}
        for name, tensor in update.items():
            if not self._compresses(tensor.shape):
                result[name] = tensor
                continue
            seen = observed[name].reshape(observed[name].shape[0], -1)
            # numpy's numbers: torch's own are refused within vmap
            start = np.random.default_rng(0).standard_normal((seen.shape[1], self.rank))
            columns = orthonormal(seen @ torch.as_tensor(start).to(seen))
            # once more, for what noise behind this defense adds to what was sent
            basis = orthonormal(seen @ (seen.T @ columns))
            matrix = tensor.reshape(tensor.shape[0], -1)
            result[name] = (basis @ (basis.T @ matrix)).reshape(tensor.shape)
        return result

    def encode(self, encoding: Encoding, shapes: Shapes) -> Encoding:
        """Return 32 bits for each number of P and M^T P, spread over all values.

        The product is dense: a quantiser behind this defense has all its entries to send.
        """
        sent = sum(
            self.rank * sum(_matrix(shape)) if self._compresses(shape) else shape.numel()
            for shape in shapes.values()
        )
        everything = dense(shapes)
        return everything._replace(bits_per_value=32.0 * sent / max(everything.num_values, 1))

    def _compresses(self, shape: torch.Size) -> bool:
        if len(shape) < 2:
            return False
        rows, columns = _matrix(shape)
        return self.rank * (rows + columns) < rows * columns


def _matrix(shape: torch.Size) -> tuple[int, int]:
    """Return rows and columns of the matrix that a tensor is taken for."""
    return shape[0], math.prod(shape[1:])
