"""Damped least squares for functions of images: Jacobians, their equations made fewer, a step.

Levenberg, Quarterly of Applied Mathematics 2, 1944; Marquardt, SIAM Journal 11, 1963.  The Jacobian
of a gradient by the images is taken a batch of directions at once; what is too large for
that is solved by conjugate gradients on products alone (Nash, SIAM Journal on Numerical Analysis
21, 1984).  Far more equations than unknowns, and exact, are made fewer by random signed sums
(Clarkson & Woodruff, "Low Rank Approximation and Regression in Input Sparsity Time", STOC 2013).
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import vjp, vmap

Residual = Callable[[Tensor], Tensor]
"""Takes B C H W, and gives M equations, 0 where they hold."""

Map = Callable[[Tensor], Tensor]

_AT_ONCE = 2**26  # numbers of a Jacobian that are computed together
_CHUNK, _ON_CPU = 256, 16  # directions that are computed together at most; its cache holds fewer
_BLOCKS = 8  # of a symmetric product
_SHARED = 100.0  # by so much a factor's damping may be too large
_FAINT = 1e-12  # damping, of the mean diagonal, under which dependent directions are told
_DEPENDENT = 1e-10  # of the mean diagonal: a pivot below says that a direction depends on others


class Sums(NamedTuple):
    """Random signed sums, in which a number of equations becomes a smaller one."""

    place: Tensor
    """M, int64: the sum that each equation is added to."""
    sign: Tensor
    """M, of 1 and -1."""
    number: int
    """Of sums."""

    @classmethod
    def draw(cls, num_equations: int, number: int, generator: torch.Generator) -> "Sums":
        """Draw which equation is added to which sum, and with what sign."""
        place = torch.randint(number, (num_equations,), generator=generator)
        sign = 2 * torch.randint(2, (num_equations,), generator=generator) - 1
        return cls(place, sign, number)

    def __call__(self, equations: Tensor) -> Tensor:
        """Return the sums of ... M numbers, ... ``number``."""
        place, sign = self.place.to(equations.device), self.sign.to(equations)
        sums = equations.new_zeros(*equations.shape[:-1], self.number)
        return sums.index_add_(-1, place, equations * sign)


def directions(basis: Tensor, shape: torch.Size, at_once: int) -> Iterator[Tensor]:
    """Yield the directions in which a batch may move, some at a time: n B C H W.

    Args:
        basis: K C H W, directions of one image; those of the first image come first.
        shape: B C H W of the batch.
        at_once: directions that are yielded together at most.
    """
    for image in range(shape[0]):
        for some in torch.split(basis, at_once):
            moved = some.new_zeros(len(some), *shape)
            moved[:, image] = some
            yield moved


def jacobian(
    residual: Residual,
    images: Tensor,
    basis: Tensor,
    num_equations: int,
    change: Map | None = None,
) -> Tensor:
    """Return how the equations change along every direction: B K x M, or what ``change`` makes.

    Args:
        residual: of images.
        images: B C H W, of the precision in which it is computed.
        basis: K C H W, directions of one image, in the same precision.
        num_equations: M.
        change: applied to the rows of some directions at a time, n M, where they are computed.
    """
    forward, _ = _transposed(residual, images)
    chunk = _ON_CPU if images.device.type == "cpu" else _CHUNK
    at_once = max(1, min(chunk, _AT_ONCE // max(1, num_equations)))
    rows = vmap(forward, randomness="same")
    parts = (rows(some) for some in directions(basis, images.shape, at_once))
    return torch.cat([part if change is None else change(part) for part in parts])


class Damped(NamedTuple):
    """The normal equations of all directions, which give a step for any damping."""

    hessian: Tensor
    """N N, float64: J J', rows of J by direction."""
    diagonal: Tensor
    """N: what a prior adds to the diagonal, at least 0."""

    @property
    def scale(self) -> float:
        """The mean of the diagonal, in whose units the damping is."""
        return float(self.hessian.diagonal().mean())

    def factor(self, damping: float) -> Tensor | None:
        """Return Cholesky's factor of the damped equations; None: they are not definite."""
        whole = self.hessian + (self.diagonal + damping * self.scale).diag()
        factor, failed = torch.linalg.cholesky_ex(whole)
        return None if int(failed) or not bool(factor.isfinite().all()) else factor

    def rank(self) -> int:
        """Return how many directions do not depend on those before them, by Cholesky's pivots."""
        if self.scale == 0:
            return 0
        size = len(self.hessian)
        whole = self.hessian / self.scale + _FAINT * torch.eye(size).to(self.hessian)
        factor, failed = torch.linalg.cholesky_ex(whole)
        if int(failed):
            return int((torch.linalg.eigvalsh(whole) > _DEPENDENT).sum())
        return int((factor.diagonal().square() > _DEPENDENT).sum())


