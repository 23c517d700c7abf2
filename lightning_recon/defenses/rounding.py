"""What the quantisers share: rounding to a grid, and what a rounded number leaves open."""

import torch
from torch import Tensor

from lightning_recon.defenses.base import CHUNK, Encoding, Shapes
from lightning_recon.updates import Update

_FLOOR = 0.1  # in squared steps: while the attack is far from the truth, its variances are guesses


def round_to_levels_(
    update: Update, num_steps: int, order: float, generator: torch.Generator | None
) -> Update:
    """Round every entry to a multiple of its tensor's scale / ``num_steps``, in place.

    Args:
        update: any; a tensor of zeros stays one.
        num_steps: s, at least 1.
        order: of the norm that is a tensor's scale: infinity or 2.
        generator: for rounding up with the probability of the fraction; None: to the nearest.
    """
    for name, tensor in update.items():
        if tensor.numel() == 0:
            continue
        update[name] = tensor = tensor.contiguous()
        flat = tensor.view(-1)
        # in float64 where squares are added up: float32 loses digits over 10^7 of them
        norm = torch.linalg.vector_norm(flat, order, dtype=None if order > 2 else torch.float64)
        scale = norm.to(flat.dtype).clamp_min(torch.finfo(flat.dtype).tiny)
        for chunk in torch.split(flat, CHUNK):
            # divided first: the largest entry is s steps exactly
            chunk.div_(scale).mul_(num_steps)
            if generator is None:
                chunk.round_()
            else:
                fraction = chunk - chunk.floor()
                drawn = torch.rand(chunk.shape, generator=generator, device=chunk.device)
                chunk.floor_().add_(drawn < fraction)
            chunk.div_(num_steps).mul_(scale)
    return update


def largest(tensor: Tensor) -> Tensor:
    """Return the largest absolute value of a tensor, 0 of an empty one."""
    return tensor.abs().amax() if tensor.numel() else tensor.new_zeros(())


def smallest(tensor: Tensor) -> Tensor:
    """Return the smallest absolute value above 0, infinity where there is none."""
    magnitude = torch.where(tensor == 0, torch.inf, tensor.abs())
    return magnitude.amin() if tensor.numel() else tensor.new_full((), torch.inf)


def dead_zone(update: Tensor, observed: Tensor, width: Tensor) -> Tensor:
    """Return ``observed`` + what ``update`` is farther from it than ``width``, of any sign.

    The stand-in for rounding to the nearest: its squared distance to ``observed`` is 0 in the
    interval that the rounding leaves open, where all numbers are as likely, and grows with the
    square of the distance to that interval.
    """
    return update - (update - observed).clamp(-width, width)


def weighted(update: Tensor, observed: Tensor, step: Tensor, num_steps: int) -> Tensor:
    """Return ``observed`` + the residual of ``update``, in units of its own standard deviation.

    The stand-in for stochastic rounding.  Its mean is the update itself, and its variance known:
    f (1 - f) steps^2 at the fraction f of a step, which is all but 0 for the many entries of a
    gradient that are small.  The squared distance to ``observed`` is then the quasi-likelihood of
    Wedderburn (Biometrika 61(3), 1974): the weights are constants to its gradient, which is 0 in
    the mean at the truth.  They lie in [1, 1.9], as :data:`_FLOOR` is added to the variance.

    A dead zone of one step to either side, which the rounding leaves possible too, throws away
    that numbers near to ``observed`` are likelier.
    """
    fraction = _fraction(update.detach(), step, num_steps)
    weight = ((0.25 + _FLOOR) / (fraction * (1 - fraction) + _FLOOR)).sqrt()
    return observed + weight * (update - observed)


def rounding_variance(update: Tensor, step: Tensor, num_steps: int) -> Tensor:
    """Return the variance of stochastic rounding, f (1 - f) step^2 at the fraction f of a step."""
    fraction = _fraction(update, step, num_steps)
    return (fraction * (1 - fraction) * step.square()).nan_to_num(0.0)


def _fraction(update: Tensor, step: Tensor, num_steps: int) -> Tensor:
    """Return how far every number lies within its step, in [0, 1)."""
    place = (update.abs() / step.clamp_min(torch.finfo(step.dtype).tiny)).clamp(max=num_steps)
    return place - place.floor()


def quantised(encoding: Encoding, shapes: Shapes, bits_per_value: float) -> Encoding:
    """Return an encoding with smaller values, and the 32 bits of a scale for each tensor."""
    overhead = encoding.overhead + 32.0 * len(shapes)
    return encoding._replace(bits_per_value=bits_per_value, overhead=overhead)
