"""The means and variances that batch norm is known to see, from its running statistics.

A layer in training mode keeps running <- (1 - m) running + m batch, m its momentum.  A server that
gets a client's buffers back knows them before and after, and solves for those of the batch.  The
mean of a batch is that over samples and places, its variance the unbiased one.

That is the setting of Yin et al., "See through Gradients: Image Batch Recovery via GradInversion",
CVPR 2021, where the batch's own statistics are matched; without the buffers those of the training
data have to do, as in their "Dreaming to Distill", CVPR 2020.
"""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_recon.updates import Buffers


def batch_statistics(payload: nn.Module, buffers: Buffers | None = None) -> Buffers:
    """Return for every batch norm the best known mean and variance of what a client's batch gives.

    Where the client's buffers tell, they are the batch's own: exact for one local step, up to
    float32, whose error is divided by m.  Over T local steps they are the mean of all, in which
    step t counts m (1 - m)^(T - t), scaled to the sum 1 (1 / T for a momentum of null); T is what
    ``num_batches_tracked`` grew by.  Elsewhere they are the payload's running ones; a layer whose
    running means are all 0 never saw a batch, and is left out.

    Args:
        payload: the model that the server sent, with the buffers that it sent.
        buffers: all of them, by name, as the client left them; null: not known.

    Returns:
        ``running_mean`` and ``running_var``, C each, by the names of the payload's buffers.

    Examples:
        >>> import torch
        >>> norm = nn.BatchNorm1d(1, momentum=0.1)
        >>> after = {"running_mean": torch.tensor([0.3]), "running_var": torch.tensor([1.1])}
        >>> after["num_batches_tracked"] = torch.tensor(1)
        >>> batch_statistics(norm, after)
        {'running_mean': tensor([3.]), 'running_var': tensor([2.0000])}
        >>> batch_statistics(norm)
        {}
    """
    found: Buffers = {}
    for name, layer in payload.named_modules():
        if not isinstance(layer, _BatchNorm) or layer.running_mean is None:
            continue
        prefix = f"{name}." if name else ""
        num_after = 0 if buffers is None else int(buffers[f"{prefix}num_batches_tracked"])
        kept = _share_kept(layer, num_after)
        for kind in ("running_mean", "running_var"):
            before = getattr(layer, kind)
            if buffers is not None and kept < 1:
                found[prefix + kind] = (buffers[prefix + kind] - kept * before) / (1 - kept)
            elif layer.running_mean.any():
                found[prefix + kind] = before
    return found


def _share_kept(layer: _BatchNorm, num_after: int) -> float:
    """Return the share of the former running statistics in the new ones; 1 without a new batch."""
    num_before = int(layer.num_batches_tracked or 0)
    if num_after <= num_before:
        return 1.0
    if layer.momentum is None:
        return num_before / num_after
    return float((1 - layer.momentum) ** (num_after - num_before))
