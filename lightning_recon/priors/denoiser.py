"""A learned denoiser as a prior.

Regularisation by denoising: Romano, Elad & Milanfar, "The little engine that could: regularization
by denoising (RED)", SIAM Journal on Imaging Sciences 10, 2017.  FFDNet: Zhang, Zuo & Zhang,
"FFDNet: toward a fast and flexible solution for CNN-based image denoising", IEEE Transactions on
Image Processing 27, 2018.
"""

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_recon.errors import InputError
from lightning_recon.priors.base import Prior
from lightning_recon.targets.base import load_weights


class FFDNet(nn.Module):
    """A convolutional denoiser that is told the noise's level.

    An image is folded to half its size with four times the channels; a map of the noise level
    stands beside it; what comes out, unfolded, is the noise.

    Args:
        weights: a file with the network's tensors, by the names of its PyTorch version
            (``intermediate_dncnn.itermediate_dncnn.0.weight``) or by this class's own
            (``layers.0.weight``); null: random weights, to be trained.
        num_layers: convolutions, at least 2; 12 for the published colour network.
        num_features: channels between them; 96 for the published colour network.

    Raises:
        InputError: if the weights cannot be used.
    """

    def __init__(
        self, weights: str | None = None, num_layers: int = 12, num_features: int = 96
    ) -> None:
        super().__init__()
        if num_layers < 2 or num_features < 1:
            raise InputError(
                "FFDNet: num_layers must be at least 2 and num_features at least 1, not "
                f"{num_layers} and {num_features}"
            )
        layers: list[nn.Module] = [nn.Conv2d(15, num_features, 3, padding=1, bias=False), nn.ReLU()]
        for _ in range(num_layers - 2):
            convolution = nn.Conv2d(num_features, num_features, 3, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(num_features), nn.ReLU()]
        layers.append(nn.Conv2d(num_features, 12, 3, padding=1, bias=False))
        self.layers = nn.Sequential(*layers)
        if weights is not None:
            load_weights(self, weights, lambda name: re.sub(r"^(\w*dncnn\.)+", "layers.", name))
        self.eval()

    def forward(self, images: Tensor, noise_std: Tensor) -> Tensor:
        """Return the images without noise, B 3 H W; their size need not be even.

        Args:
            images: B 3 H W, about [0, 1].
            noise_std: B, or 1 for all: the standard deviation of the noise.
        """
        height, width = images.shape[2:]
        padded = F.pad(images, (0, width % 2, 0, height % 2), mode="replicate")
        folded = F.pixel_unshuffle(padded, 2)
        level = noise_std.view(-1, 1, 1, 1).expand(len(folded), 3, *folded.shape[2:])
        noise = F.pixel_shuffle(self.layers(torch.cat([level.to(folded), folded], dim=1)), 2)
        return images - noise[..., :height, :width]


class DenoiserPrior(Prior):
    """Half the squared distance to the denoised image, in units of the denoiser's noise level.

    The denoised image counts as a constant: the penalty's gradient is the denoiser's residual, as
    in RED.

    Args:
        denoiser: such as :class:`FFDNet` with its weights.
        noise_std: standard deviation of the noise that the denoiser is asked to remove, above 0;
            images are in [0, 1].
        weight: of the penalty, at least 0.

    Raises:
        InputError: if the noise level is not above 0.
    """

    def __init__(self, denoiser: FFDNet, noise_std: float, weight: float = 1.0) -> None:
        super().__init__(weight)
        if not noise_std > 0:
            raise InputError(f"DenoiserPrior: noise_std must be above 0, not {noise_std}")
        self.denoiser = denoiser.eval().requires_grad_(False)
        self.noise_std = noise_std

    def forward(self, images: Tensor) -> Tensor:
        """Return the weighted penalty, R."""
        self.denoiser.eval()
        with torch.no_grad():
            level = images.new_full((1,), self.noise_std)
            denoised = torch.cat([self.denoiser(image, level) for image in images[:, None]])
        residual = (images - denoised) / self.noise_std
        return self.weight * residual.square().mean((1, 2, 3)) / 2
