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
from lightning_recon.files import expanded
from lightning_recon.priors.base import Prior
from lightning_recon.targets.base import load_weights

_PUBLISHED = 12, 96, True
"""Convolutions, channels between them, batch normalisation: of the published colour network."""


class FFDNet(nn.Module):
    """A convolutional denoiser that is told the noise's level.

    An image is folded to half its size with four times the channels; a map of the noise level
    stands beside it; what comes out, unfolded, is the noise.

    Args:
        weights: a file with the network's tensors, by the names of its PyTorch version
            (``intermediate_dncnn.itermediate_dncnn.0.weight``) or by this class's own
            (``layers.0.weight``); null: random weights to be trained, with which the network
            changes an image next to nothing (He's, and the last layer's close to 0).
        num_layers: convolutions, at least 2; null: as many as ``weights`` holds, without them the
            12 of the published colour network.
        num_features: channels between them; null: likewise, and 96.
        batch_norm: whether all layers but the first and last are normalised; null: likewise, and
            true.  A short training goes better without.

    Raises:
        InputError: if the weights cannot be used.
    """

    def __init__(
        self,
        weights: str | None = None,
        num_layers: int | None = None,
        num_features: int | None = None,
        batch_norm: bool | None = None,
    ) -> None:
        super().__init__()
        found = _PUBLISHED if weights is None else _size_in(weights)
        num_layers = found[0] if num_layers is None else num_layers
        num_features = found[1] if num_features is None else num_features
        batch_norm = found[2] if batch_norm is None else batch_norm
        if num_layers < 2 or num_features < 1:
            raise InputError(
                "FFDNet: num_layers must be at least 2 and num_features at least 1, not "
                f"{num_layers} and {num_features}"
            )
        first = nn.Conv2d(15, num_features, 3, padding=1, bias=False)
        layers: list[nn.Module] = [first, nn.ReLU()]
        for _ in range(num_layers - 2):
            convolution = nn.Conv2d(num_features, num_features, 3, padding=1, bias=False)
            norm = nn.BatchNorm2d(num_features) if batch_norm else nn.Identity()
            layers += [convolution, norm, nn.ReLU()]
        last = nn.Conv2d(num_features, 12, 3, padding=1, bias=False)
        layers.append(last)
        self.layers = nn.Sequential(*layers)
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        # with torch's own start, training stays at the identity for hundreds of steps; filters
        # that do not answer to the brightness learn faster still
        nn.init.normal_(last.weight, std=1e-3)
        with torch.no_grad():
            first.weight[:, 3:] -= first.weight[:, 3:].mean((1, 2, 3), keepdim=True)
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


def _size_in(weights: str) -> tuple[int, int, bool]:
    """What :data:`_PUBLISHED` says, of the network whose tensors a file holds.

    The published ones where it cannot be told; loading the file then says what is wrong with it.
    """
    try:
        state = torch.load(expanded(weights), weights_only=True, map_location="meta")
        tensors = state.get("state_dict", state).values()
        kernels = [tensor.shape for tensor in tensors if tensor.ndim == 4]
        return len(kernels), kernels[0][0], any(tensor.ndim == 1 for tensor in tensors)
    except Exception:  # torch raises many types for a broken file
        return _PUBLISHED


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
