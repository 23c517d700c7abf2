"""Matrices of which few rows hold a signal and every entry may hold noise.

In a linear layer behind which each sample reaches one row only, a batch of B samples has a
gradient of B rows; the K - B others are zero.  Clipping scales the B rows, and Gaussian noise falls
on all K N entries, of which the server reads few.  :class:`RowSparse` is that matrix without ever
holding it: the noise of a row is drawn when the row is read, from (seed, row), so that it is the
same at every reading.
"""

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from lightning_recon.randomness import make_generator


class RowSparse(Tensor):
    """A K x N matrix: given rows, zeros elsewhere, and independent noise on every entry.

    It passes for a dense tensor: an operation that it does not know itself turns it into one, once
    and for good, so that any defense is exact on it, at the cost of the memory.

    Args:
        rows: R, int64: the rows that hold something, each at most once, ascending.
        entries: R x N: what they hold.
        num_rows: K.
    """

    rows: Tensor
    entries: Tensor
    noises: tuple[tuple[float, int], ...]
    """The noise on all entries: (standard deviation, seed) of each independent layer."""
    _dense: Tensor | None

    @staticmethod
    def __new__(
        cls: type["RowSparse"], rows: Tensor, entries: Tensor, num_rows: int
    ) -> "RowSparse":
        """Make the shell that has the dense tensor's shape, type and device."""
        make = cast(Callable[..., "RowSparse"], Tensor._make_wrapper_subclass)
        return make(cls, (num_rows, entries.shape[1]), dtype=entries.dtype, device=entries.device)

    def __init__(self, rows: Tensor, entries: Tensor, num_rows: int) -> None:
        self.rows = rows
        self.entries = entries
        self.noises = ()
        self._dense = None

    @classmethod
    def from_gradient(cls, gradient: Tensor) -> "RowSparse":
        """Take over the sparse gradient of an embedding (COO, one sparse dimension)."""
        gradient = gradient.coalesce()
        return cls(gradient.indices()[0], gradient.values(), gradient.shape[0])

    @property
    def is_dense(self) -> bool:
        """Whether some operation needed all entries, and they are held now."""
        return self._dense is not None

    def squared_norm(self) -> float:
        """Return the squared L2 norm of all entries."""
        if self._dense is None and not self.noises:
            parts: Iterable[Tensor] = self.entries
        else:
            parts = (self.read_rows(torch.tensor([row]))[0] for row in range(self.shape[0]))
        norms = [torch.linalg.vector_norm(part).double() for part in parts]
        return float(torch.stack(norms).square().sum()) if norms else 0.0

    def scale_(self, factor: float) -> "RowSparse":
        """Multiply all entries by ``factor``, in place."""
        if self._dense is not None:
            self._dense.mul_(factor)
        else:
            self.entries.mul_(factor)
            self.noises = tuple((abs(factor) * std, seed) for std, seed in self.noises)
        return self

    def add_noise_(self, std: float, generator: torch.Generator) -> "RowSparse":
        """Add N(0, std^2) to every entry, in place; what is drawn depends on ``generator``."""
        seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device).item())
        if self._dense is None:
            self.noises += ((std, seed),)
        else:
            for row in range(self.shape[0]):
                self._add_row_noise(self._dense[row], row, ((std, seed),))
        return self

    def read_rows(self, rows: Tensor) -> Tensor:
        """Return the given rows as a dense tensor of their own, len(rows) x N."""
        if self._dense is not None:
            return self._dense[rows.to(self._dense.device)]
        result = torch.zeros(len(rows), self.shape[1], dtype=self.dtype, device=self.device)
        place = {row: position for position, row in enumerate(self.rows.tolist())}
        for position, row in enumerate(rows.tolist()):
            if row in place:
                result[position] = self.entries[place[row]]
            self._add_row_noise(result[position], row, self.noises)
        return result

    def to_dense(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return all entries; from now on they are held, and this tensor is a view of them."""
        if self._dense is None:
            self._dense = self.read_rows(torch.arange(self.shape[0]))
            self.rows, self.entries, self.noises = self.rows[:0], self.entries[:0], ()
        return self._dense

    def _add_row_noise(
        self, numbers: Tensor, row: int, noises: tuple[tuple[float, int], ...]
    ) -> None:
        # drawn in float32 whatever the type, as GaussianNoise does
        for std, seed in noises:
            generator = make_generator(seed, row, device=self.device)
            noise = torch.randn(numbers.shape, generator=generator, device=self.device)
            numbers.add_(noise, alpha=std)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        """Tell the shape and not the entries."""
        return f"RowSparse({tuple(self.shape)}, {len(self.rows)} rows, noises={self.noises})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        """Do an operation on the dense tensor."""

        def dense(value: Any) -> Any:
            return value.to_dense() if isinstance(value, RowSparse) else value

        return func(*tree_map(dense, args), **tree_map(dense, kwargs or {}))


def read_rows(matrix: Tensor, rows: Tensor) -> Tensor:
    """Return rows of a matrix, dense or :class:`RowSparse`, as a tensor of their own."""
    return matrix.read_rows(rows) if isinstance(matrix, RowSparse) else matrix[rows].clone()


def zeros_for(parameter: Tensor) -> Tensor:
    """Return the zero update of a parameter.

    It is :class:`RowSparse` for a matrix whose rows all share one row's memory (stride 0): such a
    one is never held K times.
    """
    if parameter.dim() == 2 and parameter.stride(0) == 0:
        none = torch.zeros(0, dtype=torch.int64, device=parameter.device)
        return RowSparse(none, parameter.new_zeros(0, parameter.shape[1]), parameter.shape[0])
    return torch.zeros(parameter.shape, dtype=parameter.dtype, device=parameter.device)


def is_finite(tensor: Tensor) -> bool:
    """Whether an update has a finite norm; noise of a finite standard deviation is finite."""
    if isinstance(tensor, RowSparse) and not tensor.is_dense:
        tensor = tensor.entries
    # the norm of numbers that float32 holds overflows long after any real update
    return bool(torch.linalg.vector_norm(tensor).isfinite())
