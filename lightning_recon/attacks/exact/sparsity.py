"""Candidates from low rank and sparsity, where no row of the gradient holds a single sample.

Dimitrov, Baader, Müller, Vechev, "SPEAR: Exact Gradient Inversion of Batches in Federated
Learning", NeurIPS 2024, arXiv 2403.03945; Bakarsky, Dimitrov, Baader, Vechev, "SPEAR++: Scaling
Gradient Inversion via Sparsely-Used Dictionary Learning", 2025, arXiv 2510.24200.

The slopes d_i of every sample lie in the span of the gradient's columns, U of K x r, and behind a
ReLU about half of each are zero.  So d_i = U q_i, and q_i is orthogonal to the rows of U where the
sample is shut out, which are many more than the r - 1 that any vector has.  SPEAR draws r - 1 rows,
and all shut one sample out with a probability of about 2^(1 - r); SPEAR++ descends to sparse
vectors, by the L1 norm on the sphere, smoothed at first, and so does this module.  With all r of
them, the samples are the rows of Q^-1 S V of the decomposition G = U S V.

What differs: on the rows that shut a found sample out, the others span one dimension less, so that
the next is found sooner; what it is on the remaining rows follows from the share at which the most
of them vanish.  The papers end by the sparsity of all; here every image is put to the test of
:mod:`.certificate`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_recon.attacks.exact.scales import as_images

MAX_RANK = 40
"""Samples, above which nothing is tried."""
_STARTS = 256  # descents at a time
_STEPS = 300
_FIRST_STEP, _FIRST_WIDTH, _LAST_WIDTH = 0.3, 0.3, 0.01  # of the slopes' root mean square
_PATIENCE = 6  # parts in a row without a new vector, after which no more are made
_ZERO = 1e-2  # of the root mean square: what counts as zero after one draw, and refined
_REFINED_ZERO = 1e-3
_SHARE = 0.3  # of the rows that must be zero
_SPARE = 4  # zeros more than any vector has
_EMPTY = 1e-6  # of the largest row: one that no sample reaches
_LOOKS = 16  # at the sparsest vectors of a part
_SAME = 0.999  # cosine of two looks at one vector
_WITHIN = 0.95  # of a vector's zeros, that are another's, too
_CLUSTER = 0.25  # of the rows, that vanish at the same share
_CHAIN = 6.0  # rows must be so many times the dimensions that are left


def shown_images(directions: Tensor, strengths: Tensor, rows: Tensor) -> Tensor:
    """Return the samples of a gradient U S V as they come, N D.

    With all directions q_i, U q_i the slopes of sample i, the samples are the rows of Q^-1 S V; one
    missing, the vector that is orthogonal to the others shows that sample alone.  With fewer, none.

    Args:
        directions: R r, each of length 1.
        strengths: S, r.
        rows: V, r (D + 1), the last column that of the bias.

    See :mod:`.scales` for what is done without a bias.
    """
    rank = len(strengths)
    weighted = strengths[:, None] * rows
    if len(directions) == rank:
        samples = torch.linalg.solve(directions.T, weighted)
    elif rank > 1 and len(directions) == rank - 1:
        alone = torch.linalg.qr(directions.T, mode="complete").Q[:, -1:]
        samples = alone.T @ weighted
    else:
        samples = weighted[:0]
    images = as_images(samples)
    return images[images.isfinite().all(1)]


def sparse_directions(columns: Tensor, generator: torch.Generator) -> Tensor:
    """Return the vectors q of which U q has many zeros, at most r, each of length 1: R r.

    Args:
        columns: U, K r, no row of it zero.
        generator: of the draws, on the CPU.
    """
    rank = columns.shape[1]
    found = columns.new_zeros(0, rank)
    idle = 0
    # where the first descents show nothing, the slopes are not sparse
    while len(found) < rank and idle < (_PATIENCE if len(found) else 2):
        order = torch.randperm(len(found), generator=generator)
        chain = _chain(columns, found[order.to(found.device)])
        before = found
        for vector in _look(columns, chain, found, generator):
            lifted = refined(columns, _lifted(columns, chain, vector))
            if lifted is not None:
                found = _with(columns, found, lifted)
        idle = idle + 1 if len(found) == len(before) else 0
    return found


def _with(columns: Tensor, found: Tensor, vector: Tensor) -> Tensor:
    """Return the found vectors and a new one, without those that are mixtures of others.

    A mixture of samples is zero where all of them are, so within the zeros of each.
    """
    if ((found @ vector).abs() > _SAME).any():
        return found
    new = _is_zero(columns @ vector, _REFINED_ZERO)
    old = _is_zero(columns @ found.T, _REFINED_ZERO)
    common = (old & new[:, None]).sum(0)
    if (common >= _WITHIN * new.sum()).any():
        return found
    return torch.cat([found[common < _WITHIN * old.sum(0)], vector[None]])


def _chain(columns: Tensor, found: Tensor) -> Tensor:
    """Return the found vectors on whose common zeros the next one is looked for, L r."""
    is_left = torch.ones(len(columns), dtype=torch.bool, device=columns.device)
    taken: list[int] = []
    for place, vector in enumerate(found):
        next_left = is_left & _is_zero(columns @ vector, _REFINED_ZERO)
        if next_left.sum() < _CHAIN * (columns.shape[1] - len(taken) - 1) + _SPARE:
            break
        is_left = next_left
        taken.append(place)
    return found[taken]


def _is_zero(slopes: Tensor, limit: float) -> Tensor:
    """Return where slopes, K or K T, count as zero."""
    return slopes.abs() <= limit * slopes.square().mean(0).sqrt()


def _where_all_vanish(columns: Tensor, vectors: Tensor) -> Tensor:
    """Return on which rows, K, all of some vectors, L r, are zero."""
    is_left = torch.ones(len(columns), dtype=torch.bool, device=columns.device)
    for vector in vectors:
        is_left &= _is_zero(columns @ vector, _REFINED_ZERO)
    return is_left


def _look(
    columns: Tensor, chain: Tensor, found: Tensor, generator: torch.Generator
) -> list[Tensor]:
    """Return vectors, r, that show by their zeros on the rows where those of the chain have them.

    They are right up to multiples of the chain's, and none of those found, R r.
    """
    is_left = _where_all_vanish(columns, chain)
    basis = torch.eye(columns.shape[1]).to(columns)
    if len(chain):
        basis = torch.linalg.qr(chain.T, mode="complete").Q[:, len(chain) :]
    seen = columns[is_left] @ basis
    size = seen.norm(dim=1)
    seen = seen[size > _EMPTY * size.max()]
    rank = seen.shape[1]
    if rank == 1:
        return [basis[:, 0]]
    vectors = _descend(seen, generator)
    known = F.normalize(found @ basis)  # those of the chain are nothing there
    vectors = vectors[~((vectors @ known.T).abs() > _SAME).any(1)]
    zeros = _is_zero(seen @ vectors.T, _ZERO).sum(0)
    least = max(rank - 1 + _SPARE, int(_SHARE * len(seen)))
    best = zeros.argsort(descending=True)
    best = best[zeros[best] >= least]
    kept: list[int] = []
    for place in best.tolist():
        if len(kept) == _LOOKS:
            break
        if not ((vectors[kept] @ vectors[place]).abs() > _SAME).any():
            kept.append(place)
    return [basis @ vectors[place] for place in kept]


def _descend(seen: Tensor, generator: torch.Generator) -> Tensor:
    """Return vectors q of length 1, N r, of which ``seen`` q, of K x r, is as sparse as near q."""
    rotated, upper = torch.linalg.qr(seen)
    rotated = rotated.float()
    rows, rank = rotated.shape
    vectors = F.normalize(torch.randn(_STARTS, rank, generator=generator).to(rotated))
    for step in range(_STEPS):
        done = step / _STEPS
        width = _FIRST_WIDTH * (_LAST_WIDTH / _FIRST_WIDTH) ** done / rows**0.5
        uphill = torch.tanh(vectors @ rotated.T / width) @ rotated
        uphill = uphill - (uphill * vectors).sum(1, keepdim=True) * vectors
        length = _FIRST_STEP * (1 - done)
        vectors = F.normalize(vectors - length * F.normalize(uphill))
    return F.normalize(torch.linalg.solve_triangular(upper, vectors.double().T, upper=True).T)


def _lifted(columns: Tensor, chain: Tensor, vector: Tensor) -> Tensor:
    """Add multiples of the chain's vectors, from the last to the first: most rows then vanish."""
    for level in range(len(chain) - 1, -1, -1):
        is_left = _where_all_vanish(columns, chain[:level])
        known = columns @ chain[level]
        rows = is_left & ~_is_zero(known, _REFINED_ZERO)
        share = (-(columns[rows] @ vector) / known[rows]).sort().values
        width = max(1, int(_CLUSTER * len(share)))
        if len(share) <= width:
            continue
        spread = share[width:] - share[:-width]
        start = int(spread.argmin())
        vector = vector + share[start : start + width + 1].median() * chain[level]
    return vector


def refined(columns: Tensor, vector: Tensor) -> Tensor | None:
    """Return the vector that is orthogonal to all rows where a look at it is zero, of length 1.

    None if they are too few to tell.
    """
    for limit in (_ZERO, _REFINED_ZERO, _REFINED_ZERO):
        is_zero = _is_zero(columns @ vector, limit)
        if is_zero.sum() < max(columns.shape[1] - 1 + _SPARE, int(_SHARE * len(columns))):
            return None
        zero = columns[is_zero]
        vector = torch.linalg.eigh(zero.T @ zero).eigenvectors[:, 0]
    return vector
