"""PyTorch: capture the updates of any training loop, and of DistributedDataParallel's processes."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_recon.captures import CaptureWriter, Kind
from lightning_recon.captures.tensors import as_tensors
from lightning_recon.errors import InputError
from lightning_recon.targets.names import in_order, partial_misfit, unwrapped

Tensors = Mapping[str, Any] | Sequence[Any] | nn.Module
"""Tensors or arrays by name, in the order of a model, or a module, whose ``state_dict`` counts."""
Hook = Callable[[Any, Any], torch.futures.Future[Tensor]]
"""What ``DistributedDataParallel.register_comm_hook`` takes."""


def record_update(
    folder: str | Path,
    *,
    before: Tensors | None = None,
    after: Tensors | None = None,
    gradients: Tensors | None = None,
    model: nn.Module | None = None,
    client: str | int = 0,
    number: int = 1,
    **facts: Any,
) -> Path:
    """Add what one client sent to a capture: its weights after training, or a gradient.

    A module's ``state_dict`` holds the module's own tensors: give a copy of it as ``before``, else
    training changes it, too.

    Args:
        folder: of the capture; is made if it is missing.
        before: what the client was sent; needed with ``after``.
        after: its weights after training.
        gradients: or the gradient that it sent; a module stands for its parameters' ``grad``.
        model: that has the names, where tensors come in an order.
        client: its identifier.
        number: of the round.
        **facts: what else is known, keys of :class:`~lightning_recon.captures.ReplyJson` such as
            ``learning_rate``, ``steps``, ``batch_size`` and ``image_shape``.

    Returns:
        The JSON file of the reply.

    Raises:
        InputError: if the arguments do not go together, or the tensors not with the model.
    """
    if (after is None) == (gradients is None):
        raise InputError("record_update takes after, with before, or gradients")
    if after is not None and before is None:
        raise InputError("record_update: after needs before, the weights that the client was sent")
    sent = _named(before, model, "before")
    if isinstance(gradients, nn.Module):
        gradients = _gradients_of(gradients)
    kind: Kind = "gradient" if after is None else "weights"
    given, what = (gradients, "gradients") if after is None else (after, "after")
    returned = _named(given, model, what)
    if sent and (problem := partial_misfit(returned, sent)):
        raise InputError(f"record_update: {what} does not fit before: {problem}")
    writer = CaptureWriter(folder, f"torch {torch.__version__}")
    payload = writer.add_payload(sent) if sent else None
    return writer.add_reply(number, client, returned, kind, payload, **facts)


def recording_hook(
    folder: str | Path,
    model: nn.Module,
    *,
    client: str | int | None = None,
    num_steps: int = 1,
    process_group: Any = None,
    **facts: Any,
) -> Hook:
    """Return a communication hook of DistributedDataParallel that records what a process sends.

    What is recorded is the process' own gradient, of its share of the batch, as it is before the
    processes average: what one participant of the reduction gives away.  The reduction is then
    torch's own (``allreduce_hook``), and training goes on unchanged.  A step is a round, the
    process a client, and the model's ``state_dict`` at that time its payload; running statistics
    in it are those after the forward pass of that step.

    Examples::

        ddp = DistributedDataParallel(net)
        ddp.register_comm_hook(None, recording_hook("capture", ddp))

    Args:
        folder: of the capture, which all processes see.
        model: the model, wrapped or not; its parameters have the names.
        client: identifier of this process; null: its rank.
        num_steps: that are recorded, from the next one on; later ones cost nothing.
        process_group: of the reduction; null: all processes.
        **facts: as in :func:`record_update`.

    Raises:
        InputError: if ``num_steps`` is below 1.
    """
    # here, for some builds of torch have none of it
    from torch import distributed
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    if num_steps < 1:
        raise InputError(f"recording_hook: num_steps must be at least 1, not {num_steps}")
    names = {id(part): unwrapped(name) for name, part in model.named_parameters()}
    gradients: dict[str, Tensor] = {}
    number = 1

    def hook(
        state: Any,
        bucket: distributed.GradBucket,  # type: ignore[name-defined]
    ) -> torch.futures.Future[Tensor]:
        nonlocal number
        if number <= num_steps:
            for part, gradient in zip(bucket.parameters(), bucket.gradients(), strict=True):
                gradients[names[id(part)]] = gradient.detach().clone()
            if bucket.is_last():
                record_update(
                    folder,
                    before=model,
                    # what is not trained is in no bucket
                    gradients={n: gradients[n] for n in names.values() if n in gradients},
                    client=distributed.get_rank(process_group) if client is None else client,
                    number=number,
                    **facts,
                )
                gradients.clear()
                number += 1
        averaged: torch.futures.Future[Tensor] = allreduce_hook(process_group, bucket)
        return averaged

    return hook


def _gradients_of(model: nn.Module) -> dict[str, Tensor]:
    """Return what the parameters hold as their gradients; zeros for a part that plays none."""
    trained = {name: part for name, part in model.named_parameters() if part.requires_grad}
    if all(part.grad is None for part in trained.values()):
        raise InputError("record_update: the model holds no gradients; call backward() first")
    return {
        name: torch.zeros_like(part) if part.grad is None else part.grad
        for name, part in trained.items()
    }


def _named(given: Tensors | None, model: nn.Module | None, what: str) -> dict[str, Tensor]:
    """Return tensors by name, without what wrappers put into names."""
    if given is None:
        return {}
    if isinstance(given, nn.Module):
        given = given.state_dict()
    if not isinstance(given, Mapping):
        if model is None:
            raise InputError(f"record_update: {what} comes in an order; give the model, too")
        given = in_order(model, given, what)
    return as_tensors({unwrapped(str(name)): value for name, value in given.items()})
