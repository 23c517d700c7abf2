"""An image from what the last convolution saw of it, and from the update of what lies below.

Below the convolution there are fewer layers than in the network, and the equations are less curved:
no valley of small misfit and wrong images lies between.  They count as inexact at first, and less
and less; the images are the most probable ones under the spectrum's prior.
"""

import math

import torch
from torch import Tensor

from lightning_recon.attacks.matching.batched import is_out_of_memory
from lightning_recon.attacks.matching.equations import Equations
from lightning_recon.attacks.matching.last_maps import Seen, last_cut, solved_maps

_NUMBERS = 2**27  # of the maps' Jacobian, at most


def read_last_maps(equations: Equations, images: Tensor) -> Seen | None:
    """Return what the last convolution saw of one image; None if the update does not tell.

    None as well where the memory does not suffice for the maps' Jacobian.

    Args:
        equations: of the update, weighed.
        images: B C H W, of any content but constant, in the update's precision.
    """
    evidence = equations.evidence
    if len(images) > 1 or equations.is_noisy or not evidence.client.sends_gradient:
        return None
    cut = last_cut(evidence, images)
    if cut is None:
        return None
    numbers = sum(evidence.observed[name].numel() for name in cut.above)
    if numbers * math.prod(cut.convolution.shape) > _NUMBERS:
        return None

    def residual(maps: Tensor) -> Tensor:
        with cut.seeing(equations.network(maps), maps):
            return equations.residual(images.to(maps), cut.above)

    try:
        return solved_maps(cut, evidence.observed[cut.convolution.weight], residual)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None


class FromMaps:
    """The equations of an image whose maps are known, in units of an error.

    What lies at and above the convolution tells no more than its maps, and is left out.

    Args:
        equations: of the update, weighed; their ``seen`` is not None.
        error: of a number, relative to its layer's norm, or to the maps'; what the maps' own errors
            are is added.
    """

    def __init__(self, equations: Equations, error: float) -> None:
        assert equations.seen is not None
        self.evidence = equations.evidence
        self._equations, self._error, self._seen = equations, error, equations.seen
        above = self._seen.cut.above
        self._names = [name for name in self.evidence.observed if name not in above]
        allowed = (error * self._seen.maps.norm()).square()
        self._axes = self._seen.axes * (self._seen.errors.square() + allowed).rsqrt()

    def residual(self, images: Tensor) -> Tensor:
        """Return what is lacking, in units of the error: M numbers."""
        payload = self._equations.network(images)
        with self.evidence.client.working(payload):
            maps = self._seen.cut.seen(payload, images)
        lacking = (maps - self._seen.maps.to(maps)).flatten() @ self._axes.to(maps)
        return torch.cat([self._equations.residual(images, self._names) / self._error, lacking])
