"""Clipping to an L1 norm, and Laplace noise on every coordinate."""

import torch
from torch import Tensor

from lightning_recon.defenses.base import LocalRandomizer, chunks, clipped, positive, update_norm
from lightning_recon.updates import Update


def add_laplace_(chunk: Tensor, scale: float, generator: torch.Generator) -> None:
    """Add Laplace noise to every number, in place.

    Args:
        chunk: any shape.
        scale: b; the variance is 2 b^2.
        generator: on the chunk's device.
    """
    # in float64: a float32 uniform variable would cut the tails off at 17 b
    noise = torch.empty(chunk.shape, dtype=torch.float64, device=chunk.device)
    noise.exponential_(generator=generator)
    other = torch.empty_like(noise).exponential_(generator=generator)
    chunk.add_(noise.sub_(other).to(chunk.dtype), alpha=scale)


class Laplace(LocalRandomizer):
    """Scales the update down to an L1 norm of ``clip_norm`` and adds Laplace noise.

    Dwork, McSherry, Nissim & Smith, "Calibrating Noise to Sensitivity in Private Data Analysis",
    TCC 2006: the scale is the L1 sensitivity over epsilon.  Any two updates in the L1 ball are at
    most 2C apart, so that b = 2C / epsilon and the variance of each coordinate is 2 b^2.  Note
    that the L1 norm of d numbers of equal size is sqrt(d) times their L2 norm.

    Args:
        epsilon: the privacy budget of one release, above 0.
        clip_norm: the L1 norm C that no update exceeds afterwards, above 0.
    """

    citation = "Dwork et al., TCC 2006"

    def __init__(self, epsilon: float, clip_norm: float) -> None:
        super().__init__(epsilon)
        self.clip_norm = positive(self, "clip_norm", clip_norm)

    @property
    def scale(self) -> float:
        """The b of the Laplace distribution: its standard deviation is sqrt(2) b."""
        return 2 * self.clip_norm / self.epsilon

    def forward(self, update: Update, *, generator: torch.Generator) -> Update:
        """Return the update clipped and with noise, in place."""
        norm = update_norm(update, order=1)
        factor = min(1.0, self.clip_norm / norm) if norm else 1.0
        for chunk in chunks(update):
            add_laplace_(chunk.mul_(factor), self.scale, generator)
        return update

    def stand_in(self, update: Update, observed: Update) -> Update:
        """Return the clipped update, of which the release is the unbiased estimate."""
        return clipped(update, self.clip_norm, order=1)
