"""From latent vectors to images, by a decoder that public images teach."""

import torch
from torch import Tensor

from lightning_recon.attacks.base import check_counts
from lightning_recon.attacks.features.linear_decoder import LinearDecoder, fit_linear_decoder
from lightning_recon.attacks.features.network_decoder import NetworkDecoder, fit_network_decoder
from lightning_recon.errors import InputError


def check_decoder(owner: str, kernel_size: int, decoder_steps: int) -> None:
    """Make sure that a decoder can be fitted.

    Args:
        owner: the class that asks, for the error.
        kernel_size: as for :class:`LatentDecoder`.
        decoder_steps: likewise.

    Raises:
        InputError: one is out of its range.
    """
    check_counts(owner, kernel_size=(kernel_size, 1), decoder_steps=(decoder_steps, 0))
    if kernel_size % 2 == 0:
        raise InputError(f"{owner}: kernel_size must be odd, not {kernel_size}")


class LatentDecoder:
    """A linear decoder of feature maps and, if it helps, a small network that corrects it.

    Args:
        map_shape: C, h, w of the maps that the vectors are.
        latent: N F, of public images.
        images: N C H W in [0, 1], the same.
        kernel_size: of the linear decoder's convolution; odd.
        steps: of the network's training; 0: the linear decoder alone.
        seed: of both.
    """

    def __init__(
        self,
        map_shape: tuple[int, int, int],
        latent: Tensor,
        images: Tensor,
        kernel_size: int,
        steps: int,
        seed: int,
    ) -> None:
        self.map_shape = map_shape
        self.image_shape = images.shape[1:]
        maps = latent.view(-1, *map_shape)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(seed)
            linear = fit_linear_decoder(maps, images, kernel_size, generator)
        self.decoder: LinearDecoder | NetworkDecoder = linear
        if steps:
            self.decoder = fit_network_decoder(linear, maps, images, steps, seed)

    def __call__(self, latent: Tensor) -> Tensor:
        """Return images, R C H W in [0, 1], of latent vectors, R F."""
        if not len(latent):
            return latent.new_zeros(0, *self.image_shape)
        with torch.no_grad():
            maps = latent.view(-1, *self.map_shape)
            return self.decoder.decode(maps, *self.image_shape[1:]).clamp(0, 1)
