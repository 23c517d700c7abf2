"""The features of every sample of a batch, from the gradient of the last linear layer.

With F the features of a batch of B, B x D, and S what the loss changes in its logits, softmax less
label over B, B x K, the gradient of the layer's weight is S' F, of rank B at most, and that of its
bias the sum of S's rows (the low rank is what Dimitrov et al., "SPEAR: Exact Gradient Inversion of
Batches in Federated Learning", NeurIPS 2024, start from).  Its row space is known, so that S = A U
for a known U, B x K, and an A of B^2 numbers, and A tells both S and F.  Where labels are known, A
is no longer free: the softmax of the logits W F + b has to be the one in S, 9 B equations for ten
classes.  They are solved from a few random starts by Levenberg and Marquardt's steps; no sparsity
of the features is needed, unlike there.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import jacfwd

_STARTS, _STEPS = 8, 200
_CONSISTENT = 1e-9  # squared, of probabilities: rounding of float32 leaves 1e-13
_LEAST_DAMPING = 1e-15


class Separated(NamedTuple):
    """What the last layer tells of a batch's samples."""

    features: Tensor
    """B D, float64: what each sample brings to the layer."""
    slopes: Tensor
    """B K, float64: what the batch's mean loss changes in each sample's logits."""

    def covariance(self, variance: float) -> Tensor:
        """Return that of one feature of all samples, B B, for a variance of the weight's gradient.

        Args:
            variance: of the rounding of its numbers.
        """
        shared: Tensor = torch.linalg.inv(self.slopes @ self.slopes.T)
        return variance * shared


def separated(
    weight: Tensor,
    bias: Tensor,
    weight_slope: Tensor,
    bias_slope: Tensor,
    labels: Tensor,
    seed: int,
) -> Separated | None:
    """Return the features of every sample; None: these labels do not explain the gradient.

    Args:
        weight: K D, of the layer.
        bias: K.
        weight_slope: K D, the gradient of the batch's mean cross-entropy.
        bias_slope: K.
        labels: B, int64, at least 1 and fewer than K: the logits' slopes sum to 0.
        seed: of the starts.
    """
    number = len(labels)
    if not 0 < number < len(weight):
        return None
    left, sizes, right = torch.linalg.svd(weight_slope.double(), full_matrices=False)
    space = left[:, :number].T  # U
    told = sizes[:number, None] * right[:number]  # U' S' F = A' F
    hot = F.one_hot(labels, len(weight)).double()
    logits = told @ weight.double().T

    def lacking(mixing: Tensor) -> Tensor:
        slopes = number * mixing @ space
        found = torch.linalg.solve_ex(mixing.T, logits)[0] + bias.double()
        sums = number * bias_slope.double() - slopes.sum(0)
        return torch.cat([(found.softmax(1) - hot - slopes).flatten(), sums])

    generator = torch.Generator().manual_seed(seed)
    best, least = None, _CONSISTENT
    for _ in range(_STARTS):
        drawn = 2 * torch.randn(hot.shape, generator=generator, dtype=torch.float64)
        start = (drawn.to(hot).softmax(1) - hot) @ space.T / number
        mixing, misfit = _solved(lacking, start)
        if misfit < least:
            best, least = mixing, misfit / 2  # as good a one brings nothing new
    if best is None:
        return None
    return Separated(torch.linalg.solve(best.T, told), best @ space)


def _solved(lacking: Callable[[Tensor], Tensor], start: Tensor) -> tuple[Tensor, float]:
    """Return where damped Gauss-Newton steps lead, and the squared size of what is lacking."""
    found, damping = start, 1e-2
    left = lacking(found)
    misfit = float(left.square().sum())
    for _ in range(_STEPS):
        rows = jacfwd(lacking)(found).flatten(1)
        hessian, slope = rows.T @ rows, rows.T @ left
        before = misfit
        for _ in range(8):
            damped = hessian + damping * (hessian.diagonal() + 1e-12).diag()
            moved, failed = torch.linalg.solve_ex(damped, -slope)
            nearer = found + moved.view_as(found)
            left_there = lacking(nearer) if not int(failed) else torch.full_like(left, torch.nan)
            if float(left_there.square().sum()) < misfit:  # never so for what is not finite
                found, left = nearer, left_there
                misfit = float(left.square().sum())
                break
            damping *= 5
        damping = max(damping / 8, _LEAST_DAMPING)
        if not misfit < before * (1 - 1e-6):
            break
    return found, misfit