class Factors:
    """Cholesky's factors of damped equations; one serves for smaller dampings as well."""

    def __init__(self, damped: Damped) -> None:
        self.damped = damped
        self._damping = math.nan
        self._factor: Tensor | None = None

    def at(self, damping: float) -> Tensor | None:
        """Return a factor at about this damping; None: the equations are not definite."""
        if not self._damping / _SHARED <= damping <= self._damping:
            self._damping, self._factor = damping, self.damped.factor(damping)
        return self._factor


def backsubstituted(factor: Tensor, wanted: Tensor) -> Tensor:
    """Return the x of which a matrix makes ``wanted``, N, by its Cholesky factor."""
    half = torch.linalg.solve_triangular(factor, wanted[:, None], upper=False)  # copies nothing
    found: Tensor = torch.linalg.solve_triangular(factor.mT, half, upper=True)[:, 0]
    return found


def gram(rows: Tensor) -> Tensor:
    """Return ``rows @ rows.T``, of which one half is computed; N M."""
    size = max(1, math.ceil(len(rows) / _BLOCKS))
    found = rows.new_empty(len(rows), len(rows))
    for first in range(0, len(rows), size):
        some = rows[first : first + size] @ rows[: first + size].T
        found[first : first + size, : first + size] = some
        found[: first + size, first : first + size] = some.T
    return found


def conjugate_gradients(
    product: Map,
    wanted: Tensor,
    precondition: Map,
    num_iterations: int,
    tolerance: float = 1e-3,
) -> Tensor:
    """Return about the x of ``product(x) = wanted``, for a symmetric positive product.

    Args:
        product: of a matrix and a vector of N numbers.
        wanted: N.
        precondition: about the inverse of ``product``, symmetric and positive as well.
        num_iterations: at most.
        tolerance: of the residual in the preconditioner's norm, relative.
    """
    found, left = torch.zeros_like(wanted), wanted.clone()
    smooth = precondition(left)
    step, energy = smooth.clone(), float(left @ smooth)
    first = energy
    for _ in range(num_iterations):
        if energy <= tolerance**2 * first or energy == 0:
            break
        moved = product(step)
        length = energy / float(step @ moved)
        found += length * step
        left -= length * moved
        smooth = precondition(left)
        before, energy = energy, float(left @ smooth)
        step = smooth + energy / before * step
    return found


def products(residual: Residual, images: Tensor, moved: Map, along: Map) -> tuple[Map, Map]:
    """Return the products of the Jacobian with B K numbers, and of its transpose with M.

    Args:
        residual: of images.
        images: B C H W.
        moved: makes a move, B C H W, of how far it goes along K directions of each image, B K.
        along: its transpose.
    """
    forth, back = _transposed(residual, images)

    def forward(numbers: Tensor) -> Tensor:
        return forth(moved(numbers.view(len(images), -1)))

    def backward(equations: Tensor) -> Tensor:
        return along(back(equations)).flatten()

    return forward, backward


def _transposed(residual: Residual, images: Tensor) -> tuple[Map, Map]:
    """Return the products of the Jacobian with a direction, B C H W, and of its transpose with M.

    J' u is linear in u, and the transpose of that is J: what ``jvp`` would compute anew for every
    direction is kept, which takes a third to a tenth of the time for networks of convolutions.
    """
    equations, back, *_ = vjp(residual, images)
    forth = vjp(lambda numbers: back(numbers)[0], torch.zeros_like(equations))[1]
    return lambda direction: forth(direction)[0], lambda numbers: back(numbers)[0]
