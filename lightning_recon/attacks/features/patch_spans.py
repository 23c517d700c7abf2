"""What convolutions saw of a batch, from the spans of their gradients.

The gradient of a convolution's weights is G = D P: a row of P for every place of every sample's
output, the patch that was seen there, and in D what came back.  The rows of G lie in the span of
the patches, whatever activations, pools and labels are: no slope is computed, no kink is met.

- With as many channels as places, and D of full rank, the rows of G span all patches.  Patches
  overlap, and so the maps are the lowest eigenvectors of the quadratic form

      sum over places of |patch - its projection on the span|^2,

  as many as there are samples: each sample's maps are a combination of them.
- Closed ReLUs and lost pools leave D of lower rank.  Then the span is a part of the patches', and
  the maps h are those for which

      |V - its projection on the patches of h|^2

  is least, V an orthonormal basis of the span: D is free, and eliminated (Golub & Pereyra, SIAM
  Journal on Numerical Analysis 10, 1973; steps of Gauss and Newton with Kaufman's approximation of
  the Jacobian, BIT 15, 1975).  They begin at the lowest eigenvector.
- Batch norm in training mode takes the mean off what comes back, so that only differences of
  patches are in the span: all are taken less their mean.

Maps are returned where the span is that of patches up to rounding; what was added to an update
hides them.  That a gradient's span holds what a layer saw is known of linear layers (Dimitrov et
al., "SPEAR", NeurIPS 2024; Petrov et al., "DAGER", NeurIPS 2024), overlapping patches within a span
of blind identification of channels (Moulines et al., IEEE Transactions on Signal Processing 43,
1995); both together for convolutions are ours, to our knowledge.
"""

import math
import warnings
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse.linalg import LinearOperator, lobpcg
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_recon.functional.damped_least_squares import conjugate_gradients
from lightning_recon.functional.stateless import left_as_found, run_stateless
from lightning_recon.updates import Update

_ROUNDING = 1e-6  # of the largest singular value: below, a direction is rounding
_LOWEST, _NEXT = 1e-8, 1e-4  # eigenvalues, where the span is that of all patches
_NEAR = 0.5  # of the next eigenvalue: above, the lowest tells nothing
_HELD = 1e-8  # of the span that patches leave, below which it is theirs
_SHARE = 0.5  # of the places that the rank is at least, where the search for the maps may begin
_EIGEN_STEPS, _EIGEN_TOLERANCE = 400, 1e-10
_STEPS, _TRIES = 40, 8
_PRODUCTS, _TOLERANCE = 300, 1e-4  # of a step
_DAMPING, _LEAST, _FEWER, _MORE = 1e-3, 1e-14, 5.0, 4.0  # damping, of the mean diagonal
_SLOW = (
    0.95  # of what patches lack that is left by a step: there are no such maps, or they are found
)
_MOST = 2**15  # numbers that a sample's maps may have
_ENOUGH = 3  # convolutions that are read, the first that can be


class Convolution(NamedTuple):
    """A convolution, and what it sees of an image."""

    name: str
    """Of the module."""
    shape: tuple[int, int, int]
    """C H W of what it sees."""
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    num_channels: int
    """Of its output, and"""
    num_places: int
    """the places in each."""

    @property
    def weight(self) -> str:
        """Name of its weights."""
        return f"{self.name}.weight"

    def patches(self, maps: Tensor) -> Tensor:
        """Return what it sees at every place of maps, B CHW -> B D N."""
        whole = maps.view(-1, *self.shape)
        return F.unfold(whole, self.kernel, 1, self.padding, self.stride)

    def folded(self, patches: Tensor) -> Tensor:
        """Return the transpose of :meth:`patches`, B D N -> B CHW."""
        maps = F.fold(patches, self.shape[1:], self.kernel, 1, self.padding, self.stride)
        return maps.flatten(1)


class SeenMaps(NamedTuple):
    """What a convolution saw of a batch."""

    name: str
    """Of the module."""
    basis: Tensor
    """B CHW, orthonormal, float64: each sample's maps are a combination of the rows."""


