"""Every single sample's input of a linear layer, where inputs come from ReLUs: no labels needed.

The gradient of the layer's weights is ``residuals.T @ inputs``, that of its biases the same with
inputs of 1: K x (N + 1) numbers of rank B.  What the layer saw of a sample is in the span of its
rows, at least 0 everywhere and 1 at the bias; and, behind a ReLU, exactly 0 at many places, where
a mixture of samples is not.

The vectors of the span that are at least 0, and 1 at the bias, are a polytope of B - 1 dimensions.
A sample is a corner of it in which many more faces meet than B - 1, so that of all linear programs
with a random objective a large share ends there; the number of zeros tells it from other corners.

That a batch's inputs are found by their zeros is the idea of Dimitrov, Baader, Müller & Vechev,
"SPEAR: Exact Gradient Inversion of Batches in Federated Learning", NeurIPS 2024, who look for
zeros of the residuals by random subsets of rows; corners for non-negative factors: Donoho &
Stodden, "When Does Non-Negative Matrix Factorization Give a Correct Decomposition into Parts?",
NeurIPS 2003.
"""

from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor

_MIN_ZEROS = 6  # beyond twice the samples; corners that are no sample have about as many as samples
_DEAD = 1e-4  # of the largest place's norm: below, no sample is seen there
_NEAR_ZERO = 1e-3  # of the root mean square, where a corner counts as 0 at first
_NOISE = 5.0  # standard deviations within which an entry counts as 0
_FLOOR = 1e-9  # the least noise, of the gradient's norm
_SAME = 0.02  # relative distance of two corners that are one
_MOST_LEFT = 0.1  # of the gradient's norm, that no batch of this size explains
_NUM_PROGRAMS = 25  # for each sample, at most
_NUM_LOOKS = 3  # at the places where a corner is 0


class Separated(NamedTuple):
    """What a linear layer saw, and what came back at its output."""

    inputs: Tensor
    """B N, each at least 0 but for rounding."""
    residuals: Tensor
    """B K, in the gradient's own units."""


def separate_inputs(weight: Tensor, bias: Tensor, num_samples: int, seed: int) -> Separated | None:
    """Return the inputs of a linear layer sample by sample, in any order; None: not all found.

    One sample needs no zeros.  Any factor of the gradient cancels in the inputs: a change of
    weights by a step of unknown rate serves as well, and one by several steps where the layers
    below hardly move; the inputs are means over the steps then.

    Args:
        weight: K N, gradient of the weights, not obfuscated but by rounding.
        bias: K, gradient of the biases.
        num_samples: of the batch, at least 1.
        seed: of the objectives of the linear programs.
    """
    whole = torch.cat([weight, bias[:, None]], 1).double()
    size = float(torch.linalg.matrix_norm(whole))
    if size == 0 or num_samples > min(whole.shape):
        return None
    gradient = whole / size
    basis = torch.linalg.eigh(gradient @ gradient.T).eigenvectors[:, -num_samples:]
    places = gradient.T @ basis  # N+1 B: a sample is a combination of its columns
    left = gradient - basis @ places.T
    if float(torch.linalg.matrix_norm(left)) > _MOST_LEFT:
        return None
    noise = max(float(left.square().mean().sqrt()), _FLOOR)
    norms = torch.linalg.vector_norm(places, dim=1)
    live = norms > _DEAD * norms.max()
    if not live[-1] or int(live.sum()) <= num_samples:
        return None
    found = places[live].T / places[-1] if num_samples == 1 else _corners(places[live], noise, seed)
    if len(found) < num_samples:
        return None
    samples = gradient.new_zeros(num_samples, len(live))
    samples[:, live] = found
    residuals = torch.linalg.lstsq(samples.T, whole.T).solution
    return Separated(samples[:, :-1].to(weight), residuals.to(weight))


def _corners(places: Tensor, noise: float, seed: int) -> Tensor:
    """Return the samples that were found, R n: 1 at the last place.

    Args:
        places: n B, places by directions; the last place is the bias.
        noise: standard deviation of an entry, for a combination of length 1.
        seed: of the objectives.
    """
    num_samples = places.shape[1]
    axes = torch.linalg.svd(places, full_matrices=False).U
    faces = -axes[:-1].numpy(force=True)
    bias = axes[-1:].numpy(force=True)
    random = np.random.default_rng(seed)
    found = places.new_zeros(0, len(places))
    for _ in range(_NUM_PROGRAMS * num_samples):
        program = linprog(
            random.standard_normal(num_samples),
            A_ub=faces,
            b_ub=np.zeros(len(faces)),
            A_eq=bias,
            b_eq=[1.0],
            bounds=(None, None),
            method="highs",
        )
        if program.x is None:
            continue
        sample = _refined(places, axes @ torch.as_tensor(program.x).to(axes), noise)
        if sample is None:
            continue
        distance = torch.linalg.vector_norm(found - sample, dim=1)
        if not (distance < _SAME * torch.linalg.vector_norm(sample)).any():
            found = torch.cat([found, sample[None]])
        if len(found) == num_samples:
            break
    return found


def _refined(places: Tensor, corner: Tensor, noise: float) -> Tensor | None:
    """Return the sample at a corner, n, fitted to all places where it is 0; None: it is none."""
    fewest = 2 * places.shape[1] + _MIN_ZEROS
    is_zero = corner.abs() < _NEAR_ZERO * corner.square().mean().sqrt()
    values = corner
    for _ in range(_NUM_LOOKS):
        if int(is_zero.sum()) < places.shape[1] - 1:
            return None
        direction = torch.linalg.svd(places[is_zero]).Vh[-1]
        values = places @ direction
        values = values * values[-1].sign()
        is_zero = values.abs() < _NOISE * noise
    if int(is_zero.sum()) < fewest or float(values.min()) < -3 * _NOISE * noise or is_zero[-1]:
        return None
    return values / values[-1]
