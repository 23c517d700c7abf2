"""The recipe called "modern" in github.com/JonasGeiping/breaching.

No paper of its own: it puts together what several found.  The cosine distance of Geiping et al.
(NeurIPS 2020); starts tiled from one small random pattern (Wei et al., "A Framework for Evaluating
Client Privacy Leakages in Federated Learning", ESORICS 2020); double-opponent total variation
(Åström & Schnörr, ECCV 2016); the features that the last layer's gradient tells; Adam with warm-up
and a cosine.

Differences: pixels lie in [0, 1] (see :mod:`.inverting_gradients`); its "soft" sign of the
gradient, a hyperbolic tangent, is left out, for the gradients here are so small that it is the
identity; images are boxed by [0, 1].
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from lightning_recon.attacks.gradient_matching import GradientMatching
from lightning_recon.attacks.inverting_gradients import published_adam
from lightning_recon.attacks.schedules import warm_cosine
from lightning_recon.errors import InputError
from lightning_recon.functional.gradient_distance import Distance
from lightning_recon.priors import (
    ActivationPrior,
    DeepFeatures,
    DoubleOpponentTotalVariation,
    Prior,
)
from lightning_recon.targets import Target


class ModernInvertingGradients(GradientMatching):
    """Inverting gradients with patterned starts, double-opponent variation and a feature prior.

    Args:
        priors: penalties on the dummy images, added to the distance; null: the recipe's,
            double-opponent total variation and deep features, each of weight .1.  A target without
            a bias in its last layer needs others.
        pattern_size: side of the pattern that the start repeats, in pixels, at least 1.
        iterations: steps on the dummy images of one client; 24,000 in the recipe.
        optimizer: makes the optimizer of the dummy images; by default Adam of rate .1 in normalised
            pixels.
        lr_scheduler: makes its schedule; null: the recipe's, 50 iterations of warm-up and a cosine.
        **kwargs: the options of :class:`GradientMatching`.

    Raises:
        InputError: if an argument is out of its range.
    """

    citation = (
        'the "modern" attack of github.com/JonasGeiping/breaching, after Geiping et al. (NeurIPS '
        "2020), Wei et al. (ESORICS 2020) and Åström, Schnörr (ECCV 2016)"
    )

    def __init__(
        self,
        target: Target,
        distance: Distance = "cosine",
        priors: Sequence[Prior | ActivationPrior] | None = None,
        pattern_size: int = 4,
        iterations: int = 24000,
        optimizer: OptimizerCallable = published_adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        **kwargs: Any,
    ) -> None:
        if priors is None:
            priors = [DoubleOpponentTotalVariation(0.1), DeepFeatures(0.1)]
        super().__init__(
            target,
            distance=distance,
            priors=priors,
            iterations=iterations,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler or partial(warm_cosine, iterations=iterations),
            **kwargs,
        )
        if pattern_size < 1:
            raise InputError(
                f"ModernInvertingGradients: pattern_size must be at least 1, not {pattern_size}"
            )
        self.pattern_size = pattern_size

    def start(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Return images, each tiled from a pattern that is uniform in [0, 1]."""
        channels, height, width = self.dummy_shape
        size = self.pattern_size
        pattern = torch.rand(num_samples, channels, size, size, generator=generator)
        return pattern.repeat(1, 1, -(-height // size), -(-width // size))[..., :height, :width]