def convolutions(payload: nn.Module, images: Tensor) -> list[Convolution]:
    """Return the convolutions whose patches overlap enough, in the order in which they are run.

    Args:
        payload: in the mode of the client; it is not changed.
        images: N C H W, any, of which two at most are run.
    """
    calls: list[tuple[nn.Module, tuple[int, ...], int]] = []

    def record(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls.append((layer, tuple(inputs[0].shape[1:]), output[0, 0].numel()))

    names = {layer: name for name, layer in payload.named_modules()}
    with left_as_found(payload) as hooks, torch.no_grad():
        layers = [layer for layer in names if isinstance(layer, nn.Conv2d)]
        hooks += [layer.register_forward_hook(record) for layer in layers]
        run_stateless(payload, {}, images[:2])
    found = []
    for layer, (channels, height, width), num_places in calls:
        assert isinstance(layer, nn.Conv2d)
        is_once = sum(layer is other for other, _, _ in calls) == 1
        if is_once and not isinstance(layer.padding, str) and _overlaps(layer):
            sizes = layer.kernel_size, layer.stride, layer.padding
            shape = channels, height, width
            found.append(Convolution(names[layer], shape, *sizes, layer.out_channels, num_places))
    return found


def read_maps(payload: nn.Module, update: Update, images: Tensor, number: int) -> list[SeenMaps]:
    """Return what convolutions saw of a batch, of the first few that tell.

    Args:
        payload: in the mode of the client; it is not changed.
        update: the batch's gradient, or a multiple, by name.
        images: N C H W, any.
        number: of samples.
    """
    norms = [layer for layer in payload.modules() if isinstance(layer, _BatchNorm)]
    is_centred = any(layer.training for layer in norms)
    found: list[SeenMaps] = []
    for convolution in convolutions(payload, images):
        gradient = update[convolution.weight].double().flatten(1)
        basis = _maps_of(convolution, gradient, number, is_centred=is_centred)
        if basis is not None:
            found.append(SeenMaps(convolution.name, basis))
        if len(found) == _ENOUGH:
            break
    return found


def unexplained(maps: Tensor, seen: SeenMaps) -> Tensor:
    """Return the squared share of maps, B C H W, that no combination of those found explains: B."""
    maps = maps.flatten(1)
    explained = (maps @ seen.basis.to(maps).T).square().sum(1)
    return 1 - explained / maps.square().sum(1)


def _overlaps(layer: nn.Conv2d) -> bool:
    """Return whether patches are what the layer sees, and share more than half with the next."""
    is_plain = layer.groups == 1 and layer.dilation == (1, 1) and layer.padding_mode == "zeros"
    pairs = zip(layer.stride, layer.kernel_size, strict=True)
    return is_plain and all(2 * step < size for step, size in pairs)


def _maps_of(
    convolution: Convolution, gradient: Tensor, number: int, *, is_centred: bool
) -> Tensor | None:
    """Return the maps, B CHW, of which a gradient, K D, tells the span; None: it does not."""
    size = math.prod(convolution.shape)
    places = number * convolution.num_places
    rows, width = gradient.shape
    if size > _MOST or size <= 3 * (number + 1) or places >= width or places > rows:
        return None
    lengths, directions = torch.linalg.svd(gradient, full_matrices=False)[1:]
    rank = min(int((lengths > _ROUNDING * lengths[0]).sum()), places - is_centred)
    if rank < _SHARE * places:
        return None
    span = directions[:rank].T

    def outside(maps: Tensor) -> Tensor:
        patches = convolution.patches(maps)
        left = _less_mean(patches, is_centred)
        left = left - span @ (span.T @ left)
        return convolution.folded(_less_mean(left, is_centred))

    values, basis = _lowest(outside, size, number + 1, gradient)
    lowest, following = float(values[number - 1]), float(values[number])
    if lowest < _LOWEST and following > _NEXT:
        return basis[:number]
    if lowest > _NEAR * following or number > 1 or is_centred:
        return None
    return _refined(convolution, basis[:1], span)


def _less_mean(patches: Tensor, is_centred: bool) -> Tensor:
    return patches - patches.mean(2, keepdim=True) if is_centred else patches


def _lowest(outside: object, size: int, number: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the lowest eigenvalues of a form on maps, and their vectors as rows."""

    def apply(columns: np.ndarray) -> np.ndarray:
        maps = torch.from_numpy(np.ascontiguousarray(columns.T)).to(like)
        with torch.no_grad():
            result: np.ndarray = outside(maps).cpu().numpy().T  # type: ignore[operator]
        return result

    start = np.random.default_rng(0).standard_normal((size, number + 1))
    start[:, 0] = np.abs(start[:, 0])  # behind a ReLU all maps are positive
    form = LinearOperator((size, size), matvec=apply, matmat=apply, dtype=np.float64)
    with warnings.catch_warnings():  # of what has not converged, which the eigenvalues tell
        warnings.simplefilter("ignore")
        values, vectors = lobpcg(
            form, start, largest=False, maxiter=_EIGEN_STEPS, tol=_EIGEN_TOLERANCE
        )
    order = np.argsort(values)[:number]
    rows = torch.from_numpy(np.ascontiguousarray(vectors[:, order].T)).to(like)
    return torch.from_numpy(values[order]).clamp_min(np.finfo(np.float64).tiny), rows


class _Point(NamedTuple):
    """Maps whose patches are to hold a span, and what these lack."""

    convolution: Convolution
    maps: Tensor
    """1 CHW, of length 1."""
    left: Tensor
    """D r: what the patches do not hold of the span."""
    base: Tensor
    """D N: an orthonormal basis of the patches."""
    shares: Tensor
    """N r: what the rest is made of."""

    @classmethod
    def at(cls, convolution: Convolution, maps: Tensor, span: Tensor) -> "_Point":
        """Return the point of maps, 1 CHW, and a span's orthonormal columns, D r."""
        maps = maps / maps.norm()
        base, upper = torch.linalg.qr(convolution.patches(maps)[0])
        inside = base.T @ span
        shares = torch.linalg.lstsq(upper, inside).solution
        return cls(convolution, maps, span - base @ inside, base, shares)

    @property
    def misfit(self) -> float:
        """The squared length of what is left."""
        return float(self.left.square().sum())

    def step(self, damping: float) -> Tensor:
        """Return a move of the maps, 1 CHW, that leaves less."""
        flat = self.maps.flatten()
        mean = float(self.shares.square().sum()) / len(self.shares)  # about, of the diagonal
        mean *= math.prod(self.convolution.kernel)

        def product(move: Tensor) -> Tensor:
            changed = self._along(self.convolution.patches(move[None])[0] @ self.shares)
            return changed + mean * (damping * move + (flat @ move) * flat)  # the length is free

        wanted = self._along(self.left)
        move = conjugate_gradients(product, wanted, torch.clone, _PRODUCTS, _TOLERANCE)
        return move[None]

    def _along(self, columns: Tensor) -> Tensor:
        """Return the transpose of how what is left changes, D r -> CHW, with the sign turned."""
        outside = columns - self.base @ (self.base.T @ columns)
        return self.convolution.folded((outside @ self.shares.T)[None]).flatten()


def _refined(convolution: Convolution, maps: Tensor, span: Tensor) -> Tensor | None:
    """Return maps, 1 CHW, of length 1, whose patches hold a span; None: none are found.

    Args:
        convolution: that sees them.
        maps: 1 CHW, near them.
        span: D r, orthonormal columns.
    """
    point, damping = _Point.at(convolution, maps, span), _DAMPING
    for _ in range(_STEPS):
        before = point.misfit
        for _ in range(_TRIES):
            moved = _Point.at(convolution, point.maps + point.step(damping), span)
            if moved.misfit < before:
                point = moved
                break
            damping *= _MORE
        damping = max(damping / _FEWER, _LEAST)
        if point.misfit > _SLOW * before:  # they are found, or there are none near
            break
    return point.maps if point.misfit <= _HELD * span.shape[1] else None
