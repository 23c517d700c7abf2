"""Rows of tables: how many of their features a reconstruction has right."""

import torch
from torch import Tensor

from lightning_recon.updates import Columns

TOLERANCE = 0.319
"""In standard deviations of a column: how near a number counts as right in TabLeak."""


def features(images: Tensor, columns: Columns) -> list[Tensor]:
    """Return the features of rows, each N times its number of places.

    Args:
        images: N C H W in [0, 1].
        columns: of the table.
    """
    flat = images.flatten(1)[:, : sum(columns.sizes)]
    return list(torch.split(flat, list(columns.sizes), dim=1))


def category_places(columns: Columns) -> list[Tensor]:
    """Return the places of each category's values, int64.

    Args:
        columns: of the table.

    Examples:
        >>> [places.tolist() for places in category_places(Columns((1, 3, 2), (0.1, 0.0, 0.0)))]
        [[1, 2, 3], [4, 5]]
    """
    each = torch.split(torch.arange(sum(columns.sizes)), list(columns.sizes))
    return [places for places in each if len(places) > 1]


def features_right(images: Tensor, truth: Tensor, columns: Columns) -> Tensor:
    """Return which features are right, N times features, bool.

    Vero, Balunović, Dimitrov, Vechev, "TabLeak: Tabular Data Leakage in Federated Learning", ICML
    2023: a category is right if its likeliest value is the true one, a number if it is within the
    tolerance.  Several values alike are no guess, and wrong.

    Args:
        images: N C H W in [0, 1].
        truth: N C H W in [0, 1].
        columns: of the table.

    Examples:
        >>> columns = Columns((1, 3), (0.1, 0.0))
        >>> truth = torch.tensor([[0.5, 0.0, 1.0, 0.0]]).view(1, 1, 2, 2)
        >>> guess = torch.tensor([[0.55, 0.4, 0.3, 0.3]]).view(1, 1, 2, 2)
        >>> features_right(guess, truth, columns).tolist()
        [[True, False]]
    """
    right = []
    pairs = zip(features(images, columns), features(truth, columns), strict=True)
    for tolerance, (found, true) in zip(columns.tolerances, pairs, strict=True):
        if found.shape[1] == 1:
            right.append(((found - true).abs() <= tolerance)[:, 0])
            continue
        is_best = found == found.amax(1, keepdim=True)
        right.append((is_best == (true > 0.5)).all(1))
    return torch.stack(right, 1)
