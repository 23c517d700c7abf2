"""A denoiser of known noise as a refiner, and refiners put together."""

import torch
from torch import Tensor, nn

from lightning_recon.errors import InputError
from lightning_recon.priors.denoiser import FFDNet
from lightning_recon.refiners.base import Refiner, check_scale, decode, encode


class DenoisingRefiner(Refiner):
    """A denoiser that is told the noise's level, on the latent or the image.

    Args:
        denoiser: with its weights; those of the latents of 128x128 images are learnt by
            ``configs/train_denoiser.yaml`` at an ``image_size`` and ``patch_size`` of 32.
        noise_std: standard deviation of the noise on what is denoised, of images in [0, 1].
        scale: a side of the image over a side of the latent; 1: the image itself.

    Raises:
        InputError: if the noise level is not above 0, or the scale is out of range.
    """

    def __init__(self, denoiser: FFDNet, noise_std: float, scale: int = 4) -> None:
        super().__init__()
        check_scale(scale, "DenoisingRefiner")
        if not noise_std > 0:
            raise InputError(f"DenoisingRefiner: noise_std must be above 0, not {noise_std}")
        self.denoiser = denoiser
        self.noise_std = noise_std
        self.scale = scale
        self.eval()

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the decoded latents without noise; labels have no part in it."""
        latents = encode(images, self.scale)
        return decode(self.denoiser(latents, latents.new_tensor([self.noise_std])), self.scale)


class ChainedRefiner(Refiner):
    """One refiner after the other: with a denoiser and a super-resolution, branch 2 of ROG.

    Args:
        refiners: in their order, at least one.

    Raises:
        InputError: if there are none.
    """

    def __init__(self, refiners: list[Refiner]) -> None:
        super().__init__()
        self.refiners = _at_least_one(refiners, "ChainedRefiner")
        self.eval()

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return what the last one makes of it."""
        for refiner in self.refiners:
            images = refiner(images, labels)
        return images


class AverageRefiner(Refiner):
    """The mean of what several refiners make of the images: of ROG's two branches, for one.

    Args:
        refiners: at least one.

    Raises:
        InputError: if there are none.
    """

    def __init__(self, refiners: list[Refiner]) -> None:
        super().__init__()
        self.refiners = _at_least_one(refiners, "AverageRefiner")
        self.eval()

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the mean."""
        return torch.stack([refiner(images, labels) for refiner in self.refiners]).mean(dim=0)


def _at_least_one(refiners: list[Refiner], owner: str) -> nn.ModuleList:
    if not refiners:
        raise InputError(f"{owner}: refiners must name at least one")
    return nn.ModuleList(refiners)
