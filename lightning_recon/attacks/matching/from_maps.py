"""An image from what the last convolution saw of it, and from the update of what lies below.

Below the convolution there are fewer layers than in the network, and the equations are less curved:
no valley of small misfit and wrong images lies between.  They count as inexact at first, and less
and less; the images are the most probable ones under the spectrum's prior.
"""

import torch
from torch import Tensor

from lightning_recon.attacks.matching.equations import Equations
from lightning_recon.attacks.matching.last_maps import Seen, last_convolution, solved_maps

_NUMBERS = 2**27  # of the maps' Jacobian, at most


def read_maps(equations: Equations, images: Tensor) -> Seen | None:
    """Return what the last convolution saw of one image; None if the update does not tell.

    Args:
        equations: of the update, weighed.
        images: B C H W, of any content but constant, in the update's precision.
    """
    evidence = equations.evidence
    if len(images) > 1 or equations.is_noisy or not evidence.client.sends_gradient:
        return None
    convolution = last_convolution(evidence, images)
    if convolution is None:
        return None
    direction = convolution.direction(evidence.observed[convolution.weight])
    numbers = sum(evidence.observed[name].numel() for name in convolution.above)
    if numbers * direction.numel() > _NUMBERS:
        return None

    def residual(maps: Tensor) -> Tensor:
        with convolution.seeing(equations.network(maps), maps):
            return equations.residual(images.to(maps), convolution.above)

    maps = solved_maps(residual, direction)
    return None if maps is None else Seen(convolution, maps)


class FromMaps:
    """The equations of an image whose maps are known, in units of an error.

    What lies at and above the convolution tells no more than its maps, and is left out.

    Args:
        equations: of the update, weighed; their ``seen`` is not None.
        error: of a number, relative to its layer's norm, or to the maps'.
    """

    def __init__(self, equations: Equations, error: float) -> None:
        self.evidence = equations.evidence
        self._equations, self._error = equations, error
        assert equations.seen is not None
        self._convolution, self._maps = equations.seen
        above = self._convolution.above
        self._names = [name for name in self.evidence.observed if name not in above]

    def residual(self, images: Tensor) -> Tensor:
        """Return what is lacking, in units of the error: M numbers."""
        payload = self._equations.network(images)
        with self.evidence.client.working(payload):
            seen = self._convolution.seen(payload, images)
        lacking = (seen - self._maps.to(seen)) / self._maps.norm().to(seen)
        below = self._equations.residual(images, self._names)
        return torch.cat([below, lacking.flatten()]) / self._error
