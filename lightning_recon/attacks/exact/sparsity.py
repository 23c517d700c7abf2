"""Candidates from low rank and sparsity, where no row of the gradient holds a single sample.

Dimitrov, Baader, Müller, Vechev, "SPEAR: Exact Gradient Inversion of Batches in Federated
Learning", NeurIPS 2024, arXiv 2403.03945.

The slopes d_i of every sample lie in the span of the gradient's columns, U of K x r, and behind a
ReLU about half of each are zero.  So d_i = U q_i, and q_i is orthogonal to the rows of U where the
sample is shut out.  Of r - 1 rows drawn at random all shut one sample out with a probability of
about 2^(1 - r); then the vector that is orthogonal to them is q_i, and shows by many more zeros
than the r - 1 that any vector has.  With all r of them, the samples are the rows of Q^-1 S V of the
decomposition G = U S V.

What differs: on the rows that shut a found sample out, the others span one dimension less, so that
the next is found with half the draws; what it is on the remaining rows follows from the share at
which the most of them vanish.  The paper ends by the sparsity of all; here every image is put to
the test of :mod:`.certificate`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_RANK = 24
"""Samples, above which no draw is tried: the draws double with each."""
MAX_DRAWS = 2**19  # of few samples 2^(r + 6)
_PART = 2**11  # draws at a time
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


def sparse_images(
    columns: Tensor, strengths: Tensor, rows: Tensor, generator: torch.Generator
) -> Tensor:
    """Return the samples of a gradient U S V as they come, r D; none if not all were found.

    Args:
        columns: U, K r, orthonormal.
        strengths: S, r.
        rows: V, r (D + 1), the last column that of the bias.
        generator: of the draws, on the CPU.
    """
    rank = len(strengths)
    empty = rows.new_zeros(0, rows.shape[1] - 1)
    if not 2 <= rank <= MAX_RANK:
        return empty
    size = columns.norm(dim=1)
    found = sparse_directions(columns[size > _EMPTY * size.max()], generator)
    if len(found) < rank:
        return empty
    samples = torch.linalg.solve(found.T, strengths[:, None] * rows)
    images: Tensor = samples[:, :-1] / samples[:, -1:]
    return images[images.isfinite().all(1)]


def sparse_directions(columns: Tensor, generator: torch.Generator) -> Tensor:
    """Return the vectors q of which U q has many zeros, at most r, each of length 1: R r.

    Args:
        columns: U, K r, no row of it zero.
        generator: of the draws, on the CPU.
    """
    rank = columns.shape[1]
    found = columns.new_zeros(0, rank)
    draws, most = 0, min(MAX_DRAWS, 2 ** (rank + 6))
    while len(found) < rank and draws < most:
        order = torch.randperm(len(found), generator=generator)
        chain = _chain(columns, found[order.to(found.device)])
        draws += _PART
        for vector in _draw(columns, chain, found, generator):
            lifted = refined(columns, _lifted(columns, chain, vector))
            if lifted is not None:
                found = _with(columns, found, lifted)
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


def _draw(
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
    order = torch.rand(_PART, len(seen), generator=generator).topk(rank - 1, dim=1).indices
    drawn = seen[order.to(seen.device)]  # T (r - 1) r
    solved, wrong = torch.linalg.solve_ex(drawn[:, :, :-1], -drawn[:, :, -1:])
    vectors = torch.cat([solved[:, :, 0], torch.ones_like(solved[:, :1, 0])], 1)
    vectors = vectors[(wrong == 0) & vectors.isfinite().all(1)]
    vectors = F.normalize(vectors)
    known = F.normalize(found @ basis)  # those of the chain are nothing there
    vectors = vectors[~((vectors @ known.T).abs() > _SAME).any(1)]
    zeros = _is_zero(seen @ vectors.T, _ZERO).sum(0)
    least = max(rank - 1 + _SPARE, int(_SHARE * len(seen)))
    best = zeros.argsort(descending=True)[:_LOOKS]
    return [basis @ vectors[place] for place in best[zeros[best] >= least].tolist()]


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
