"""An attack of your own: a distance for each layer, and a step that comes every few iterations."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from lightning_recon.attacks import GradientMatching
from lightning_recon.attacks.gradient_matching import Evidence
from lightning_recon.errors import InputError
from lightning_recon.functional.gradient_distance import Distance
from lightning_recon.targets import Target
from lightning_recon.updates import Update


class LayerByLayer(GradientMatching):
    """Gradient matching of one layer after the other, from grey images that are smoothed at times.

    All that may be changed, and when it is called: the head of
    ``lightning_recon/attacks/gradient_matching.py``.

    Args:
        distance: of one layer's update.
        last_weight: how often the last layer counts, at least 0.
        grey_weight: of the mean squared distance from grey, at least 0.
        smooth_every: iterations between two smoothings, at least 1.
        **kwargs: the options of :class:`~lightning_recon.attacks.GradientMatching`.

    Raises:
        InputError: if an argument is out of its range.
    """

    citation = "none: an example"

    # Another default than the base's stands in the signature, as that of distance does.  The
    # command line reads it there; it sees no kwargs.setdefault(...), and would hand on the base's.
    def __init__(
        self,
        target: Target,
        distance: Distance = "cosine",
        last_weight: float = 2.0,
        grey_weight: float = 0.001,
        smooth_every: int = 50,
        **kwargs: Any,
    ) -> None:
        super().__init__(target, distance=distance, **kwargs)
        if not last_weight >= 0 or not grey_weight >= 0 or smooth_every < 1:
            raise InputError(
                "LayerByLayer: last_weight and grey_weight must be at least 0, smooth_every at "
                f"least 1, not {last_weight}, {grey_weight} and {smooth_every}"
            )
        self.last_weight = last_weight
        self.grey_weight = grey_weight
        self.smooth_every = smooth_every

    def start(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Return grey images with a little noise, num_samples C H W."""
        noise = torch.randn(num_samples, *self.dummy_shape, generator=generator)
        return (0.5 + 0.01 * noise).clamp(0, 1)

    def compare(self, simulated: Update, observed: Update) -> Tensor:
        """Return the mean distance of the layers; the last two tensors are the last layer's."""
        of_layer = super().compare
        distances = [of_layer({n: simulated[n]}, {n: observed[n]}) for n in observed]
        distances[-2:] = [self.last_weight * distance for distance in distances[-2:]]
        return torch.stack(distances).mean()

    def objective(self, dummy: Tensor, evidence: Evidence) -> dict[str, Tensor]:
        """Return the distance of the updates, the priors and that from grey, each of shape 1."""
        grey = self.grey_weight * (dummy - 0.5).square().mean()
        return {**super().objective(dummy, evidence), "grey": grey[None]}

    def project(self, dummy: Tensor) -> None:
        """Keep pixels within [0, 1], and smooth the images now and then, but not at the end."""
        super().project(dummy)
        done = self.iteration + 1
        if done % self.smooth_every == 0 and done < self.iterations:
            dummy.copy_(avg_pool2d(dummy, 3, stride=1, padding=1, count_include_pad=False))
