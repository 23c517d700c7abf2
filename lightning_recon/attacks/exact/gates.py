"""Candidates from gates that are open or shut: a dictionary whose atoms are known but for signs.

After Bakarsky, Dimitrov, Baader, Vechev, "SPEAR++: Scaling Gradient Inversion via Sparsely-Used
Dictionary Learning", 2025, arXiv 2510.24200, who look for the sparsest vectors of the columns' span
by descent, where SPEAR draws (:mod:`.sparsity`).

Where a network is linear behind its first ReLUs, the slopes of a sample are 0 at the rows that
shut it out and (J^T r)_k at those that let it through: J, the derivatives of the logits, is known,
and r, softmax less label, nearly.  So at every row k one of two equations holds, u_k q = 0 or
u_k q = (J^T r)_k, where u_k is the row of the columns' basis: twice as many as a sparse vector has,
and the label is chosen.  Their distance, sum_k min(|u_k q|, |u_k q - (J^T r)_k|), smoothed at
first, is descended from many starts, r fitted on the way.

What differs from the paper: both equations, where it uses the zeros alone; starts at independent
components (:mod:`.independence`), which come nearer to the images the more directions are found,
for without these the rows span the images that are left; and every image is put to the test of
:mod:`.certificate`.  Batches may so be several times larger.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_recon.attacks.exact.sparsity import refined

_STARTS_A_SAMPLE, _LEAST_STARTS, _MOST_STARTS = 8, 64, 512  # at a time
_ROUNDS, _PATIENCE = 100, 2  # at the most, and without a new sample
_LEAST_FOUND = 0.1  # of the samples after two rounds, that more are made
_MOST_ROWS = 1000  # that are descended on, or ten a sample
_SUREST = 3.0  # standard deviation of the logits from which chances are drawn
_STEPS = 300
_FIRST_STEP, _FIRST_WIDTH, _LAST_WIDTH = 0.1, 1.0, 0.01  # of the slopes' root mean square
_FIT_EVERY = 10  # steps between two fits of r
_FIT_FROM = 0.3  # share of the steps before the first
_SAME = 0.99  # cosine of two looks at one sample's slopes
_SHUT = 1e-3  # of the slopes' root mean square
_LOOSE = 0.1  # relative distance from open and shut, above which a start led nowhere


class Starts(NamedTuple):
    """Where N descents begin."""

    vectors: Tensor
    """N r."""
    residuals: Tensor
    """N C, at the logits: softmax less label."""


def gated_directions(
    columns: Tensor,
    jacobian: Tensor,
    generator: torch.Generator,
    guess: Callable[[Tensor], Starts] | None = None,
) -> Tensor:
    """Return the vectors q of which U q is open or shut at every row, at most r, of length 1: R r.

    Rounds of descents are made until all are found, three in a row bring none, or two too few.

    Args:
        columns: U, K r, orthonormal.
        jacobian: of the logits by the outputs of open gates, C K.
        generator: of the starts, on the CPU.
        guess: where the samples that are not among R r vectors may be, the better the fewer they
            are; null: nobody knows.
    """
    rank = columns.shape[1]
    found = columns.new_zeros(0, rank)
    idle, has_news = 0, False
    for turn in range(_ROUNDS):
        before = len(found)
        guessed = guess is not None and (turn == 0 or has_news)
        if guess and guessed:
            starts = guess(found)
        else:
            starts = _elsewhere(_random_starts(columns, jacobian, generator), found)
        for vector in _descend(columns, jacobian, starts, generator):
            if ((found @ vector).abs() > _SAME).any():
                continue
            sharp = refined(columns, vector)
            if sharp is None or not is_gated(columns, jacobian, sharp):
                continue
            if not ((found @ sharp).abs() > _SAME).any():
                found = torch.cat([found, sharp[None]])
        has_news = len(found) > before
        idle = 0 if has_news or guessed else idle + 1
        is_hopeless = turn > 0 and len(found) < _LEAST_FOUND * rank  # all will be needed
        if len(found) >= rank or idle > _PATIENCE or is_hopeless:
            break
    return found[:rank]


def is_gated(columns: Tensor, jacobian: Tensor, vector: Tensor) -> bool:
    """Return whether the slopes of a vector, r, are open ones where they are not 0.

    The difference of two samples of one label has zeros where both are open, too, but either sign.

    Args:
        columns: K r, orthonormal.
        jacobian: of the logits by the outputs of open gates, C K.
        vector: r.
    """
    slopes = (columns @ vector)[None]
    passes = slopes.abs() > _SHUT * slopes.square().mean().sqrt()
    is_open = (fitted(slopes, passes, jacobian) @ jacobian) * passes
    return bool((slopes - is_open).norm() <= _LOOSE * slopes.norm())


def _elsewhere(starts: Starts, found: Tensor) -> Starts:
    """Return starts of the same length, orthogonal to what is found, R r."""
    basis = torch.linalg.qr(found.T).Q
    outside = starts.vectors - starts.vectors @ basis @ basis.T
    size = starts.vectors.norm(dim=1, keepdim=True)
    return starts._replace(vectors=size * F.normalize(outside))


def _random_starts(columns: Tensor, jacobian: Tensor, generator: torch.Generator) -> Starts:
    """Return starts around half of what open gates let through, of random labels and chances."""
    num_classes, rank = len(jacobian), columns.shape[1]
    size = min(max(_LEAST_STARTS, _STARTS_A_SAMPLE * rank), _MOST_STARTS)
    labels = torch.randint(num_classes, (size,), generator=generator)
    sure = _SUREST * torch.rand(size, 1, generator=generator)
    chances = (sure * torch.randn(size, num_classes, generator=generator)).softmax(1)
    residuals = (chances - F.one_hot(labels, num_classes)).to(jacobian)
    is_open = residuals @ jacobian
    around = torch.randn(size, rank, generator=generator).to(columns)
    around = around * is_open.norm(dim=1, keepdim=True) / rank**0.5
    return Starts((is_open @ columns + around) / 2, residuals)


def _descend(
    columns: Tensor, jacobian: Tensor, starts: Starts, generator: torch.Generator
) -> Tensor:
    """Return the ends, of length 1, of the descents that led somewhere, the best first, N r."""
    rows = max(_MOST_ROWS, 10 * columns.shape[1])
    if rows < len(columns):
        chosen = torch.randperm(len(columns), generator=generator)[:rows].to(columns.device)
        rotated, upper = torch.linalg.qr(columns[chosen])
        starts = starts._replace(vectors=starts.vectors @ upper.T)
        ends = _descend(rotated, jacobian[:, chosen], starts, generator)
        return F.normalize(torch.linalg.solve_triangular(upper, ends.T, upper=True).T)
    columns, jacobian, vectors = columns.float(), jacobian.float(), starts.vectors.float()
    is_open = starts.residuals.float() @ jacobian  # N K: slopes of open gates
    size = is_open.norm(dim=1, keepdim=True)
    for step in range(_STEPS):
        done = step / _STEPS
        width = _FIRST_WIDTH * (_LAST_WIDTH / _FIRST_WIDTH) ** done * size / len(columns) ** 0.5
        slopes = vectors @ columns.T
        passes = (slopes - is_open).abs() < slopes.abs()
        if done >= _FIT_FROM and step % _FIT_EVERY == 0:
            is_open = fitted(slopes, passes, jacobian) @ jacobian
        uphill = torch.tanh((slopes - is_open * passes) / width) @ columns
        vectors = vectors - _FIRST_STEP * (1 - done) * size * F.normalize(uphill)
    slopes = vectors @ columns.T
    misfit = torch.minimum(slopes.abs(), (slopes - is_open).abs()).norm(dim=1)
    misfit = misfit / slopes.norm(dim=1)
    order = misfit.argsort()
    return F.normalize(vectors[order[misfit[order] <= _LOOSE]].double())


def fitted(slopes: Tensor, passes: Tensor, jacobian: Tensor) -> Tensor:
    """Return the residuals at the logits, N C, that explain the slopes of open gates best.

    Args:
        slopes: N K.
        passes: which gates are open, N K, bool.
        jacobian: of the logits by the outputs of open gates, C K.
    """
    weight = passes.to(slopes)
    normal = torch.einsum("ck,nk,dk->ncd", jacobian, weight, jacobian)
    ridge = 1e-6 * jacobian.square().mean(0).sum() + 1e-6 * normal.diagonal(dim1=1, dim2=2).mean(1)
    normal = normal + ridge[:, None, None] * torch.eye(len(jacobian)).to(normal)
    found: Tensor = torch.linalg.solve(normal, (slopes * weight) @ jacobian.T)
    return found
