"""A mechanism for one number, made into one for a whole update.

Wang, Xiao, Yang, Zhao, Hui, Shin, Shin & Yu, "Collecting and Analyzing Multidimensional Data with
Local Differential Privacy", ICDE 2019, Algorithm 4: of the d coordinates only k are released, each
with a budget of epsilon / k and scaled by d / k; all others are 0.
"""

from abc import abstractmethod

import torch
from torch import Tensor

from lightning_recon.defenses.base import Encoding, LocalRandomizer, Shapes, chunks, positive
from lightning_recon.errors import InputError
from lightning_recon.updates import Update

_EPSILON_PER_COORDINATE = 2.5


class CoordinateSampling(LocalRandomizer):
    """Releases a random few coordinates of the update, each by a mechanism for one number.

    Coordinates are clamped to [-clip_value, clip_value] first.  The estimate is unbiased for the
    clamped update.  With the millions of coordinates of a network and any usual epsilon, that is
    k = 1 to 10 of them, an honest client's single update is of little use to anybody: the
    mechanisms are made for means over very many clients.

    Memory: 8 bytes a released coordinate and the check for NaN; the update is changed in place.

    Args:
        epsilon: the privacy budget of one release, above 0.
        clip_value: the absolute value that no coordinate exceeds, above 0.
    """

    citation = "Wang et al., ICDE 2019"
    bits_per_value = 32.0

    def __init__(self, epsilon: float, clip_value: float) -> None:
        super().__init__(epsilon)
        self.clip_value = positive(self, "clip_value", clip_value)

    @abstractmethod
    def perturb(self, values: Tensor, epsilon: float, generator: torch.Generator) -> Tensor:
        """Return an unbiased, epsilon-LDP estimate of each number.

        Args:
            values: any shape, float64, in [-1, 1].
            epsilon: the budget of one number, above 0.
            generator: on the device of the values.
        """

    def num_coordinates(self, dimension: int) -> int:
        """Return k, how many of ``dimension`` coordinates are released (Equation 12)."""
        return max(1, min(dimension, int(self.epsilon / _EPSILON_PER_COORDINATE)))

    def forward(self, update: Update, *, generator: torch.Generator) -> Update:
        """Return the estimate of the clamped update, in place.

        Raises:
            InputError: if a number of the update is NaN.
        """
        if any(bool(chunk.isnan().any()) for chunk in chunks(update)):
            raise InputError(
                f"{type(self).__name__}: the client's update has numbers that are NaN; check the "
                "images, the target's weights and the precision"
            )
        dimension = sum(tensor.numel() for tensor in update.values())
        if dimension == 0:
            return update
        count = self.num_coordinates(dimension)
        chosen = sample_coordinates(dimension, count, generator)
        start = 0
        for tensor in update.values():
            flat = tensor.view(-1)
            stop = start + len(flat)
            bounds = torch.tensor([start, stop], device=chosen.device)
            first, last = torch.searchsorted(chosen, bounds).tolist()
            places = chosen[first:last] - start
            values = flat[places].double().div_(self.clip_value).clamp_(-1, 1)
            released = self.perturb(values, self.epsilon / count, generator)
            flat.zero_()
            flat[places] = released.mul_(self.clip_value * dimension / count).to(flat.dtype)
            start = stop
        return update

    def stand_in(self, update: Update, observed: Update) -> Update:
        """Return the clamped update times d / k where something was released, 0 elsewhere."""
        dimension = sum(tensor.numel() for tensor in update.values())
        factor = dimension / self.num_coordinates(dimension)
        return {
            name: tensor.clamp(-self.clip_value, self.clip_value) * (observed[name] != 0) * factor
            for name, tensor in update.items()
        }

    def encode(self, encoding: Encoding, shapes: Shapes) -> Encoding:
        """Return the released values, and a position within the update for each of them."""
        dimension = sum(shape.numel() for shape in shapes.values())
        count = min(dimension, self.num_coordinates(dimension))
        return Encoding(count, self.bits_per_value, count * max(dimension - 1, 0).bit_length())


def sample_coordinates(dimension: int, count: int, generator: torch.Generator) -> Tensor:
    """Return ``count`` different numbers below ``dimension``, ascending, all subsets alike.

    Needs memory in proportion to ``count`` where that is a small part of ``dimension``.
    """
    device = generator.device
    if 2 * count > dimension:
        order = torch.randperm(dimension, generator=generator, device=device)
        return order[:count].sort().values
    found = torch.empty(0, dtype=torch.int64, device=device)
    while len(found) < count:
        more = torch.randint(dimension, (2 * count,), generator=generator, device=device)
        found = torch.unique(torch.cat([found, more]))
    # which of the found ones are kept must not depend on their order
    kept = torch.randperm(len(found), generator=generator, device=device)[:count]
    return found[kept].sort().values
