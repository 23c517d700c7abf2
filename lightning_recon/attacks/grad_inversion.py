"""GradInversion, also known as See through Gradients.

Yin, Mallya, Vahdat, Alvarez, Kautz & Molchanov, "See through Gradients: Image Batch Recovery via
GradInversion", CVPR 2021: gradient distance plus image fidelity (total variation, length, batch
norm's statistics; eqs. 8-10) plus group consistency between restarts, which are REGISTERED to each
other before their mean is taken (eqs. 11-13); Adam with noise on every step (eq. 14); labels by the
smallest entries of the last layer's gradient (eq. 5).

Differences.  The distance is relative to the observed update's own length, so that the weights of
the other parts need not follow the size of the network; fidelity is a mean over pixels in [0, 1].
The paper registers by RANSAC-flow to the mean image of all restarts, a trained network; here whole
pixels, to the restart of least objective, since the mean of displaced copies is a picture of none
of them.  Step sizes: see :mod:`.inverting_gradients`.  Samples of one label may be swapped
between restarts, which the paper excludes (no repeated labels) and which is not undone here.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_recon.attacks.gradient_matching import Evidence, GradientMatching
from lightning_recon.attacks.inverting_gradients import grey_noise, published_adam
from lightning_recon.attacks.schedules import warm_cosine
from lightning_recon.errors import InputError
from lightning_recon.functional.gradient_distance import Distance
from lightning_recon.functional.labels.inference import LabelMethod
from lightning_recon.functional.registration import estimate_shift, shift_images
from lightning_recon.observation import Observation
from lightning_recon.priors import (
    ActivationPrior,
    BatchNormStatistics,
    Prior,
    SquaredNorm,
    TotalVariation,
)
from lightning_recon.randomness import make_generator
from lightning_recon.targets import Target


class GradInversion(GradientMatching):
    """Matches the update under image fidelity and the consistency of a group of restarts.

    Args:
        known: what is granted to the attacker, of ``num_samples``, ``client`` and ``buffers``; the
            paper does not grant the labels.
        priors: penalties on the dummy images, added to the distance; null: the paper's, total
            variation of weight 1e-4, length 1e-6, and batch norm's statistics .1.
        label_inference: how the labels are found; ``yin`` in the paper: no label twice.
        num_restarts: independent starts, which are the group; 8 in the paper.
        group_weight: of the mean squared distance of each restart to the group's registered mean,
            at least 0; .01 in the paper.
        max_shift: of the registration, in pixels; null: an eighth of the image's shorter side.
        step_noise: standard deviation of the noise on every step over the step's rate, at least 0;
            .2 in the paper.
        iterations: steps on the dummy images of one client; 20,000 in the paper.
        optimizer: makes the optimizer of the dummy images; by default Adam of rate .1 in normalised
            pixels, the paper's.
        lr_scheduler: makes its schedule; null: the paper's, 50 iterations of warm-up and a cosine.
        **kwargs: the options of :class:`GradientMatching`.

    Raises:
        InputError: if an argument is out of its range.
    """

    citation = (
        "Yin, Mallya, Vahdat, Alvarez, Kautz, Molchanov: See through Gradients: Image Batch "
        "Recovery via GradInversion. CVPR 2021, arXiv 2104.07586"
    )
    is_batchable = False
    """The group's mean, and the noise, are one client's."""

    def __init__(
        self,
        target: Target,
        known: Sequence[str] = ("num_samples", "client"),
        distance: Distance = "relative",
        priors: Sequence[Prior | ActivationPrior] | None = None,
        label_inference: LabelMethod = "yin",
        num_restarts: int = 8,
        group_weight: float = 0.01,
        max_shift: int | None = None,
        step_noise: float = 0.2,
        iterations: int = 20000,
        optimizer: OptimizerCallable = published_adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        **kwargs: Any,
    ) -> None:
        if priors is None:
            priors = [TotalVariation(1e-4), SquaredNorm(1e-6), BatchNormStatistics(0.1)]
        super().__init__(
            target,
            known=known,
            distance=distance,
            priors=priors,
            label_inference=label_inference,
            num_restarts=num_restarts,
            iterations=iterations,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler or partial(warm_cosine, iterations=iterations),
            **kwargs,
        )
        for name, value in {"group_weight": group_weight, "step_noise": step_noise}.items():
            if not value >= 0:
                raise InputError(f"GradInversion: {name} must be at least 0, not {value}")
        if max_shift is not None and max_shift < 0:
            raise InputError(f"GradInversion: max_shift must be at least 0, not {max_shift}")
        self.group_weight = group_weight
        self.max_shift = max_shift
        self.step_noise = step_noise
        self._noise_seed = 0

    def initialize(self, observation: Observation) -> tuple[Tensor, Evidence]:
        """Read the observation."""
        self._noise_seed = observation.seed
        return super().initialize(observation)

    def start(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Return Gaussian noise around grey, num_samples C H W, cut off at 0 and 1."""
        return grey_noise(num_samples, self.dummy_shape, generator)

    def differentiate(self, dummy: Tensor, evidence: Evidence) -> tuple[dict[str, Tensor], Tensor]:
        """Return the parts of the objective and the gradient, group consistency included.

        The group's mean is held fixed within a step, so the gradient is known in closed form.
        """
        parts, gradient = super().differentiate(dummy, evidence)
        if self.num_restarts == 1 or self.group_weight == 0:
            return parts, gradient
        total = torch.stack([part.detach() for part in parts.values()]).sum(0)
        with torch.no_grad():
            images = self.decode(dummy.detach())
            mean = group_mean(images, total, self.max_shift)
            away = images - mean.repeat(self.num_restarts, 1, 1, 1)
            per_restart = away.view(self.num_restarts, -1)
            penalty = self.group_weight * per_restart.square().mean(1)
            gradient = gradient + 2 * self.group_weight / per_restart.shape[1] * away
        return {**parts, "group_consistency": penalty}, gradient

    def iterate(
        self, dummy: nn.Parameter, evidence: Any, optimizer: Any, scheduler: Any
    ) -> dict[str, Tensor]:
        """Do one iteration, and add noise of the step's size."""
        rate, number = scheduler.get_last_lr()[0], scheduler.last_epoch
        parts = super().iterate(dummy, evidence, optimizer, scheduler)
        if self.step_noise:
            generator = make_generator(self._noise_seed, number, "noise", device=dummy.device)
            noise = torch.randn(
                dummy.shape, generator=generator, dtype=dummy.dtype, device=dummy.device
            )
            with torch.no_grad():
                dummy.add_(noise, alpha=rate * self.step_noise)
                self.project(dummy)
        return parts


def group_mean(images: Tensor, objective: Tensor, max_shift: int | None = None) -> Tensor:
    """Return the mean of the restarts' images, each moved onto the best restart's first.

    Args:
        images: R B C H W as one batch of R B, the restarts one after the other.
        objective: R, by which the best is found; restarts where it is not finite do not count.
        max_shift: the largest move, in pixels; null: an eighth of the shorter side.

    Returns:
        B C H W.
    """
    if max_shift is None:
        max_shift = min(images.shape[-2:]) // 8
    restarts = images.nan_to_num(0.0).view(len(objective), -1, *images.shape[1:])
    is_finite = objective.isfinite()
    best = restarts.index_select(0, objective.where(is_finite, torch.inf).argmin()[None])
    reference = best.expand_as(restarts).flatten(0, 1)
    shift = estimate_shift(restarts.flatten(0, 1), reference, max_shift)
    moved = shift_images(restarts.flatten(0, 1), shift).view_as(restarts)
    share = is_finite / is_finite.sum().clamp_min(1)
    return (moved * share.view(-1, 1, 1, 1, 1).to(moved)).sum(0)
