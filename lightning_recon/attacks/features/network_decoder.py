"""From feature maps to images by a small convolutional network, trained on public images.

What a linear decoder leaves: the errors of features that were read from an obfuscated gradient
depend on the features themselves, and photographs are not Gaussian.  A network that corrects the
linear decoder's pixels knows both, after a minute on a hundred public images.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_recon.attacks.features.linear_decoder import LinearDecoder, resized

_DEPTH = 4  # convolutions
_WIDTH = 64  # their channels
_KERNEL = 3
_BATCH = 4  # images a step
_LEARNING_RATE = 1e-3
_HELD_OUT = 4  # one image in so many decides whether the network is of use
_GAIN = 3.0  # pixels around grey times this are about of variance 1


class NetworkDecoder(nn.Module):
    """A linear decoder and a network that corrects its blocks of pixels.

    Args:
        linear: the decoder that is corrected.
    """

    def __init__(self, linear: LinearDecoder) -> None:
        super().__init__()
        self.linear = linear
        num_pixels, num_maps = linear.weight.shape[:2]
        channels = [num_maps + num_pixels, *[_WIDTH] * (_DEPTH - 1), num_pixels]
        layers: list[nn.Module] = []
        for before, after in pairwise(channels):
            layers += [nn.Conv2d(before, after, _KERNEL, padding=_KERNEL // 2), nn.ReLU()]
        self.network = nn.Sequential(*layers[:-1]).to(linear.weight)
        for parameter in layers[-2].parameters():
            nn.init.zeros_(parameter)  # it begins as the linear decoder

    def forward(self, maps: Tensor) -> Tensor:
        """Return blocks of pixels, B P h w, from feature maps, B C h w."""
        blocks = self.linear.blocks(maps)
        seen = torch.cat([self.linear.standardised(maps), _GAIN * (blocks - 0.5)], 1)
        corrected: Tensor = blocks + self.network(seen)
        return corrected

    def decode(self, maps: Tensor, height: int, width: int) -> Tensor:
        """Return images, B C height width, from feature maps, B C h w."""
        return resized(F.pixel_shuffle(self(maps), self.linear.scale), height, width)


def fit_network_decoder(
    linear: LinearDecoder, maps: Tensor, images: Tensor, steps: int, seed: int
) -> LinearDecoder | NetworkDecoder:
    """Train a network of least squared error on top of a linear decoder.

    The last quarter of the images is left out; the linear decoder is returned if the network does
    not beat it there, as happens with few images.

    Args:
        linear: fitted on the same maps.
        maps: N C h w, as an attacker estimates them.
        images: N 3 H W in [0, 1], the same, N at least 2.
        steps: of Adam, on four images each; the rate rises and falls in one cycle.
        seed: of the network's weights, and of the order of the images.
    """
    num_fitted = len(maps) - max(1, len(maps) // _HELD_OUT)
    side = linear.scale * maps.shape[2], linear.scale * maps.shape[3]
    wanted = F.pixel_unshuffle(resized(images, *side), linear.scale)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        decoder = NetworkDecoder(linear)
        optimizer = torch.optim.Adam(decoder.network.parameters(), lr=_LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=steps)
        for _ in range(steps):
            chosen = torch.randperm(num_fitted)[:_BATCH].to(maps.device)
            loss = F.mse_loss(decoder(maps[chosen]), wanted[chosen])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    decoder.requires_grad_(False)
    unseen, truth = maps[num_fitted:], wanted[num_fitted:]
    is_better = F.mse_loss(decoder(unseen), truth) < F.mse_loss(linear.blocks(unseen), truth)
    return decoder if is_better else linear
