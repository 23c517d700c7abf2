"""A model that is run and stays as it was."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_recon.updates import Buffers, Update


def run_stateless(
    model: nn.Module,
    parameters: Update,
    images: Tensor,
    buffers: Buffers | None = None,
    **options: Any,
) -> Any:
    """Return what a model gives for images, without a change of its buffers.

    Batch norm writes its running statistics, a model with a counter counts: to a copy.

    Args:
        model: in the mode that it is to run in.
        parameters: that stand in for the model's own, by name.
        images: B C H W.
        buffers: all of the model's, that are read and written in place of its own; null: a copy
            for this call, inside ``vmap`` one for each batch.
        **options: of the model's ``forward``.

    Examples:
        >>> norm = nn.BatchNorm2d(3)
        >>> result = run_stateless(norm, {}, torch.ones(1, 3, 2, 2))
        >>> norm.running_mean
        tensor([0., 0., 0.])
    """
    if buffers is None:
        zero = torch.zeros_like(images[:1, :1, :1, :1].reshape(()))
        buffers = {name: buffer + zero.to(buffer.dtype) for name, buffer in model.named_buffers()}
    state = {**parameters, **buffers}
    result = functional_call(model, state, (images,), options)
    buffers.update({name: state[name] for name in buffers})  # of a model that puts new ones
    return result
