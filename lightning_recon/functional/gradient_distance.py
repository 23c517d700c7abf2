"""How far a simulated update is from the observed one."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from lightning_recon.updates import Update

Distance = Literal["squared", "relative", "cosine", "absolute"]
"""Names of :data:`DISTANCES`."""


def squared_distance(simulated: Update, observed: Update) -> Tensor:
    """Return the summed squared difference over all numbers (Zhu et al., NeurIPS 2019, eq. 4)."""
    return torch.stack([(simulated[n] - observed[n]).square().sum() for n in observed]).sum()


def relative_distance(simulated: Update, observed: Update) -> Tensor:
    """Return :func:`squared_distance` over the observed update's own squared length."""
    energy = torch.stack([tensor.square().sum() for tensor in observed.values()]).sum()
    return squared_distance(simulated, observed) / energy.clamp_min(_tiny(energy))


def absolute_distance(simulated: Update, observed: Update) -> Tensor:
    """Return the mean absolute difference over all numbers, as Deng et al. (TAG, 2021) use it."""
    total = torch.stack([(simulated[n] - observed[n]).abs().sum() for n in observed]).sum()
    return total / sum(tensor.numel() for tensor in observed.values())


def cosine_distance(simulated: Update, observed: Update) -> Tensor:
    """Return one minus the cosine of the angle (Geiping et al., NeurIPS 2020, eq. 4).

    Of all numbers as one vector; a vector of zeros is at distance 1 from everything.
    """
    dot = torch.stack([(simulated[n] * observed[n]).sum() for n in observed]).sum()
    squares = [
        torch.stack([update[n].square().sum() for n in observed]).sum()
        for update in (simulated, observed)
    ]
    # the smallest number keeps the root differentiable at zero
    return 1 - dot / torch.stack([s.clamp_min(_tiny(s)).sqrt() for s in squares]).prod()


DISTANCES: dict[str, Callable[[Update, Update], Tensor]] = {
    "squared": squared_distance,
    "relative": relative_distance,
    "cosine": cosine_distance,
    "absolute": absolute_distance,
}
"""(simulated, observed) -> a number of at least 0; the same names in both."""


def _tiny(tensor: Tensor) -> float:
    return torch.finfo(tensor.dtype).tiny
