"""Inverting gradients from coarse to fine.

Coarse images first: their few numbers cannot settle into the high-frequency patterns that also have
a similar gradient, and what they show is the start of the next stage.  Resolution pyramids are
widely used where images are optimised through a network; for gradients see the multi-scale attack
of github.com/JonasGeiping/breaching after Ghiasi et al., "Plug-In Inversion", ICML 2022.

Differences: a coarse image is upsampled to full size before it passes the network, so that any
target can be attacked; stages halve the side and share the iterations equally, under one schedule;
the augmentations of Ghiasi et al., which are for inverting labels, are left out.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_recon.attacks.gradient_matching import GradientMatching
from lightning_recon.attacks.inverting_gradients import grey_noise, published_adam
from lightning_recon.attacks.schedules import step_decay
from lightning_recon.errors import InputError
from lightning_recon.functional.gradient_distance import Distance
from lightning_recon.priors import ActivationPrior, AnisotropicTotalVariation, Prior
from lightning_recon.targets import Target


class MultiScale(GradientMatching):
    """Inverting gradients, on images that double their side from stage to stage.

    Args:
        num_scales: stages, at least 1; the first works on images 2^(num_scales - 1) times smaller.
        priors: penalties on the images; null: total variation of weight .01.
        signed: whether Adam sees only the sign of the gradient.
        iterations: steps on the dummy images of one client, all stages together.
        optimizer: makes the optimizer of the dummy images; by default Adam of the rate of Inverting
            Gradients.
        lr_scheduler: makes its schedule; null: a tenth at 3/8, 5/8 and 7/8 of the iterations.
        **kwargs: the options of :class:`GradientMatching`.

    Raises:
        InputError: if an argument is out of its range, or images cannot be made so small.
    """

    citation = (
        'the "multiscale" attack of github.com/JonasGeiping/breaching, after Ghiasi, Kazemi, '
        "Reich, Zhu, Goldblum, Goldstein: Plug-In Inversion. ICML 2022, arXiv 2201.12961; and "
        "Geiping et al. (NeurIPS 2020)"
    )

    def __init__(
        self,
        target: Target,
        num_scales: int = 3,
        distance: Distance = "cosine",
        priors: Sequence[Prior | ActivationPrior] | None = None,
        signed: bool = True,
        iterations: int = 4800,
        optimizer: OptimizerCallable = published_adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            target,
            distance=distance,
            priors=[AnisotropicTotalVariation(0.01)] if priors is None else priors,
            iterations=iterations,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler or partial(step_decay, iterations=iterations),
            **kwargs,
        )
        if num_scales < 1:
            raise InputError(f"MultiScale: num_scales must be at least 1, not {num_scales}")
        self.signed = signed
        self.num_scales = num_scales
        self.reduction = 1
        """How many times smaller the images are now."""

    @property
    def dummy_shape(self) -> tuple[int, ...]:
        """C, H, W of the images."""
        channels, height, width = self.spec.image_shape
        most = 2 ** (self.num_scales - 1)
        if height % most or width % most:
            raise InputError(
                f"MultiScale: images of {height}x{width} cannot be made {most} times smaller; "
                "lower num_scales, or take images of another size"
            )
        return channels, height, width

    def start(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Return noise of the first stage's resolution, upsampled."""
        noise = grey_noise(num_samples, self.dummy_shape, generator)
        return _coarse(noise, 2 ** (self.num_scales - 1))

    def adjust(self, gradient: Tensor) -> None:
        """Leave the sign of the gradient."""
        if self.signed:
            gradient.sign_()

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
