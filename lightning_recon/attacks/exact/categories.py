"""Candidates from categories: rows of a table whose entries are 0 or 1.

Where a table's encoding is one-hot, a sample is a point of the gradient's row space, r dimensions,
at which every category holds one 1 and zeros.  The 1 of the bias and r - 1 independent places of
categories settle it.  Of one category these places can be filled in one way more than there are
places, so that the ways of all are a product of few small numbers; those are kept at which all
other places are 0 or 1 too, and every category has one value.  That is linear algebra and a table
of few lines, no search for a likely row; the slopes have no part in it, and are left for
:mod:`.certificate`.
"""

from itertools import chain

import torch
from torch import Tensor

from lightning_recon.functional.tables import category_places
from lightning_recon.updates import Columns

MAX_WAYS = 2**20
"""Ways to fill the independent places, above which none is tried."""
_NEAR = 0.02  # by which a 0 or a 1 may be off
_LEAST = 1e-5  # of a column that is independent of others, beside the longest
_PART = 2**13  # ways at a time


def rows_of_categories(rows: Tensor, columns: Columns) -> Tensor:
    """Return the points of a row space that are rows of a table, N D; none if that cannot be told.

    Args:
        rows: r (D + 1), orthonormal, the last column that of the bias.
        columns: of the table.
    """
    empty = rows.new_zeros(0, rows.shape[1] - 1)
    groups = [group.to(rows.device) for group in category_places(columns)]
    if not groups or not len(rows):
        return empty
    chosen = _independent(rows, groups)
    ways = 1
    for places in chosen:
        ways *= len(places) + 1
    settled = torch.tensor([rows.shape[1] - 1, *chain.from_iterable(chosen)], device=rows.device)
    if len(settled) < len(rows) or ways > MAX_WAYS:  # categories alone do not tell samples apart
        return empty
    solve = torch.linalg.inv(rows[:, settled])  # of w rows at the settled places
    found = []
    for first in range(0, ways, _PART):
        way = torch.arange(first, min(first + _PART, ways), device=rows.device)
        points = _filled(way, [len(places) for places in chosen]).to(rows) @ solve @ rows
        found.append(points[_are_rows(points, groups)][:, :-1])
    return torch.cat(found)


def _independent(rows: Tensor, groups: list[Tensor]) -> list[list[int]]:
    """Return the places that settle a point beside the bias, those of one category together.

    The categories of most values come first: they settle most dimensions for the fewest ways.
    """
    left = rows.clone()
    size = rows.norm(dim=0)
    least = _LEAST * float(size[torch.cat(groups)].max())
    rank = 0

    def take(place: int) -> None:
        nonlocal left, rank
        direction = left[:, place] / left[:, place].norm()
        left = left - torch.outer(direction, direction @ left)
        rank += 1

    take(rows.shape[1] - 1)
    chosen: list[list[int]] = []
    for group in sorted(groups, key=lambda group: -int((size[group] > least).sum())):
        places: list[int] = []
        while rank < len(rows):
            apart = left[:, group].norm(dim=0)
            if apart.max() <= least:
                break
            places.append(int(group[apart.argmax()]))
            take(places[-1])
        chosen.append(places)
    return chosen


def _filled(way: Tensor, sizes: list[int]) -> Tensor:
    """Return 1 for the bias and, of each category, a 1 at one of its places or none: N r."""
    parts = [torch.ones(len(way), 1, dtype=torch.bool, device=way.device)]
    for size in sizes:
        parts.append((way % (size + 1))[:, None] == torch.arange(size, device=way.device))
        way = way // (size + 1)
    return torch.cat(parts, 1)


def _are_rows(points: Tensor, groups: list[Tensor]) -> Tensor:
    """Return at which points, N (D + 1), every category has one value, N, bool."""
    fits = torch.ones(len(points), dtype=torch.bool, device=points.device)
    for group in groups:
        values = points[:, group]
        off = torch.minimum(values.abs(), (values - 1).abs()).amax(1)
        fits &= (off <= _NEAR) & ((values > 0.5).sum(1) == 1)
    return fits
