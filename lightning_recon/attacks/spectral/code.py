"""The best linear code for images through a clipped, noisy channel, and its decoder.

A sender has the energy P for an image of coefficients y_f, independent with power S_f, and the
channel adds white noise of variance n to everything.  Coded with the gains H_f and decoded by
Wiener's filter, the squared error is the sum of S_f n / (p_f + n) with p_f = H_f^2 S_f.  Under
sum p_f = P it is least for

    p_f = max(0, sqrt(n S_f / lambda) - n),

lambda set by the sum: reverse water-filling (Lee & Petersen, "Optimal linear coding for vector
channels", IEEE Trans. Communications 24, 1976).  What lies below the water level is not sent.

The coefficients are those of the orthonormal discrete cosine transform (DCT-II; its even extension
has no jump at the image's border, unlike the periodic one of a Fourier transform) of opponent
colours (grey is luminance alone), the mean of public images subtracted.  All images are sent with
the same energy: for the mean of the errors' logarithms, which is what PSNR averages, that is best
whatever the images are.  The spectrum is that of images scaled to the same coded energy, averaged
over rings of equal frequency; without public images it is a stored power law.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

# luminance, red against blue, green against magenta; rows are orthonormal
OPPONENT = ((1.0, 1.0, 1.0), (1.0, 0.0, -1.0), (1.0, -2.0, 1.0))
# Power law of photographs, by channel: variance a pixel and exponent (in half cycles an image);
# fitted to 320 ImageNet images, none of them those that figures are reported on.
_MODEL_VARIANCE = (0.19, 0.024, 0.0043)
_MODEL_EXPONENT = (2.4, 3.4, 3.2)
_MODEL_MEAN = 0.45
_NUM_RINGS = 40  # beyond the first few frequencies, evenly spaced in the logarithm
_TINY = 1e-12


def dct_matrix(size: int) -> Tensor:
    """Return the orthonormal DCT-II as a matrix, float64, a row a frequency.

    >>> matrix = dct_matrix(5)
    >>> bool(torch.allclose(matrix @ matrix.T, torch.eye(5, dtype=torch.float64)))
    True
    """
    frequency = torch.arange(size, dtype=torch.float64)[:, None]
    place = torch.arange(size, dtype=torch.float64) + 0.5
    matrix: Tensor = torch.cos(math.pi / size * frequency * place) * (2 / size) ** 0.5
    matrix[0] /= 2**0.5
    return matrix


def water_fill(power: Tensor, noise_variance: float, energy: float) -> Tensor:
    """Return the energy that each coefficient is sent with, of ``power``'s shape and type.

    Args:
        power: S_f > 0, any shape.
        noise_variance: n > 0 of the channel, on every coefficient.
        energy: P > 0, the sum of the result.

    >>> water_fill(torch.tensor([4.0, 1.0, 0.01]), noise_variance=1.0, energy=1.0)
    tensor([1., 0., 0.])
    """
    # with the coefficients in descending order the m first ones are active for some m, and then
    # sqrt(n / lambda) = (P + m n) / sum of their sqrt(S)
    root = power.flatten().double().sqrt()
    ordered = root.sort(descending=True).values
    count = torch.arange(1, len(ordered) + 1, dtype=torch.float64, device=power.device)
    level = (energy + count * noise_variance) / ordered.cumsum(0)
    num_active = int((level * ordered > noise_variance).sum())
    sent = (level[max(num_active, 1) - 1] * root - noise_variance).clamp_min(0)
    return sent.view(power.shape).to(power.dtype)


def frequencies(height: int, width: int) -> Tensor:
    """Return the distance of each coefficient from the zero frequency, H W, in half cycles."""
    rows, columns = torch.arange(height).double(), torch.arange(width).double()
    return (rows[:, None].square() + columns.square()).sqrt()


def rings(height: int, width: int) -> Tensor:
    """Return the ring of equal frequency of each coefficient, H W, from 0 on."""
    radius = frequencies(height, width)
    edges = torch.cat(
        [
            torch.arange(5) - 0.5,
            torch.logspace(math.log10(4.5), math.log10(float(radius.max()) + 5), _NUM_RINGS)[1:],
        ]
    ).double()
    return torch.bucketize(radius, edges) - 1


def ring_average(power: Tensor) -> Tensor:
    """Return ``power``, C H W, with the mean of its ring of equal frequency everywhere."""
    ring = rings(*power.shape[1:]).flatten().to(power.device)
    size = int(ring.max()) + 1
    count = torch.zeros(size, device=power.device, dtype=torch.float64)
    count.index_add_(0, ring, torch.ones_like(ring, dtype=torch.float64))
    total = torch.zeros(len(power), size, device=power.device, dtype=torch.float64)
    total.index_add_(1, ring, power.flatten(1).double())
    return (total / count.clamp_min(1))[:, ring].view(power.shape).to(power.dtype)


class ChannelCode(nn.Module, ABC):
    """Images to vectors of norm 1 that the channel scales and adds noise to."""

    log_norm_mean: float
    """Of the logarithm of the norm that the code is divided by, over images, and"""
    log_norm_std: float
    """its standard deviation."""

    @property
    @abstractmethod
    def num_columns(self) -> int:
        """N: how many numbers are sent."""

    @abstractmethod
    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the code of B C H W images, B N, and the logarithms of the norms, B."""


