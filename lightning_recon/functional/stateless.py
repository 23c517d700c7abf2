"""A model that is run and stays as it was."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.hooks import RemovableHandle

from lightning_recon.updates import Buffers, Update


@contextmanager
def left_as_found(
    model: nn.Module, *, training: bool | None = None, keeps_buffers: bool = False
) -> Iterator[list[RemovableHandle]]:
    """Within this context a model may be run, hooked and changed in mode; then all comes back.

    Args:
        model: whose layers' modes are as they were at the end, each its own.
        training: the mode within the context; None: the modes as they are.
        keeps_buffers: whether the buffers' values come back as well, for a model that is not run
            by :func:`run_stateless`.

    Yields:
        A list for the handles of hooks; these are removed.

    Examples:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2).eval())
        >>> with left_as_found(model, training=True, keeps_buffers=True) as hooks:
        ...     hooks.append(model[0].register_forward_hook(lambda *_: None))
        ...     _ = model(torch.rand(3, 2))
        >>> model.training, model[1].training, model[1].num_batches_tracked.item()
        (True, False, 0)
        >>> len(model[0]._forward_hooks)
        0
    """
    modes = {module: module.training for module in model.modules()}
    kept = {name: part.clone() for name, part in model.named_buffers()} if keeps_buffers else {}
    if training is not None and any(mode != training for mode in modes.values()):
        model.train(training)  # slow, and within fit it is asked for at every iteration
    hooks: list[RemovableHandle] = []
    try:
        yield hooks
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            if module.training != mode:
                module.training = mode
        with torch.no_grad():
            for name, buffer in model.named_buffers() if kept else ():
                buffer.copy_(kept[name])


@contextmanager
def watched(layers: Iterable[nn.Module]) -> Iterator[dict[nn.Module, Tensor]]:
    """Within this context a forward pass puts aside what some layers see.

    Args:
        layers: of the model that is run.

    Yields:
        The first input of each layer, of the last time that it ran.
    """
    seen: dict[nn.Module, Tensor] = {}

    def record(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen[layer] = inputs[0]

    hooks = [layer.register_forward_pre_hook(record) for layer in layers]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def sent_buffers(model: nn.Module) -> Buffers:
    """Return the buffers that a model's ``state_dict`` holds, by name: those that clients send.

    Constants that a model keeps for itself, such as the mean and standard deviation by which it
    normalises (``persistent=False``), are not among them.
    """
    stored = model.state_dict(keep_vars=True)
    return {name: buffer for name, buffer in model.named_buffers() if name in stored}


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
