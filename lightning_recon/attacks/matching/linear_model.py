"""One linear model of an update's equations, and the steps that it serves for.

With z how far images move along their cosines, r the equations' residual and p the offset of the
images from the prior's mean, a step solves

    (J' J + q Q + D) z = -(J' r + q Q p),

J the Jacobian, Q the prior's precision, q the equations' variance, D the damping of Levenberg and
Marquardt.  Far fewer sums of the equations than there are make a factor that is cheap
(:mod:`~lightning_recon.functional.damped_least_squares`).  Where the equations are exact, all of
them hold at once, and steps with that factor come near; what is left is solved in all equations by
conjugate gradients, for which the factor is a preconditioner (Avron, Maymounkov & Toledo,
"Blendenpik", SIAM Journal on Scientific Computing 32, 2010), at the images as they then are.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_recon.attacks.features.spectrum import Spectrum
from lightning_recon.attacks.matching.equations import Equations
from lightning_recon.functional.damped_least_squares import (
    Damped,
    Factors,
    Map,
    Sums,
    backsubstituted,
    conjugate_gradients,
    gram,
    jacobian,
    products,
)
from lightning_recon.randomness import derive_seed

_Solve = Callable[[float], Tensor | None]
"""Takes a damping, and gives a step, B K; None: the damping is too small."""

_SLOW = 0.5  # of the objective that is left: a linear model is too old, or its damping too large
_LEAST_DAMPING = 1e-13
_FEWER, _MORE = 10.0, 4.0  # divides the damping on success, multiplies it on failure
_TRIES = 6  # of a damping
_REUSED = 24  # steps with one Jacobian, at most
_SUMS = 2.0  # for each unknown
_LEAST_SUMS = 512
_SMALL = 1e-8  # misfit above which none of it is rounding
_LEFT = 0.1  # of rounding, where unknowns take up most of it
_PRODUCTS = 1000  # of a step without a factor, at most
_TOLERANCE = 1e-2  # of its equations, relative
_PROBES = 24  # that the diagonal is estimated by
_REFINING = 60  # of a step with one
_REFINED = 4  # such steps, at most


class Found(NamedTuple):
    """What a step has come to."""

    images: Tensor
    """B C H W, float64."""
    residual: Tensor
    """M, of the equations."""
    prior: float
    """Squared length of the images in standard deviations, times the equations' variance."""

    @property
    def misfit(self) -> float:
        """Squared length of the equations' residual."""
        return float(self.residual.square().sum())

    @property
    def objective(self) -> float:
        """The sum of both."""
        return self.misfit + self.prior


class Taken(NamedTuple):
    """Where the steps of one linear model lead."""

    found: Found
    damping: float
    """That the next one begins with."""
    is_slow: bool
    """Whether the last one did not halve the objective."""
    rank: int = -1
    """Of the Jacobian by all cosines, where the update counts as exact; -1: not known."""


