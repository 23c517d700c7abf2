"""Inverting gradients from coarse to fine.

Coarse images first: their few numbers cannot settle into the high-frequency patterns that also have
a similar gradient, and what they show is the start of the next stage.  Resolution pyramids are
widely used where images are optimised through a network; for gradients see the multi-scale attack
of github.com/JonasGeiping/breaching after Ghiasi et al., "Plug-In Inversion", ICML 2022.

Differences: a coarse image is upsampled to full size before it passes the network, so that any
target can be attacked; stages halve the side and share the iterations equally, under one schedule;
the augmentations of Ghiasi et al., which are for inverting labels, are left out.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_recon.attacks.inverting_gradients import InvertingGradients
from lightning_recon.errors import InputError
from lightning_recon.targets import Target


class MultiScale(InvertingGradients):
    """Inverting gradients, on images that double their side from stage to stage.

    Args:
        target: see :class:`InvertingGradients`.
        num_scales: stages, at least 1; the first works on images 2^(num_scales - 1) times smaller.
        **kwargs: see :class:`InvertingGradients`.

    Raises:
        InputError: if an argument is out of its range, or images cannot be made so small.
    """

    citation = (
        'the "multiscale" attack of github.com/JonasGeiping/breaching, after Ghiasi, Kazemi, '
        "Reich, Zhu, Goldblum, Goldstein: Plug-In Inversion. ICML 2022, arXiv 2201.12961; and "
        "Geiping et al. (NeurIPS 2020)"
    )

    def __init__(self, target: Target, num_scales: int = 3, **kwargs: Any) -> None:
        super().__init__(target, **kwargs)
        if num_scales < 1:
            raise InputError(f"MultiScale: num_scales must be at least 1, not {num_scales}")
        self.num_scales = num_scales
        self.reduction = 1
        """How many times smaller the images are now."""

    @property
    def dummy_shape(self) -> tuple[int, ...]:
        """C, H, W of the images."""
        channels, height, width = self.data.image_shape
        most = 2 ** (self.num_scales - 1)
        if height % most or width % most:
            raise InputError(
                f"MultiScale: images of {height}x{width} cannot be made {most} times smaller; "
                "lower num_scales, or change the data's image_size"
            )
        return channels, height, width

    def start(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Return noise of the first stage's resolution, upsampled."""
        return _coarse(super().start(num_samples, generator), 2 ** (self.num_scales - 1))

    def reduction_at(self, iteration: int) -> int:
        """Return how many times smaller the images of an iteration are."""
        stage = min(iteration * self.num_scales // self.iterations, self.num_scales - 1)
        return int(2 ** (self.num_scales - 1 - stage))

    def encode(self, images: Tensor) -> Tensor:
        """Return the images without what is finer than the first stage."""
        return _coarse(images, 2 ** (self.num_scales - 1))

    def decode(self, dummy: Tensor) -> Tensor:
        """Return the images without what is finer than this stage."""
        return _coarse(dummy, self.reduction)

    def iterate(
        self, dummy: nn.Parameter, evidence: Any, optimizer: Any, scheduler: Any
    ) -> dict[str, Tensor]:
        """Do one iteration at the resolution of its stage."""
        # the scheduler counts the iterations, and goes on where a checkpoint left
        before = self.reduction_at(max(0, scheduler.last_epoch - 1))
        self.reduction = self.reduction_at(scheduler.last_epoch)
        if before != self.reduction:
            with torch.no_grad():
                dummy.copy_(_coarse(dummy, before))
        try:
            return super().iterate(dummy, evidence, optimizer, scheduler)
        finally:
            self.reduction = 1


def _coarse(images: Tensor, reduction: int) -> Tensor:
    """Return the images after down- and upsampling: block means, and lines between them."""
    if reduction == 1:
        return images
    small = F.avg_pool2d(images, reduction)
    return F.interpolate(small, scale_factor=reduction, mode="bilinear")
