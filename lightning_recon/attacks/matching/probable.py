"""One step to the most probable images of a linear model, in standard deviations of the prior.

With z the cosines of the images in standard deviations of public ones, the next images are those
of the z that minimise |r + J dz|^2 + |z + dz|^2, r the equations' residual in units of its errors.
The step is damped until the sum of both falls.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lightning_recon.attacks.features.spectrum import Spectrum
from lightning_recon.attacks.matching.equations import Equations
from lightning_recon.attacks.matching.from_maps import FromMaps
from lightning_recon.functional.damped_least_squares import (
    Damped,
    conjugate_gradients,
    gram,
    jacobian,
    products,
)

_TRIES = 6  # of a damping
_FIRST, _MORE = 0.01, 4.0  # damping after none, of the mean diagonal; what multiplies it
_PRODUCTS = 100  # of a step without a Jacobian, at most


def probable_step(
    images: Tensor,
    equations: Equations | FromMaps,
    spectrum: Spectrum,
    number: int,
    is_explicit: bool,
) -> Tensor | None:
    """Return the images that a step leads to, B C H W; None if none is more probable.

    Args:
        images: B C H W, float64.
        equations: weighed, of variance 1.
        spectrum: of public images, float64.
        number: of cosines of each image that may change, those of the largest variance.
        is_explicit: whether the Jacobian is computed; else products with it alone.
    """
    roots = spectrum.variances[:number].sqrt()
    residual = equations.residual(images)
    before = _objective(images, residual, spectrum)
    offset = spectrum.along(images - spectrum.mean)[:, :number] / roots
    reference = next(iter(equations.evidence.observed.values()))
    point = images.to(reference)
    solve = (_explicit if is_explicit else _by_products)(
        point, residual.to(point), offset.flatten().double(), equations, spectrum, roots
    )
    damping = 0.0
    for _ in range(_TRIES):
        step = solve(damping)
        if step is not None:
            found = images + spectrum.moved(step.view(len(images), -1).to(roots) * roots)
            after = _objective(found, equations.residual(found), spectrum)
            if after < before:
                return found
        damping = max(_FIRST, _MORE * damping)
    return None


def _objective(images: Tensor, residual: Tensor, spectrum: Spectrum) -> float:
    offset = spectrum.along(images - spectrum.mean)
    total = residual.square().sum() + (offset.square() / spectrum.variances).sum()
    return math.inf if not bool(total.isfinite()) else float(total)


def _explicit(
    point: Tensor,
    residual: Tensor,
    offset: Tensor,
    equations: Equations | FromMaps,
    spectrum: Spectrum,
    roots: Tensor,
) -> Callable[[float], Tensor | None]:
    basis = spectrum.moved(roots.diag()).to(point)
    rows = jacobian(equations.residual, point, basis, len(residual))
    damped = Damped(gram(rows).double(), torch.ones_like(offset))
    slope = (rows @ residual).double() + offset

    def solve(damping: float) -> Tensor | None:
        factor = damped.factor(damping)
        return None if factor is None else -torch.cholesky_solve(slope[:, None], factor)[:, 0]

    return solve


def _by_products(
    point: Tensor,
    residual: Tensor,
    offset: Tensor,
    equations: Equations | FromMaps,
    spectrum: Spectrum,
    roots: Tensor,
) -> Callable[[float], Tensor | None]:
    forward, backward = products(
        equations.residual,
        point,
        lambda numbers: spectrum.moved(numbers * roots.to(numbers)).to(point),
        lambda moves: spectrum.along(moves.to(roots))[:, : len(roots)] * roots,
    )
    slope = backward(residual).double() + offset
    scale = 0.0

    def product(numbers: Tensor, damping: float) -> Tensor:
        moved = backward(forward(numbers.to(roots)).to(point)).double()
        return moved + (1 + damping * scale) * numbers

    probe = torch.randn(len(slope), generator=torch.Generator().manual_seed(0)).to(slope)
    scale = float(forward(probe.to(roots)).square().sum() / len(probe))  # of the mean diagonal

    def solve(damping: float) -> Tensor | None:
        return conjugate_gradients(
            lambda numbers: product(numbers, damping), -slope, torch.clone, _PRODUCTS
        )

    return solve
