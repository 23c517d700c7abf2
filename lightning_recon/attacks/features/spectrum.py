"""Images as white noise through the mean spectrum of photographs.

The cosine transform takes neighbouring pixels apart into nearly independent numbers (Ahmed,
Natarajan & Rao, IEEE Transactions on Computers C-23, 1974), whose variances fall with the
frequency.  With these, and the covariance of the channels, learned from public images, images are
Gaussian: a latent of independent numbers of variance 1 stands for each, its squared length is minus
twice the logarithm of the density, and an optimiser that steps equally far along all latents finds
coarse structure first.
"""

import math

import torch
from torch import Tensor

_ROUNDING = 1 / 12 / 255**2  # variance of pixels that 8 bits cannot tell, twice for safety
_RELIABLE = 8  # images that count as much as what all frequencies of one length have in common


class Spectrum:
    """The Gaussian of images whose cosine coefficients are independent.

    Args:
        images: N C H W in [0, 1], to learn from, at least 1.

    Attributes:
        mean: C H W.
        roots: H W C C, lower triangular: of the channels' covariance at each frequency.
        variances: CHW, of images along each direction of :meth:`moved`, the largest first.
    """

    def __init__(self, images: Tensor) -> None:
        number, channels, height, width = images.shape
        self._down, self._right = _cosines(height).to(images), _cosines(width).to(images)
        colour = images.mean((0, 2, 3), keepdim=True)[0]
        share = number / (number + _RELIABLE)
        self.mean = share * images.mean(0) + (1 - share) * colour
        found = self._transformed(images - self.mean)
        covariance = torch.einsum("ncuv,nduv->uvcd", found, found) / number
        covariance = share * covariance + (1 - share) * _of_lengths(covariance)
        covariance += 2 * _ROUNDING * torch.eye(channels).to(images)
        self.roots = torch.linalg.cholesky(covariance.double()).to(images)
        lengths, self._axes = torch.linalg.eigh(covariance)  # H W C, H W C C
        lengths = lengths.permute(2, 0, 1).flatten()
        self._order = lengths.argsort(descending=True)
        self.variances = lengths[self._order]

    def decode(self, latents: Tensor) -> Tensor:
        """Return the images of latents, B C H W, not clamped."""
        coloured = torch.einsum("uvcd,nduv->ncuv", self.roots, latents)
        images: Tensor = self.mean + self._down.T @ coloured @ self._right
        return images

    def encode(self, images: Tensor) -> Tensor:
        """Return the latents of images, B C H W."""
        found = self._transformed(images - self.mean).permute(2, 3, 1, 0)
        latents: Tensor = torch.linalg.solve_triangular(self.roots, found, upper=False)
        return latents.permute(3, 2, 0, 1)

    def moved(self, along: Tensor) -> Tensor:
        """Return moves along the directions of largest variance, which are orthonormal: B C H W.

        Args:
            along: B K, how far along each of the first K.
        """
        whole = along.new_zeros(len(along), self.mean.numel())
        whole[:, self._order[: along.shape[1]]] = along
        coloured = torch.einsum(
            "uvcd,nduv->ncuv", self._axes.to(along), whole.view(-1, *self.mean.shape)
        )
        moves: Tensor = self._down.T.to(along) @ coloured @ self._right.to(along)
        return moves

    def along(self, moves: Tensor) -> Tensor:
        """Return how far moves go along every direction, B CHW; the inverse of :meth:`moved`."""
        found = self._transformed(moves)
        along = torch.einsum("uvcd,ncuv->nduv", self._axes, found)
        return along.flatten(1)[:, self._order]

    def _transformed(self, images: Tensor) -> Tensor:
        found: Tensor = self._down @ images @ self._right.T
        return found


def _cosines(size: int) -> Tensor:
    """Return the orthonormal cosine transform, frequencies by places."""
    frequency = torch.arange(size, dtype=torch.float64)
    waves = torch.cos(math.pi / size * frequency[:, None] * (frequency + 0.5))
    waves[0] /= math.sqrt(2)
    return waves * math.sqrt(2 / size)


def _of_lengths(covariance: Tensor) -> Tensor:
    """Return the mean covariance of all frequencies of about the same length, H W C C."""
    height, width = covariance.shape[:2]
    down = torch.arange(height)[:, None] / height
    right = torch.arange(width) / width
    length = (max(height, width) * (down.square() + right.square()).sqrt()).round().long()
    length = length.to(covariance.device).flatten()
    sums = covariance.new_zeros(int(length.max()) + 1, *covariance.shape[2:])
    sums = sums.index_add(0, length, covariance.flatten(0, 1))
    counts = length.bincount().clamp_min(1)[:, None, None]
    return (sums / counts)[length].view_as(covariance)
