"""What the last convolution saw of one image, by its gradient's span and the equations above it.

With as many channels as places, or more, the gradient of a convolution's weights tells what it saw,
up to a factor (:mod:`~lightning_recon.attacks.features.patch_spans`): the lowest eigenvector of a
quadratic form, which no search for an image has to find.  Activations without kinks leave weak
directions of the span, which drown in rounding.  From there Gauss-Newton steps solve what lies at
and above the convolution, whose gradients depend on the maps alone.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_recon.attacks.features.patch_spans import Convolution, convolutions
from lightning_recon.attacks.matching.evidence import Evidence
from lightning_recon.clients.base import functional
from lightning_recon.functional.damped_least_squares import (
    Damped,
    Residual,
    backsubstituted,
    conjugate_gradients,
    gram,
    jacobian,
)
from lightning_recon.functional.stateless import left_as_found, run_stateless, watched

_INVERSE = 4  # inverse iterations
_PRODUCTS = 2000  # of each, at most
_TOLERANCE = 1e-6
_SHIFT = 1e-6  # added to the form
_SIZES = torch.logspace(-3, 3, 121, dtype=torch.float64)  # factors that are tried
_STEPS, _TRIES = 20, 8
_FIRST, _LEAST, _FEWER, _MORE = 1e-6, 1e-16, 100.0, 4.0  # damping, of the mean diagonal
_SLOW = 0.5  # of the misfit that is left: what is left is rounding
_RIGHT = 1e-9  # of the equations, squared and relative: the maps are found


class Cut(NamedTuple):
    """A convolution that all above it depends on, and nothing else."""

    convolution: Convolution
    above: tuple[str, ...]
    """Names of the parameters that the maps alone have a bearing on, the convolution's first."""

    @contextmanager
    def seeing(self, payload: nn.Module, maps: Tensor) -> Iterator[None]:
        """Within this context the convolution sees these maps, B C H W, whatever the images."""
        with left_as_found(payload) as hooks:
            layer = payload.get_submodule(self.convolution.name)
            hooks.append(layer.register_forward_pre_hook(lambda *_: (maps,)))
            yield

    def seen(self, payload: nn.Module, images: Tensor) -> Tensor:
        """Return what it sees of images, differentiable, B C H W."""
        layer = payload.get_submodule(self.convolution.name)
        with watched([layer]) as seen:
            run_stateless(payload, {}, images)
        return seen[layer]

    def direction(self, gradient: Tensor) -> Tensor:
        """Return the maps up to a factor, 1 C H W, float64, of length 1.

        Args:
            gradient: of the convolution's weights, K C h w.
        """
        number = min(len(gradient), gradient[0].numel())
        span = torch.linalg.svd(gradient.double().flatten(1), full_matrices=False)[2][:number]

        def outside(numbers: Tensor) -> Tensor:
            patches = self.convolution.patches(numbers[None])
            left = patches - span.T @ (span @ patches)
            return self.convolution.folded(left).flatten() + _SHIFT * numbers

        generator = torch.Generator().manual_seed(0)
        shape = self.convolution.shape
        found = torch.rand(math.prod(shape), generator=generator, dtype=torch.float64).to(span)
        for _ in range(_INVERSE):
            found = conjugate_gradients(outside, found, torch.clone, _PRODUCTS, _TOLERANCE)
            found = found / found.norm()
        return found.view(1, *shape)


class Seen(NamedTuple):
    """What a convolution saw, as far as rounding leaves it."""

    cut: Cut
    maps: Tensor
    """1 C H W, float64."""
    axes: Tensor
    """CHW by as many, a direction a column, along which their errors are independent."""
    errors: Tensor
    """CHW: the standard deviation of each."""


def last_cut(evidence: Evidence, images: Tensor) -> Cut | None:
    """Return the last convolution of one image's network, if its gradient spans all patches.

    Args:
        evidence: of one gradient, exact.
        images: 1 C H W, of any content but constant, in the precision of the payload.

    Returns:
        None if the convolution has fewer channels than its output has places, or if images have a
        bearing on what is above it by another way.
    """
    payload = evidence.payload
    with evidence.client.working(payload):
        found = convolutions(payload, images)
        if not found or found[-1].num_channels < found[-1].num_places:
            return None
        cut = Cut(found[-1], ())
        drawn = torch.rand(cut.convolution.shape, generator=torch.Generator().manual_seed(0))
        with cut.seeing(payload, drawn[None].to(images)):
            outputs = [run_stateless(payload, {}, one) for one in (images, images.flip(3) ** 2)]
            simulated = evidence.client.simulate(
                payload, images, evidence.labels, gradient=functional
            )
    cut = cut._replace(above=tuple(name for name, part in simulated.items() if part.any()))
    weight = cut.convolution.weight
    is_read = weight in cut.above and bool(evidence.observed[weight].any())
    return cut if is_read and torch.equal(*outputs) else None


def solved_maps(cut: Cut, gradient: Tensor, residual: Residual) -> Seen | None:
    """Return the maps of which equations hold; None if they do not.

    Args:
        cut: whose convolution sees them.
        gradient: of its weights, K C h w.
        residual: of maps, relative to the layers' norms.
    """
    maps = _sized(cut.direction(gradient), residual)
    left, damping = residual(maps), _FIRST
    basis = torch.eye(maps.numel()).to(maps).view(-1, *maps.shape[1:])
    for _ in range(_STEPS):
        rows = jacobian(residual, maps, basis, len(left))
        damped, slope = Damped(gram(rows), maps.new_zeros(maps.numel())), rows @ left
        before = float(left.square().sum())
        for _ in range(_TRIES):
            factor = damped.factor(damping)
            if factor is not None:
                nearer = maps - backsubstituted(factor, slope).view_as(maps)
                after = residual(nearer)
                if after.square().sum() < before:
                    maps, left = nearer, after
                    break
            damping *= _MORE
        damping = max(damping / _FEWER, _LEAST)
        if float(left.square().sum()) > _SLOW * before:
            break
    misfit = float(left.square().sum())
    if misfit > _RIGHT:
        return None
    lengths, axes = torch.linalg.eigh(damped.hessian)
    variance = misfit / max(1, len(left) - maps.numel())
    errors = (variance / lengths.clamp_min(torch.finfo(lengths.dtype).tiny)).sqrt()
    return Seen(cut, maps, axes, errors)


def _sized(direction: Tensor, residual: Residual) -> Tensor:
    """Return the multiple of a direction of which equations hold best."""
    sizes = math.sqrt(direction.numel()) * torch.cat([_SIZES, -_SIZES]).to(direction)
    misfits = torch.stack([residual(size * direction).square().sum() for size in sizes])
    return sizes[misfits.nan_to_num(torch.inf).argmin()] * direction
