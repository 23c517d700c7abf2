"""Which of many candidates a reconstruction shows: the nearest neighbour.

PSNR asks how good the picture is; this asks whether it tells whose it is.  A blurred thumbnail may
identify its original among thousands, and a sharp picture invented by a prior may not.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_CHUNK = 1024  # candidates compared at a time, to bound the memory
_SAME = 1e-9  # relative: squared distances that differ by less are the same but for rounding


def nearest_candidate(
    reconstructions: Tensor,
    candidates: Tensor,
    masks: Tensor | None = None,
    size: int = 32,
) -> Tensor:
    """Return the candidate nearest to each reconstruction, by squared error of their thumbnails.

    Args:
        reconstructions: R C H W.
        candidates: N C h w; of another size than the reconstructions where both come to the same
            thumbnails (so that they may be kept as thumbnails).
        masks: R 1 H W, bool: the subjects of client images that are 0 elsewhere.  Only thumbnail
            pixels that lie wholly within are compared, since the candidates have no masks; where
            there is none, each counts as much as it holds of the subject.  An empty mask stands
            for the whole image.
        size: longest side of a thumbnail, in pixels, see :func:`thumbnails`.

    Returns:
        R, int64: the candidate's place, or -1 for a tie of several or a reconstruction that holds
        a NaN or an infinity.  A tie identifies nobody: a flat gray image is no evidence.

    Raises:
        ValueError: if the thumbnails' shapes disagree, or there are no candidates.

    Examples:
        >>> import torch
        >>> candidates = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        >>> nearest_candidate(0.9 * candidates[[4, 2]], candidates)
        tensor([4, 2])
        >>> nearest_candidate(candidates[[1]], candidates[[0, 1, 1]])
        tensor([-1])
    """
    small, small_candidates = thumbnails(reconstructions, size), thumbnails(candidates, size)
    if small.shape[1:] != small_candidates.shape[1:]:
        raise ValueError(
            f"thumbnails of the reconstructions, {tuple(small.shape[1:])}, and of the candidates, "
            f"{tuple(small_candidates.shape[1:])}, must have one shape"
        )
    weights = None
    if masks is not None:
        area = F.adaptive_avg_pool2d(masks.double(), (small.shape[2], small.shape[3]))
        inside = (area > 1 - 1e-6).double()
        for choice in (area, torch.ones_like(area)):
            is_empty = ~inside.flatten(1).any(dim=1)
            inside = torch.where(is_empty[:, None, None, None], choice, inside)
        weights = inside.expand_as(small).flatten(1)
    return nearest_neighbour(small.flatten(1), small_candidates.flatten(1), weights)


def nearest_neighbour(
    queries: Tensor,
    points: Tensor,
    weights: Tensor | None = None,
    allowed: Tensor | None = None,
) -> Tensor:
    """Return the point nearest to each query, by squared Euclidean distance.

    Distances are taken in float64 by subtraction, one query and 1024 points at a time, so that no
    more than R N of them and some tens of MB are held.

    Args:
        queries: R D.
        points: N D.
        weights: R D, of each query's squared differences; by default 1.
        allowed: R N, bool: the points that come into question; by default all.

    Returns:
        R, int64: the point's place, or -1 where several are nearest, none is allowed, or the
        query is not finite.

    Raises:
        ValueError: if the shapes disagree, or there are no points.

    Examples:
        >>> import torch
        >>> points = torch.tensor([[0.0], [1.0], [3.0]])
        >>> nearest_neighbour(torch.tensor([[2.9], [0.5]]), points)
        tensor([ 2, -1])
    """
    if queries.ndim != 2 or points.ndim != 2 or queries.shape[1] != points.shape[1]:
        raise ValueError(
            f"queries and points must be R D and N D; got {tuple(queries.shape)} and "
            f"{tuple(points.shape)}"
        )
    if len(points) == 0:
        raise ValueError("there are no candidates to choose from")
    queries = queries.double()
    parts = [_distances(queries, part.to(queries), weights) for part in torch.split(points, _CHUNK)]
    nearest = torch.full((len(queries),), -1, dtype=torch.int64, device=queries.device)
    for place, distances in enumerate(torch.cat(parts, dim=1)):
        if allowed is not None:
            distances = distances.where(allowed[place].to(distances.device), torch.inf)
        least = distances.min()
        if least.isfinite() and (distances <= least * (1 + _SAME)).sum() == 1:
            nearest[place] = distances.argmin()
    return nearest


def thumbnails(images: Tensor, size: int = 32) -> Tensor:
    """Shrink images by averaging over areas; smaller ones stay as they are.

    Args:
        images: B C H W.
        size: longest side of the result, in pixels.

    Returns:
        B C h w, float64.

    Examples:
        >>> import torch
        >>> thumbnails(torch.ones(2, 3, 64, 48)).shape
        torch.Size([2, 3, 32, 24])
    """
    height, width = images.shape[-2:]
    scale = min(1.0, size / max(height, width))
    shape = (max(1, round(height * scale)), max(1, round(width * scale)))
    # in parts: the large images are never all held in float64 at once
    small = [F.adaptive_avg_pool2d(part.double(), shape) for part in torch.split(images, 64)]
    return torch.cat(small)


def _distances(queries: Tensor, points: Tensor, weights: Tensor | None) -> Tensor:
    """Return the weighted squared distances, R N, of R D queries to N D points."""
    rows = queries.new_empty(len(queries), len(points))
    for place, query in enumerate(queries):
        squares = (points - query).square_()
        rows[place] = squares.sum(dim=1) if weights is None else squares @ weights[place].to(query)
    return rows
