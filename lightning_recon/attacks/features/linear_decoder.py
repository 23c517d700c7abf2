"""From feature maps to images by a linear map, learned on public images."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_NUM_PLACES = 2**16  # that it is fitted on, at most
_RIDGES = tuple(10.0**power for power in range(-6, 3))  # of the mean squared entry
_HELD_OUT = 4  # one image in so many chooses between the ridges


class LinearDecoder(NamedTuple):
    """A convolution of feature maps, each place of which gives a block of pixels."""

    mean: Tensor
    std: Tensor
    weight: Tensor
    bias: Tensor
    scale: int
    """Side of a block, in pixels."""

    def decode(self, maps: Tensor, height: int, width: int) -> Tensor:
        """Return images, B C height width, from feature maps, B C h w."""
        return resized(F.pixel_shuffle(self.blocks(maps), self.scale), height, width)

    def blocks(self, maps: Tensor) -> Tensor:
        """Return blocks of pixels, B P h w, from feature maps, B C h w."""
        padding = self.weight.shape[-1] // 2
        return F.conv2d(self.standardised(maps), self.weight, self.bias, padding=padding)

    def standardised(self, maps: Tensor) -> Tensor:
        """Return the maps, B C h w, with mean 0 and variance 1 in each channel."""
        return (maps - self.mean) / self.std


def fit_linear_decoder(
    maps: Tensor, images: Tensor, kernel_size: int, generator: torch.Generator
) -> LinearDecoder:
    """Return the linear decoder of least squared error; the ridge is chosen on images left out.

    Args:
        maps: N C h w, as an attacker estimates them.
        images: N 3 H W in [0, 1], the same, N at least 2.
        kernel_size: of the convolution, odd; maps of one place have 1.
        generator: on the CPU, of the places that it is fitted on.
    """
    height, width = maps.shape[2:]
    kernel_size = kernel_size if height > 1 else 1
    scale = max(-(-images.shape[2] // height), -(-images.shape[3] // width))
    mean = maps.mean((0, 2, 3), keepdim=True)
    std = maps.std((0, 2, 3), keepdim=True)
    # features that are the same everywhere tell nothing, but for rounding
    std = std + 1e-3 * std.mean() + 1e-5 * mean.abs().mean() + 1e-30
    wanted = F.pixel_unshuffle(resized(images, scale * height, scale * width), scale)
    normal, right, square = [], [], []  # of the images fitted on, and of those left out
    share = min(1.0, _NUM_PLACES / (len(maps) * height * width))
    held_out = max(1, len(maps) // _HELD_OUT)
    for part in (slice(held_out, None), slice(held_out)):
        gram = cross = energy = torch.zeros(())
        for some, target in zip(
            torch.split(maps[part], 4), torch.split(wanted[part], 4), strict=True
        ):
            patches = F.unfold((some - mean) / std, kernel_size, padding=kernel_size // 2)
            rows = F.pad(patches.transpose(1, 2).flatten(0, 1), (0, 1), value=1.0)
            blocks = target.flatten(2).transpose(1, 2).flatten(0, 1)
            chosen = torch.rand(len(rows), generator=generator) < share
            rows, blocks = rows[chosen.to(rows.device)], blocks[chosen.to(rows.device)]
            gram = gram.to(rows) + rows.T @ rows
            cross = cross.to(rows) + rows.T @ blocks
            energy = energy.to(rows) + blocks.square().sum()
        normal.append(gram.double())
        right.append(cross.double())
        square.append(energy.double())
    diagonal = torch.eye(len(normal[0]), dtype=torch.float64, device=maps.device)
    diagonal[-1, -1] = 1e-6  # the mean of the images is not shrunk
    diagonal *= normal[0].diagonal().mean()

    def error(ridge: float) -> float:
        found = torch.linalg.solve(normal[0] + ridge * diagonal, right[0])
        return float(square[1] + (found * (normal[1] @ found - 2 * right[1])).sum())

    ridge = min(_RIDGES, key=error)
    found = torch.linalg.solve(sum(normal) + ridge * diagonal, sum(right)).to(maps)
    weight = found[:-1].T.reshape(-1, maps.shape[1], kernel_size, kernel_size)
    return LinearDecoder(mean, std, weight.contiguous(), found[-1].contiguous(), scale)


def resized(images: Tensor, height: int, width: int) -> Tensor:
    """Return images of another size, B C height width."""
    if images.shape[2:] == (height, width):
        return images
    return F.interpolate(images, (height, width), mode="bilinear", antialias=True)
