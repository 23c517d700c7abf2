"""The 9/7 wavelet transform of images, down to a coarse picture whose cosine transform is kept.

Cohen, Daubechies & Feauveau, "Biorthogonal bases of compactly supported wavelets", Communications
on Pure and Applied Mathematics 45, 1992; by lifting, Daubechies & Sweldens, J. Fourier Analysis and
Applications 4, 1998.  It is nearly orthonormal: squared errors of coefficients are about those of
pixels.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_recon.attacks.spectral.code import OPPONENT, dct_matrix

Floats = NDArray[np.float64]

_LIFTING = (-1.586134342059924, -0.052980118572961, 0.882911075530934, 0.443506852043971)
_GAIN = 1.149604398860241
_LEAST = 7  # pixels of the coarse picture's sides
MAX_LEVELS = 5


class Band(NamedTuple):
    """Which coefficients: of all images, C h w each."""

    level: int
    """0 the finest; the coarse picture has one more than the coarsest."""
    kind: int
    """0, 1, 2: of what changes down, across, both ways."""


def num_levels(height: int, width: int) -> int:
    """Return how often images can be halved."""
    levels = 0
    while (
        levels < MAX_LEVELS
        and not (height % 2 or width % 2)
        and min(height, width) > 2 * _LEAST - 1
    ):
        height, width, levels = height // 2, width // 2, levels + 1
    return levels


def forward(images: Floats) -> dict[Band, Floats]:
    """Return the coefficients of B H W C images in opponent colours, coarse ones first, B C h w."""
    rest = np.einsum("oc,bhwc->bohw", _opponent(images.shape[3]), images)
    levels, bands = num_levels(*rest.shape[2:]), []
    for level in range(levels):
        low, high = _split(rest, 2)
        (rest, across), (down, both) = _split(low, 3), _split(high, 3)
        bands += [(Band(level, 2), both), (Band(level, 1), across), (Band(level, 0), down)]
    rows, columns = (dct_matrix(size).numpy() for size in rest.shape[2:])
    bands.append((Band(levels, 0), rows @ rest @ columns.T))
    return dict(reversed(bands))


def inverse(bands: dict[Band, Floats]) -> Floats:
    """Undo :func:`forward`, B H W C."""
    (first, coarse), *_ = bands.items()
    rows, columns = (dct_matrix(size).numpy() for size in coarse.shape[2:])
    rest = rows.T @ coarse @ columns
    for level in range(first.level - 1, -1, -1):
        down, across, both = (bands[Band(level, kind)] for kind in range(3))
        rest = _join(_join(rest, across, 3), _join(down, both, 3), 2)
    images: Floats = np.einsum("oc,bohw->bhwc", _opponent(coarse.shape[1]), rest)
    return images


def _opponent(channels: int) -> Floats:
    matrix = np.array(OPPONENT)[:channels, :channels]
    orthonormal: Floats = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    return orthonormal


def _lift(even: Floats, odd: Floats, steps: tuple[float, ...]) -> None:
    """Add neighbours' multiples to odd and even numbers in turn, along the first axis, in place."""
    for number, step in enumerate(steps):
        if number % 2 == 0:
            odd += step * (even + np.concatenate([even[1:], even[-1:]]))
        else:
            even += step * (odd + np.concatenate([odd[:1], odd[:-1]]))


def _split(images: Floats, axis: int) -> tuple[Floats, Floats]:
    """Return the lower and the upper half of the frequencies along an axis."""
    moved = np.moveaxis(images, axis, 0)
    even, odd = moved[0::2].copy(), moved[1::2].copy()
    _lift(even, odd, _LIFTING)
    return np.moveaxis(even * _GAIN, 0, axis), np.moveaxis(odd / _GAIN, 0, axis)


def _join(low: Floats, high: Floats, axis: int) -> Floats:
    even, odd = np.moveaxis(low, axis, 0) / _GAIN, np.moveaxis(high, axis, 0) * _GAIN
    for number in range(len(_LIFTING) - 1, -1, -1):
        if number % 2:
            even = even - _LIFTING[number] * (odd + np.concatenate([odd[:1], odd[:-1]]))
        else:
            odd = odd - _LIFTING[number] * (even + np.concatenate([even[1:], even[-1:]]))
    images = np.empty((2 * len(even), *even.shape[1:]))
    images[0::2], images[1::2] = even, odd
    return np.moveaxis(images, 0, axis)
