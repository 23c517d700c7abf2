"""Inverting Gradients.

Geiping, Bauermeister, Dröge & Moeller, "Inverting Gradients - How easy is it to break privacy in
federated learning?", NeurIPS 2020, eq. 4: one minus the cosine between the updates, plus total
variation, minimised by Adam on the sign of the gradient, images boxed after every step.

Differences: the paper works on pixels normalised by the data set's mean and standard deviation
(about .2 to .25), here they lie in [0, 1]: its rate of .1 is NORMALISED_STD times as large here,
and the start has that standard deviation around grey.  Total variation of weight .01 is that of
[0, 1], as if it were NORMALISED_STD times as large on normalised pixels: on the first CIFAR-10
images it is better than the paper's own strength.  Restarts are chosen by the whole objective.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from lightning_recon.attacks.gradient_matching import GradientMatching
from lightning_recon.attacks.schedules import step_decay
from lightning_recon.functional.gradient_distance import Distance
from lightning_recon.priors import ActivationPrior, AnisotropicTotalVariation, Prior
from lightning_recon.targets import Target

NORMALISED_STD = 0.25


def published_adam(parameters: Any) -> torch.optim.Adam:
    """Return Adam of the paper's rate, .1 in normalised pixels."""
    return torch.optim.Adam(parameters, lr=0.1 * NORMALISED_STD, fused=True)


def grey_noise(num: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return Gaussian noise around grey as the paper starts from, num C H W, in [0, 1]."""
    return (0.5 + NORMALISED_STD * torch.randn(num, *shape, generator=generator)).clamp(0, 1)


class InvertingGradients(GradientMatching):
    """Matches the direction of the update, under total variation, by signed Adam.

    Args:
        distance: between the simulated update and the observed one; ``cosine`` in the paper.
        priors: penalties on the dummy images, added to the distance; null: the paper's total
            variation of weight .01.
        signed: whether Adam sees only the sign of the gradient, which the paper does.
        iterations: steps on the dummy images of one client; 4,800 in the paper.
        optimizer: makes the optimizer of the dummy images; by default Adam of the paper's rate.
        lr_scheduler: makes its schedule; null: the paper's, a tenth at 3/8, 5/8 and 7/8 of the
            iterations.
        **kwargs: the options of :class:`GradientMatching`.

    Raises:
        InputError: if an argument is out of its range.
    """

    citation = (
        "Geiping, Bauermeister, Dröge, Moeller: Inverting Gradients - How easy is it to break "
        "privacy in federated learning? NeurIPS 2020, arXiv 2003.14053"
    )

    def __init__(
        self,
        target: Target,
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
        self.signed = signed

    def start(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Return Gaussian noise around grey, num_samples C H W, cut off at 0 and 1."""
        return grey_noise(num_samples, self.dummy_shape, generator)

    def adjust(self, gradient: Tensor) -> None:
        """Leave the sign of the gradient."""
        if self.signed:
            gradient.sign_()
