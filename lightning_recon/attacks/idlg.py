"""Improved deep leakage from gradients (iDLG).

Zhao, Mopuri & Bilen, "iDLG: Improved Deep Leakage from Gradients", arXiv 2001.02610, 2020,
algorithm 1: the label of a single image is read off the sign of the last layer's gradient
(:func:`lightning_recon.functional.labels.inference.idlg`), and only the image is optimised.

Differences: as in :mod:`.dlg`.  Batches of more images need another ``label_inference``, or the
labels.
"""

from collections.abc import Sequence
from typing import Any

import torch
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor

from lightning_recon.attacks.gradient_matching import GradientMatching
from lightning_recon.attacks.inverting_gradients import NORMALISED_STD
from lightning_recon.functional.labels.inference import LabelMethod
from lightning_recon.targets import Target


class IDLG(GradientMatching):
    """Reads the label off the update, then optimises the image until its update is the observed.

    Args:
        known: what is granted to the attacker, of ``num_samples``, ``client`` and ``buffers``; the
            paper does not grant the label.
        label_inference: how the labels are found; ``idlg`` in the paper, for a single image.
        iterations: steps on the dummy images of one client; 300 in the paper.
        optimizer: makes the optimizer of the dummy images; L-BFGS of rate 1 in the paper, which
            takes up to 20 steps an iteration.
        **kwargs: the options of :class:`GradientMatching`.

    Raises:
        InputError: if an argument is out of its range.
    """

    citation = (
        "Zhao, Mopuri, Bilen: iDLG: Improved Deep Leakage from Gradients. arXiv 2001.02610, 2020"
    )
    returns_best = True

    def __init__(
        self,
        target: Target,
        known: Sequence[str] = ("num_samples", "client"),
        label_inference: LabelMethod = "idlg",
        iterations: int = 300,
        optimizer: OptimizerCallable = torch.optim.LBFGS,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            target,
            known=known,
            label_inference=label_inference,
            iterations=iterations,
            optimizer=optimizer,
            **kwargs,
        )

    def start(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Return Gaussian noise of variance 1."""
        return torch.randn(num_samples, *self.dummy_shape, generator=generator)

    def decode(self, dummy: Tensor) -> Tensor:
        """Return the images, R C H W, as :class:`DLG` does."""
        return 0.5 + NORMALISED_STD * dummy

    def encode(self, images: Tensor) -> Tensor:
        """Return the dummies of images, R C H W."""
        return (images - 0.5) / NORMALISED_STD