class SpectralCode(ChannelCode):
    """Images to unit vectors and back.  Nothing of it is a parameter.

    Args:
        images: N C H W in [0, 1], C 3 or 1, public; N may be 0.
        image_shape: C, H, W.
        noise_variance: n of the channel, > 0.
        energy: P of the channel, > 0.
    """

    opponent: Tensor
    vertical: Tensor
    horizontal: Tensor
    mean: Tensor
    order: Tensor
    filter: Tensor
    power: Tensor

    def __init__(
        self,
        images: Tensor,
        image_shape: tuple[int, int, int],
        noise_variance: float,
        energy: float,
    ) -> None:
        super().__init__()
        channels, height, width = image_shape
        opponent = torch.tensor(OPPONENT, dtype=torch.float64)[:channels, :channels]
        opponent /= opponent.norm(dim=1, keepdim=True)
        self.register_buffer("opponent", opponent.to(images))
        self.register_buffer("vertical", dct_matrix(height).to(images))
        self.register_buffer("horizontal", dct_matrix(width).to(images))
        self.register_buffer("mean", self._mean_image(images, image_shape).to(images))
        if len(images):
            coefficients = self.transform(images - self.mean)
            power = ring_average(coefficients.square().mean(0)) + _TINY
        else:
            coefficients = images.new_zeros(0, *image_shape)
            power = model_power(*image_shape).to(images)
        norms = images.new_ones(1)
        for _ in range(3 if len(images) else 1):
            # the spectrum of images of equal coded energy, and the code for that spectrum
            gains = (water_fill(power, noise_variance, energy) / power / energy).sqrt()
            if len(images):
                norms = (gains * coefficients).flatten(1).norm(dim=1).clamp_min(_TINY)
                unit = coefficients / norms[:, None, None, None]
                power = ring_average(unit.square().mean(0)) + _TINY**2
        sent = water_fill(power, noise_variance, energy)
        gains = (sent / power / energy).sqrt()
        order = sent.flatten().argsort(descending=True)[: max(int((sent > 0).sum()), 1)]
        self.register_buffer("order", order)
        self.register_buffer("filter", gains.flatten()[order])
        self.register_buffer("power", power)
        self.log_norm_mean = float(norms.log().mean())
        self.log_norm_std = float(norms.log().std()) if len(images) > 1 else 0.5
        self.image_shape = image_shape

    @staticmethod
    def _mean_image(images: Tensor, image_shape: tuple[int, int, int]) -> Tensor:
        """Return the mean of the images, blurred as few images allow, C H W."""
        if not len(images):
            return torch.full(image_shape, _MODEL_MEAN)
        reach = max(image_shape[1:]) // 9
        return nn.functional.avg_pool2d(
            images.mean(0), 2 * reach + 1, stride=1, padding=reach, count_include_pad=False
        )

    @property
    def num_columns(self) -> int:
        """How many coefficients are sent."""
        return len(self.order)

    @property
    def num_telling(self) -> int:
        """How many columns, from the first one on, tell a code best from noise by their energy."""
        energy = (self.filter.square() * self.power.flatten()[self.order]).double().cumsum(0)
        count = torch.arange(1, len(energy) + 1, dtype=torch.float64, device=energy.device)
        return int((energy / count.sqrt()).argmax()) + 1

    def transform(self, images: Tensor) -> Tensor:
        """Return the DCT coefficients of the opponent colours; orthonormal.  B C H W."""
        colours = torch.einsum("oc,bchw->bohw", self.opponent, images)
        return self.vertical @ colours @ self.horizontal.T

    def inverse(self, coefficients: Tensor) -> Tensor:
        """Undo :meth:`transform`, B C H W."""
        colours = self.vertical.T @ coefficients @ self.horizontal
        return torch.einsum("oc,bohw->bchw", self.opponent, colours)

    def filtered(self, images: Tensor) -> Tensor:
        """Return the coefficients that are sent, weighted but not scaled, B N."""
        return self.transform(images - self.mean).flatten(1)[:, self.order] * self.filter

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the code of images, B N, each of norm 1, and the logarithms of the norms, B."""
        filtered = self.filtered(images)
        norm = filtered.norm(dim=1).clamp_min(_TINY)
        return filtered / norm[:, None], norm.log()

    def decode(
        self, received: Tensor, amplitude: Tensor, log_norm: Tensor, noise_variance: float
    ) -> Tensor:
        """Return the images of least expected squared error, B C H W: Wiener's filter.

        Args:
            received: B N, ``amplitude`` times the code, plus noise.
            amplitude: B, signed.
            log_norm: B, as :meth:`encode` gave it.
            noise_variance: of the noise on ``received``.
        """
        gain = amplitude[:, None] * self.filter
        power = self.power.flatten()[self.order]
        unit = gain * power * received / (gain.square() * power + max(noise_variance, _TINY**2))
        coefficients = received.new_zeros(len(received), self.power.numel())
        coefficients[:, self.order] = unit * log_norm.exp()[:, None]
        return self.inverse(coefficients.view(-1, *self.image_shape)) + self.mean

    def correct(
        self,
        images: Tensor,
        received: Tensor,
        amplitude: Tensor,
        log_norm: Tensor,
        noise_variance: float,
    ) -> Tensor:
        """Return images plus the decoded difference of what was received and what they explain.

        The arguments are those of :meth:`decode`; the mean image itself becomes that result.
        """
        scale = amplitude * (-log_norm).exp()
        residual = received - scale[:, None] * self.filtered(images)
        return images + self.decode(residual, amplitude, log_norm, noise_variance) - self.mean


def model_power(channels: int, height: int, width: int) -> Tensor:
    """Return the stored power law of photographs, C H W: power times frequency^-exponent.

    Luminance is the sum of three colours over sqrt(3): grey has a third of its power.
    """
    share = 1.0 if channels == 3 else 1 / 3
    radius = frequencies(height, width).clamp_min(1)
    shapes = [radius**-exponent for exponent in _MODEL_EXPONENT]
    return torch.stack(
        [
            variance * share * height * width * shape / shape.sum()
            for variance, shape in zip(_MODEL_VARIANCE, shapes, strict=True)
        ][:channels]
    )
