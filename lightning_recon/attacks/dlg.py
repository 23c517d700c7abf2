"""Deep leakage from gradients (DLG).

Zhu, Liu & Han, "Deep Leakage from Gradients", NeurIPS 2019, algorithm 1: dummy images and the
logits of dummy labels start as Gaussian noise, and L-BFGS makes their gradient the observed one.

Differences: the best iterate is returned and not the last one
(:mod:`lightning_recon.attacks.matching.best_iterate`); where the objective is not finite its
gradient counts as zero; several restarts share one L-BFGS, whose direction mixes their curvatures;
under FedAvg the dummies run through all local steps.  A dummy z stands for the pixels
.5 + NORMALISED_STD z: noise of variance 1 lies far outside of [0, 1], and L-BFGS seldom finds its
way back on networks that were not made for it.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor

from lightning_recon.attacks.gradient_matching import Evidence, GradientMatching
from lightning_recon.attacks.inverting_gradients import NORMALISED_STD
from lightning_recon.errors import InputError
from lightning_recon.observation import Observation
from lightning_recon.targets import Target


class DLG(GradientMatching):
    """Optimises images and labels together until their update is the observed one.

    Args:
        known: what is granted to the attacker, of ``num_samples`` (which it needs) and ``client``;
            it finds the labels itself.
        iterations: steps on the dummy images of one client; 300 in the paper.
        optimizer: makes the optimizer of the dummy images; L-BFGS of rate 1 in the paper, which
            takes up to 20 steps an iteration.
        **kwargs: the options of :class:`GradientMatching`.

    Raises:
        InputError: if an argument is out of its range, or labels are granted.
    """

    citation = "Zhu, Liu, Han: Deep Leakage from Gradients. NeurIPS 2019, arXiv 1906.08935"
    returns_best = True

    def __init__(
        self,
        target: Target,
        known: Sequence[str] = ("num_samples", "client"),
        iterations: int = 300,
        optimizer: OptimizerCallable = torch.optim.LBFGS,
        **kwargs: Any,
    ) -> None:
        if "labels" in known:
            raise InputError(
                "DLG finds the labels itself; take labels out of known, or choose another attack"
            )
        if kwargs.get("analytic_start"):
            raise InputError("DLG has no analytic_start: features are read with labels; use IDLG")
        super().__init__(target, known=known, iterations=iterations, optimizer=optimizer, **kwargs)

    @property
    def dummy_shape(self) -> tuple[int, ...]:
        """C H W + num_classes: a flat image, and the logits of its label."""
        return (math.prod(self.spec.image_shape) + self.target.num_classes,)

    def start(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Return Gaussian noise of variance 1, images and logits alike."""
        return torch.randn(num_samples, *self.dummy_shape, generator=generator)

    def decode(self, dummy: Tensor) -> Tensor:
        """Return the images, R C H W."""
        flat = dummy[:, : -self.target.num_classes]
        return 0.5 + NORMALISED_STD * flat.reshape(-1, *self.spec.image_shape)

    def labels_of(self, dummy: Tensor, evidence: Evidence) -> Tensor:
        """Return the label probabilities, R num_classes."""
        return dummy[:, -self.target.num_classes :].softmax(1)

    def labels_to_begin(self, observation: Observation) -> tuple[Tensor, dict[str, float]]:
        """Return one zero a sample: no label is known before the end."""
        if observation.num_samples is None:
            raise InputError("DLG needs the number of samples; add num_samples to known")
        return torch.zeros(observation.num_samples, dtype=torch.long), {}
