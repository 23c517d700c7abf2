"""An attack of your own: gradient matching from grey images, with a penalty on outliers."""

from typing import Any

import torch
from torch import Tensor

from lightning_recon.attacks import GradientMatching
from lightning_recon.attacks.gradient_matching import Evidence
from lightning_recon.errors import InputError
from lightning_recon.targets import Target


class GreyStart(GradientMatching):
    """Gradient matching that begins with grey images, and keeps pixels near to grey.

    Args:
        weight: of the mean squared distance from grey, at least 0.
        **kwargs: the options of :class:`~lightning_recon.attacks.GradientMatching`.

    Raises:
        InputError: if an argument is out of its range.
    """

    citation = "none: an example"

    def __init__(self, target: Target, weight: float = 0.001, **kwargs: Any) -> None:
        super().__init__(target, **kwargs)
        if not weight >= 0:
            raise InputError(f"GreyStart: weight must be at least 0, not {weight}")
        self.weight = weight

    def start(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Return grey images with a little noise, num_samples C H W."""
        noise = torch.randn(num_samples, *self.dummy_shape, generator=generator)
        return (0.5 + 0.01 * noise).clamp(0, 1)

    def objective(self, dummy: Tensor, evidence: Evidence) -> dict[str, Tensor]:
        """Return the distance of the updates and that from grey, each of shape 1."""
        grey = self.weight * (dummy - 0.5).square().mean()
        return {**super().objective(dummy, evidence), "grey": grey[None]}
