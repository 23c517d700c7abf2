"""What a mechanism leaves as it is, of the tensors of a model."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_recon.functional.stateless import sent_buffers
from lightning_recon.lint.facts import Channel, Facts, Finding
from lightning_recon.targets.importing import imported_module, json_arguments

_FEW = 4


def made_model(name: str, arguments: str | None) -> nn.Module:
    """Return a user's model, of random weights.

    Args:
        name: ``package.module:Net``.
        arguments: JSON; null: none.

    Raises:
        InputError: if it cannot be made.
    """
    return imported_module(name, json_arguments(arguments))()


def sent_tensors(model: nn.Module, facts: Facts) -> dict[str, torch.Tensor]:
    """Return what a client sends: the parameters, and the buffers where it sends those."""
    sent: dict[str, Any] = dict(model.named_parameters())
    if facts.sends == "state_dict":
        sent |= sent_buffers(model)
    return {name: tensor.detach() for name, tensor in sent.items()}


def num_numbers(model: nn.Module, facts: Facts) -> int:
    """Return how many floating-point numbers a client sends."""
    sent = sent_tensors(model, facts).values()
    return sum(tensor.numel() for tensor in sent if tensor.is_floating_point())


def model_findings(model: nn.Module, channel: Channel, facts: Facts) -> list[Finding]:
    """Return what a mechanism leaves open in a model.

    Args:
        model: that the clients train.
        channel: of the mechanism.
        facts: of the federation.
    """
    sent = sent_tensors(model, facts)
    found = [*_excluded(sent, channel), *_scalars(sent, channel)]
    if channel.unprotected.counts_buffers:
        found += _buffers(model, sent, channel, facts)
    return found


def _scalars(sent: dict[str, torch.Tensor], channel: Channel) -> list[Finding]:
    """Return the tensors of no dimension, and those of whole numbers, that pass as they are."""
    unprotected = channel.unprotected
    found = []
    scalars = {name: tensor for name, tensor in sent.items() if tensor.ndim == 0}
    floats = [name for name, tensor in scalars.items() if tensor.is_floating_point()]
    counts = [name for name in scalars if name not in floats]
    how = "unclipped and without noise" if unprotected.unnoised else "unclipped"
    if unprotected.unclipped and floats:
        text = f"{_named(floats)}: a tensor of no dimension passes {how}; give it the shape (1,)"
        found.append(Finding("error", "scalar-unprotected", text))
    if unprotected.unclipped and counts:
        text = (
            f"{_named(counts)}: whole numbers pass {how}, and tell how many batches the client "
            "has trained on; send parameters alone, or use a norm without counters"
        )
        found.append(Finding("error", "integer-buffer", text))
    arrays = [n for n, tensor in sent.items() if tensor.ndim and not tensor.is_floating_point()]
    if unprotected.fails_on_integers and arrays:
        text = f"{_named(arrays)}: arrays of whole numbers cannot be scaled, and stop the clipping"
        found.append(Finding("warning", "integer-array", text))
    return found


def _excluded(sent: dict[str, torch.Tensor], channel: Channel) -> list[Finding]:
    """Return which part of a model is still sent, where names are left out."""
    left = [name for name in sent if not channel.unprotected.names(name)]
    if len(left) == len(sent):
        codes = {one.code for one in channel.findings}
        if "selection-is-not-privacy" not in codes:
            return []
        text = f"no tensor of the model is excluded; it has {_named(sent)}"
        return [Finding("error", "excludes-nothing", text)]
    total = sum(tensor.numel() for tensor in sent.values())
    share = sum(sent[name].numel() for name in left) / total
    text = f"{share:.1%} of the numbers are sent as they are, in {len(left)} of {len(sent)} tensors"
    return [Finding("note", "still-sent", text)]


def _buffers(
    model: nn.Module, sent: dict[str, torch.Tensor], channel: Channel, facts: Facts
) -> list[Finding]:
    """Return what batch norm's buffers do to the norm that is clipped."""
    norms = [name for name, part in model.named_modules() if isinstance(part, _BatchNorm)]
    counters = [name for name in sent if name.endswith("num_batches_tracked")]
    statistics = [name for name in sent if name.endswith(("running_mean", "running_var"))]
    if not norms or not (counters or statistics):
        return []
    text = (
        f"the buffers of {len(norms)} batch norms stand in the update that is clipped: their "
        "statistics take what they move of the norm"
    )
    if counters and channel.clip_norm is not None:
        steps = facts.steps or 1
        norm = steps * math.sqrt(len(counters))
        share = channel.clip_norm / math.hypot(norm, channel.clip_norm)
        text += (
            f", and their counters alone have a norm of {norm:.3g} after {steps} "
            f"step{'s' if steps > 1 else ''}: of a clip of {channel.clip_norm:g} an update of that "
            f"norm keeps {share:.1%} of its length, and the counters pass whole"
        )
    return [Finding("warning", "buffers-eat-the-clip", text)]


def _named(names: Iterable[str]) -> str:
    names = list(names)
    left = len(names) - _FEW
    return ", ".join(names[:_FEW]) + (f" and {left} more" if left > 0 else "")
