"""What the last convolution saw of one image, from its own gradient.

The gradient of a convolution's weights is D P: P what it saw, a patch for every place of its
output, D what came back there.  With as many channels as places, or more, and D of full rank, its
rows span all patches, whatever the activations are.  Every patch of the maps lies in that span,
and patches overlap: the maps are the lowest eigenvector of the quadratic form

    sum over places of |patch - its projection on the span|^2,

up to a factor.  No guess is made, and there is no wrong valley.  That a gradient's span holds what
a layer saw is known of linear layers (Dimitrov et al., "SPEAR", NeurIPS 2024; Petrov et al.,
"DAGER", NeurIPS 2024); overlapping patches within a span are how channels are identified blindly
(Moulines et al., IEEE Transactions on Signal Processing 43, 1995).  To use both for a convolution
is ours, to our knowledge.

Weak directions of the span drown in rounding.  From there Gauss-Newton steps solve what lies at
and above the convolution, whose gradients depend on the maps alone.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
from lightning_recon.functional.stateless import left_as_found, run_stateless

_INVERSE = 4  # inverse iterations
_PRODUCTS = 2000  # of each, at most
_TOLERANCE = 1e-6
_SHIFT = 1e-6  # added to the form
_SIZES = torch.logspace(-3, 3, 121, dtype=torch.float64)  # factors that are tried
_STEPS, _TRIES = 20, 8
_FIRST, _LEAST, _FEWER, _MORE = 1e-6, 1e-16, 100.0, 4.0  # damping, of the mean diagonal
_SLOW = 0.5  # of the misfit that is left: what is left is rounding
_RIGHT = 1e-9  # of the equations, squared and relative: the maps are found


class Convolution(NamedTuple):
    """The last convolution that all above it depends on."""

    name: str
    """Of the module."""
    shape: tuple[int, ...]
    """C H W of what it sees."""
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    above: tuple[str, ...]
    """Names of the parameters that the maps alone have a bearing on, the convolution's first."""

    @property
    def weight(self) -> str:
        """Name of its weights."""
        return f"{self.name}.weight"

    @contextmanager
    def seeing(self, payload: nn.Module, maps: Tensor) -> Iterator[None]:
        """Within this context the convolution sees these maps, B C H W, whatever the images."""
        with left_as_found(payload) as hooks:
            layer = payload.get_submodule(self.name)
            hooks.append(layer.register_forward_pre_hook(lambda *_: (maps,)))
            yield

    def seen(self, payload: nn.Module, images: Tensor) -> Tensor:
        """Return what it sees of images, differentiable, B C H W."""
        found: list[Tensor] = []
        with left_as_found(payload) as hooks:
            layer = payload.get_submodule(self.name)
            hooks.append(layer.register_forward_pre_hook(lambda _, given: found.append(given[0])))
            run_stateless(payload, {}, images)
        return found[-1]

    def direction(self, gradient: Tensor) -> Tensor:
        """Return the maps up to a factor, 1 C H W, float64, of length 1.

        Args:
            gradient: of the convolution's weights, K C h w.
        """
        number = min(len(gradient), gradient[0].numel())
        span = torch.linalg.svd(gradient.double().flatten(1), full_matrices=False)[2][:number]

        def outside(numbers: Tensor) -> Tensor:
            patches = F.unfold(
                numbers.view(1, *self.shape), self.kernel, 1, self.padding, self.stride
            )
            left = patches - span.T @ (span @ patches)
            maps = F.fold(left, self.shape[1:], self.kernel, 1, self.padding, self.stride)
            return maps.flatten() + _SHIFT * numbers

        generator = torch.Generator().manual_seed(0)
        size = self.shape[0] * self.shape[1] * self.shape[2]
        found = torch.rand(size, generator=generator, dtype=torch.float64).to(span)
        for _ in range(_INVERSE):
            found = conjugate_gradients(outside, found, torch.clone, _PRODUCTS, _TOLERANCE)
            found = found / found.norm()
        return found.view(1, *self.shape)


class Seen(NamedTuple):
    """What a convolution saw, as far as rounding leaves it."""

    convolution: Convolution
    maps: Tensor
    """1 C H W, float64."""
    axes: Tensor
    """CHW by as many, a direction a column, along which their errors are independent."""
    errors: Tensor
    """CHW: the standard deviation of each."""


def last_convolution(evidence: Evidence, images: Tensor) -> Convolution | None:
    """Return the last convolution of one image's network, if its gradient spans all patches.

    Args:
        evidence: of one gradient, exact.
        images: 1 C H W, of any content but constant, in the precision of the payload.

    Returns:
        None if the convolution has fewer channels than its output has places, or if images have a
        bearing on what is above it by another way.
    """
    payload = evidence.payload
    calls: list[tuple[nn.Module, tuple[int, ...], int]] = []

    def record(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls.append((layer, tuple(inputs[0].shape[1:]), output[0, 0].numel()))

    names = {module: name for name, module in payload.named_modules()}
    with evidence.client.working(payload):
        with left_as_found(payload) as hooks:
            layers = [layer for layer in names if isinstance(layer, nn.Conv2d)]
            hooks += [layer.register_forward_hook(record) for layer in layers]
            run_stateless(payload, {}, images)
        if not calls:
            return None
        layer, shape, num_places = calls[-1]
        is_once = sum(layer is other for other, _, _ in calls) == 1
        if not is_once or not isinstance(layer, nn.Conv2d) or isinstance(layer.padding, str):
            return None
        found = Convolution(names[layer], shape, layer.kernel_size, layer.stride, layer.padding, ())
        if not _spans_patches(layer, num_places):
            return None
        maps = torch.rand(shape, generator=torch.Generator().manual_seed(0))[None].to(images)
        with found.seeing(payload, maps):
            outputs = [run_stateless(payload, {}, one) for one in (images, images.flip(3) ** 2)]
            simulated = evidence.client.simulate(
                payload, images, evidence.labels, gradient=functional
            )
    found = found._replace(above=tuple(name for name, part in simulated.items() if part.any()))
    is_read = found.weight in found.above and bool(evidence.observed[found.weight].any())
    return found if is_read and torch.equal(*outputs) else None


def _spans_patches(layer: nn.Conv2d, num_places: int) -> bool:
    is_plain = layer.groups == 1 and layer.dilation == (1, 1) and layer.padding_mode == "zeros"
    overlap = all(step < size for step, size in zip(layer.stride, layer.kernel_size, strict=True))
    return is_plain and overlap and layer.out_channels >= num_places


def solved_maps(convolution: Convolution, gradient: Tensor, residual: Residual) -> Seen | None:
    """Return the maps of which equations hold; None if they do not.

    Args:
        convolution: that sees them.
        gradient: of its weights, K C h w.
        residual: of maps, relative to the layers' norms.
    """
    maps = _sized(convolution.direction(gradient), residual)
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
    return Seen(convolution, maps, axes, errors)


def _sized(direction: Tensor, residual: Residual) -> Tensor:
    """Return the multiple of a direction of which equations hold best."""
    sizes = math.sqrt(direction.numel()) * torch.cat([_SIZES, -_SIZES]).to(direction)
    misfits = torch.stack([residual(size * direction).square().sum() for size in sizes])
    return sizes[misfits.nan_to_num(torch.inf).argmin()] * direction