class LinearModel:
    """The equations of one client, as a function of the first cosines of its images.

    Args:
        equations: weighed.
        spectrum: of public images, float64.
        number: of cosines of each image that may change, those of the largest variance.
        seed: of the sums.
        variance: that every equation is taken to have; null: what it has.
    """

    def __init__(
        self,
        equations: Equations,
        spectrum: Spectrum,
        number: int,
        seed: int,
        variance: float | None = None,
    ) -> None:
        self.equations = equations
        self.spectrum = spectrum
        self.number = number
        self.seed = seed
        self.variance = equations.variance if variance is None else variance
        self._reference = next(iter(equations.evidence.observed.values()))
        self._precision = self.variance / spectrum.variances[:number]

    def at(self, images: Tensor) -> Found:
        """Return the objective of images, B C H W, float64."""
        residual = self.equations.residual(images)
        offset = self.spectrum.along(images - self.spectrum.mean)
        prior = self.variance * (offset.square() / self.spectrum.variances).sum()
        return Found(images, residual, float(prior))

    def is_rounded(self, found: Found) -> bool:
        """Return whether what is left of exact equations is rounding."""
        if self.equations.is_noisy or found.misfit > _SMALL:
            return False
        return found.misfit <= _LEFT * self.equations.rounding(found.images)

    def explicit(self, before: Found, damping: float) -> Taken:
        """Take a Jacobian of exact equations, and steps as long as it serves.

        Args:
            before: where the images are.
            damping: of the mean diagonal, to begin with.
        """
        images, unknowns = before.images, len(before.images) * self.number
        basis = self.spectrum.moved(torch.eye(self.number).to(images))
        number = max(math.ceil(_SUMS * unknowns), _LEAST_SUMS)
        sums: Map = torch.Tensor.contiguous
        if number < len(before.residual):
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "sums"))
            sums = Sums.draw(len(before.residual), number, generator).__call__
        point = images.to(self._reference)
        rows = jacobian(self.equations.residual, point, basis.to(point), len(before.residual), sums)
        damped = Damped(gram(rows.double()), self._precision.repeat(len(images)))
        factors = Factors(damped)

        def by_rows(found: Found) -> _Solve:
            slope = (rows @ sums(found.residual).to(rows)).double() + self._pull(found)

            def solve(damping: float) -> Tensor | None:
                factor = factors.at(damping)
                return None if factor is None else backsubstituted(factor, -slope)

            return solve

        def by_products(found: Found) -> _Solve:
            return self._by_products(found, factors)

        taken = self._descend(before, damping, by_rows, _REUSED)
        if self.number < self.spectrum.mean.numel():
            return taken
        if not self.is_rounded(taken.found):
            taken = self._descend(taken.found, taken.damping, by_products, _REFINED)
        return taken._replace(rank=damped.rank())

    def matrix_free(self, before: Found, damping: float) -> Taken:
        """Take one step by products with the Jacobian alone, damped in the prior's units.

        Args:
            before: where the images are.
            damping: of the prior's precision, to begin with.
        """
        return self._descend(before, damping, self._by_products, 1)

    def _descend(
        self, found: Found, damping: float, prepare: Callable[[Found], _Solve], number: int
    ) -> Taken:
        """Take so many steps at most, until two in a row are slow, or the rounding is reached."""
        before, num_slow = found, 0
        for _ in range(number):
            solve, nearer = prepare(found), None
            for _ in range(_TRIES if found is before else 1):  # else the model is too old
                step = solve(damping)
                nearer = None if step is None else self._moved(found, step)
                if nearer is not None and nearer.objective < found.objective:
                    break
                nearer = None
                damping *= _MORE
            if nearer is None:
                return Taken(found, damping, True)
            num_slow = num_slow + 1 if nearer.objective > _SLOW * found.objective else 0
            found, damping = nearer, max(damping / _FEWER, _LEAST_DAMPING)
            if num_slow == 2 or self.is_rounded(found):
                break
        return Taken(found, damping, num_slow > 0)

    def _by_products(self, found: Found, factors: Factors | None = None) -> _Solve:
        """Return what solves by conjugate gradients, at some images.

        Args:
            found: where the images are.
            factors: that are a preconditioner; None: the diagonal, about, and the damping is of the
                prior's precision and not of the mean diagonal.
        """
        is_noisy = self.equations.is_noisy
        point = found.images.to(self._reference) if is_noisy else found.images
        forward, backward = products(
            self.equations.residual,
            point,
            lambda numbers: self.spectrum.moved(numbers).to(point),
            lambda moves: self.spectrum.along(moves.double())[:, : self.number],
        )
        slope = backward(found.residual.to(point)) + self._pull(found)
        precision = self._precision.repeat(len(found.images))
        diagonal = None if factors else self._diagonal(found.residual.to(point), backward)

        def solve(damping: float) -> Tensor | None:
            if factors is not None:
                added = precision + damping * factors.damped.scale
                factor = factors.at(damping)
                if factor is None:
                    return None
                precondition: Map = partial(backsubstituted, factor)
            else:
                added = (1 + damping) * precision
                precondition = partial(torch.mul, 1 / (diagonal + added))
            return conjugate_gradients(
                lambda numbers: backward(forward(numbers)).double() + added * numbers,
                -slope,
                precondition,
                _REFINING if factors else min(_PRODUCTS, len(slope)),
                *(() if factors else (_TOLERANCE,)),
            )

        return solve

    def _diagonal(self, equations: Tensor, backward: Map) -> Tensor:
        """Return about the diagonal of J' J, by products with random signs (Hutchinson)."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "probe"))
        squares = []
        for _ in range(_PROBES):
            signs = 2 * torch.randint(2, equations.shape, generator=generator) - 1
            squares.append(backward(signs.to(equations)).double().square())
        return torch.stack(squares).mean(0)

    def _moved(self, found: Found, step: Tensor) -> Found:
        """Return what becomes of images that move along their cosines."""
        images = found.images + self.spectrum.moved(step.view(len(found.images), -1))
        return self.at(images.to(self._reference).double())

    def _pull(self, found: Found) -> Tensor:
        """Return half the prior's slope along each cosine of each image, B K."""
        offset = self.spectrum.along(found.images - self.spectrum.mean)[:, : self.number]
        pull: Tensor = offset * self._precision
        return pull.flatten()
