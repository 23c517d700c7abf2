"""Candidates of smooth networks: guesses are moved until their slopes lie in the columns' span.

Behind GELUs, sigmoids and the like no slope is 0: no row shows a sample, and none is sparse.  But
the slopes of an image change smoothly with it.  A guess x, of :mod:`.independence`, has the right
label and lies in the span of the rows, of r dimensions; that its slopes lie in that of the columns
is K - r equations for its r - 1 unknowns, solved by Gauss-Newton steps, each image by itself.

This is ours.  The candidate has then used r - 1 of the equations that its certificate counts; with
many more rows than samples the others suffice, and the test of the pixels is untouched.
"""

import torch
from torch import Tensor

from lightning_recon.attacks.exact.certificate import Spans
from lightning_recon.attacks.exact.slopes import SlopeModel

_STEPS = 12
_DAMPING = 1e-3  # of the mean diagonal at first, a tenth after every step
_DENSE = 0.05  # share of slopes that may be 0
_PART = 32  # images at a time


def is_smooth(slopes: Tensor) -> bool:
    """Return whether slopes, N K, are nearly nowhere 0."""
    return bool((slopes == 0).double().mean() <= _DENSE)


def moved_images(spans: Spans, model: SlopeModel, images: Tensor, labels: Tensor) -> Tensor:
    """Return images whose slopes lie in the span of the columns, as far as steps lead, N D.

    Args:
        spans: of the update.
        model: the payload.
        images: N D in [0, 1].
        labels: N, int64.
    """
    parts = zip(torch.split(images, _PART), torch.split(labels, _PART), strict=True)
    return torch.cat([_moved(spans, model, *part) for part in parts])


def _moved(spans: Spans, model: SlopeModel, images: Tensor, labels: Tensor) -> Tensor:
    ways = spans.rows[:, :-1]
    if spans.constant:  # along which the bias stays 1
        last = spans.rows[:, -1:]
        ways = torch.linalg.qr(last, mode="complete").Q[:, 1:].T @ ways
    images = spans.project(images)
    black = torch.zeros_like(images[:1])
    along = model.outputs(ways) - model.outputs(black)  # (r - 1) K
    damping = _DAMPING
    for _ in range(_STEPS):
        slopes, changes = model.slopes_and_changes(images, labels, along)
        size = slopes.norm(dim=1, keepdim=True)
        outside = _outside(slopes / size, spans.columns)  # N K
        changed = _outside(changes / size[:, None], spans.columns)  # N (r - 1) K
        normal = changed @ changed.mT
        mean = normal.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
        normal = normal + damping * mean * torch.eye(len(ways)).to(normal)
        step = torch.linalg.solve_ex(normal, changed @ outside[:, :, None]).result[:, :, 0]
        images = images - step.nan_to_num() @ ways
        damping = damping / 10
    return images


def _outside(vectors: Tensor, columns: Tensor) -> Tensor:
    return vectors - vectors @ columns @ columns.T
