"""Super-resolution of the latent.

After Lim, Son, Kim, Nah & Lee, "Enhanced Deep Residual Networks for Single Image Super-Resolution",
CVPR workshops 2017 (EDSR).  Where we differ: what the network adds is added to the bicubic
interpolation and begins at 0, one pixel shuffle of the full factor ends it, there is no mean to
subtract, and it is much smaller.  ROG uses USRNet there (Zhang, Van Gool & Timofte, CVPR 2020),
whose weights do not fit: it is a network eight times unrolled at full resolution.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_recon.errors import InputError
from lightning_recon.refiners.base import TrainableRefiner, check_scale, decode, encode
from lightning_recon.targets.base import load_weights


class SuperResolution(TrainableRefiner):
    """A residual network on the latent, whose output a pixel shuffle brings to full size.

    The latent is taken from the image by least squares; the noise that an attack leaves on it is
    removed on the way.  Untrained it returns the bicubic interpolation of the latent; trained, the
    mean over the latent's eight orientations (the paper's geometric self-ensemble).

    Args:
        weights: a file with the network's tensors, as ``fit`` writes; null: random, to be trained.
        num_blocks: residual blocks of two 3x3 convolutions, at least 1.
        num_features: channels between them.
        scale: a side of the image over a side of the latent.

    Raises:
        InputError: if a number is out of range, or the weights cannot be used.
    """

    def __init__(
        self,
        weights: str | None = None,
        num_blocks: int = 8,
        num_features: int = 48,
        scale: int = 4,
    ) -> None:
        super().__init__()
        check_scale(scale, "SuperResolution")
        if num_blocks < 1 or num_features < 1:
            raise InputError(
                "SuperResolution: num_blocks and num_features must be at least 1, not "
                f"{num_blocks} and {num_features}"
            )
        self.scale = scale
        self.head = nn.Conv2d(3, num_features, 3, padding=1)
        self.blocks = nn.ModuleList(_Block(num_features) for _ in range(num_blocks))
        self.body = nn.Conv2d(num_features, num_features, 3, padding=1)
        self.tail = nn.Conv2d(num_features, 3 * scale**2, 3, padding=1)
        nn.init.zeros_(self.tail.weight)
        nn.init.zeros_(self.tail.bias)  # type: ignore[arg-type]
        load_weights(self, weights)
        self.eval()

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the refined images; labels have no part in it.

        In training mode the network runs once, not on all eight orientations, and the images are
        not limited to [0, 1], where the gradient would end.
        """
        latents = encode(images, self.scale)
        decoded = decode(latents, self.scale)
        if self.training:
            return decoded + self._detail(latents)
        detail = torch.zeros_like(decoded)
        for turns in range(4):
            turned = torch.rot90(latents, turns, (2, 3))
            for mirrored in (turned, turned.flip(3)):
                found = self._detail(mirrored)
                found = found if mirrored is turned else found.flip(3)
                detail += torch.rot90(found, -turns, (2, 3)) / 8
        return (decoded + detail).clamp(0, 1)

    def _detail(self, latents: Tensor) -> Tensor:
        """What bicubic interpolation of B 3 h w misses, B 3 h*scale w*scale."""
        features = head = self.head(latents - 0.5)
        for block in self.blocks:
            features = block(features)
        return F.pixel_shuffle(self.tail(head + self.body(features)), self.scale)


class _Block(nn.Module):
    """x + convolution(ReLU(convolution(x))); begins close to the identity."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(num_features, num_features, 3, padding=1)
        self.second = nn.Conv2d(num_features, num_features, 3, padding=1)
        for layer, gain in ((self.first, 1.0), (self.second, 0.1)):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            layer.weight.data *= gain
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.second(F.relu(self.first(x)))
        return result
