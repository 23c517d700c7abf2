"""Which ReLUs between linear layers were open, told by images that were reconstructed.

The gradient of a layer tells its inputs as well as the ReLUs behind it are known, and a decoder
that knows photographs makes images of these inputs.  Sent through the network, the images tell the
ReLUs anew, with errors that have nothing to do with those of the gradient.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_recon.attacks.features.linear_layers import (
    Reading,
    output_residuals,
    solve_residuals,
)
from lightning_recon.attacks.features.linear_stack import LinearStack
from lightning_recon.updates import Update

_SURE = 0.01  # a ReLU counts as known whose probability is that near to 0 or 1


class Foresight(NamedTuple):
    """How a layer's outputs follow from those of reconstructed images, unit by unit, K each."""

    mean: Tensor
    """Of the reconstructed images' outputs."""
    slope: Tensor
    offset: Tensor
    """The mean of the true ones."""
    error: Tensor
    """Standard deviation of the true ones about what is foreseen."""

    def outputs(self, reconstructed: Tensor) -> Tensor:
        """Return the outputs to expect, B K, from those of reconstructed images."""
        return (reconstructed - self.mean) * self.slope + self.offset

    def probability(self, reconstructed: Tensor) -> Tensor:
        """Return how probably each ReLU was open, B K."""
        probability: Tensor = torch.special.ndtr(self.outputs(reconstructed) / self.error)
        return probability


def learn_foresight(reconstructed: Tensor, true: Tensor) -> Foresight:
    """Regress a layer's outputs on those of reconstructed images.

    Args:
        reconstructed: N K, of public images as the attack found them.
        true: N K, of these images themselves.
    """
    mean, offset = reconstructed.mean(0), true.mean(0)
    x, y = reconstructed - mean, true - offset
    tiny = torch.finfo(x.dtype).tiny
    slope = (x * y).sum(0) / x.square().sum(0).clamp_min(tiny)
    error = (y - slope * x).square().mean(0).sqrt() + 1e-3 * y.square().mean().sqrt() + tiny
    return Foresight(mean, slope, offset, error)


def residuals_of_images(
    stack: LinearStack,
    parameters: Update,
    gradients: Sequence[Tensor],
    readings: Sequence[Reading],
    labels: Tensor,
    features: Tensor,
    foresights: Sequence[Foresight],
) -> Tensor:
    """Return the residuals at the first layer's output, B K, from reconstructed images.

    What the images foresee, and what the gradient of each layer shows to have passed its ReLUs,
    are put together by Bayes' rule.

    Args:
        stack: of the payload.
        parameters: at which the gradients were taken, by name.
        gradients: of each layer's weights, K N, of the batch's mean cross-entropy.
        readings: how each is obfuscated; not signs, which tell no sizes.
        labels: B, int64.
        features: B F, of the reconstructed images.
        foresights: of each layer but the last.
    """
    seen, outputs = stack.forward(parameters, features)
    chances = [
        foresight.probability(output)
        for foresight, output in zip(foresights, outputs, strict=False)
    ]
    if chances:
        hidden = foresights[-1].outputs(outputs[len(chances) - 1]) * chances[-1]
        outputs = stack.forward(parameters, hidden, first=len(chances))[1]
    residuals = output_residuals(outputs[-1], labels)
    for layer in range(len(chances) - 1, -1, -1):
        whole = residuals @ parameters[stack.weights[layer + 1]]
        guess = whole * chances[layer]
        passed = solve_residuals(gradients[layer], readings[layer], seen[layer], guess)
        residuals = whole * updated_chances(chances[layer], whole, passed)
    return residuals


def updated_chances(chances: Tensor, whole: Tensor, passed: Tensor) -> Tensor:
    """Return the probabilities that ReLUs are open, after a noisy look at what passed them: B K.

    Args:
        chances: before.
        whole: what passes a ReLU that is open.
        passed: what was seen to pass.  Its size and its noise are those that it has, in each
            sample, where the ReLUs are known; a size below 0 is noise, and tells nothing.
    """
    is_sure = (chances - 0.5).abs() > 0.5 - _SURE
    passes = whole * (is_sure & (chances > 0.5))
    tiny = torch.finfo(whole.dtype).tiny
    size = (passed * passes).sum(1, keepdim=True)
    size = (size / passes.square().sum(1, keepdim=True).clamp_min(tiny)).clamp_min(0)
    noise = (is_sure * (passed - size * passes)).square().sum(1, keepdim=True)
    noise = noise / is_sure.sum(1, keepdim=True).clamp_min(1) + tiny
    evidence = (passed.square() - (passed - size * whole).square()) / (2 * noise)
    return torch.sigmoid(torch.logit(chances, eps=1e-6) + evidence)
