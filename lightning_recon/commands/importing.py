"""The command ``import``: what a client was sent and sent back, from files to a capture."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_recon.captures import CaptureWriter, Kind
from lightning_recon.captures.loading import load_arrays
from lightning_recon.captures.tensors import as_tensors
from lightning_recon.errors import InputError
from lightning_recon.files import expanded
from lightning_recon.targets.importing import imported_module, json_arguments
from lightning_recon.targets.names import (
    in_order,
    partial_misfit,
    under_wanted_names,
    unwrapped,
    weights_in,
)

_LEAST = {"round": 0, "steps": 1, "batch_size": 1, "num_examples": 1}
_FACTS = ("learning_rate", "steps", "batch_size", "num_examples", "image_shape")


def import_update(options: Any) -> str:
    """Add one client's update to a capture, and return what is to be printed.

    Args:
        options: of the command, by name.

    Raises:
        InputError: if something cannot be used; nothing is written then.
    """
    _check(options)
    model = None
    if options.model is not None:
        model = imported_module(options.model, json_arguments(options.model_args))()
    notes: list[str] = []
    before = None if options.before is None else _read(options.before, model, notes)
    path = options.after if options.gradient is None else options.gradient
    sent = _read(path, model, notes)
    if before is not None:
        sent = under_wanted_names(sent, before.keys())
        _check_pair(before, sent, path, is_gradient=options.gradient is not None)

    client = Path(path).stem if options.client is None else options.client
    writer = CaptureWriter(expanded(options.output), "files, by the command import")
    payload = None if before is None else writer.add_payload(before)
    kind: Kind = "weights" if options.gradient is None else "gradient"
    facts = {name: getattr(options, name) for name in _FACTS if getattr(options, name) is not None}
    written = writer.add_reply(options.round, client, sent, kind, payload, **facts)
    types = _types([*sent.values(), *(before or {}).values()])
    return "\n".join(
        [
            f"client {client}, round {options.round}: {kind}, {len(sent)} tensors",
            f"types    {types}, kept as they are",
            *(f"note     {note}" for note in dict.fromkeys(notes)),
            f"outputs  {written}",
        ]
    )


def _check(options: Any) -> None:
    """Raise InputError unless the options go together and lie in their ranges."""
    if (options.after is None) == (options.gradient is None):
        raise InputError(
            "give what the client sent back, as --before W0 --after W1 or as --gradient G"
        )
    if options.after is not None and options.before is None:
        raise InputError("--after needs --before, the weights that the client was sent")
    for name, least in _LEAST.items():
        value = getattr(options, name)
        if value is not None and value < least:
            option = name.replace("_", "-")
            raise InputError(f"--{option} must be at least {least}, not {value}")
    rate = options.learning_rate
    if rate is not None and not 0 < rate < math.inf:
        raise InputError(f"--learning-rate must be a number above 0, not {rate}")
    if options.image_shape is not None and min(options.image_shape) < 1:
        raise InputError(f"--image-shape must hold numbers from 1, not {options.image_shape}")
    if options.model is None and options.model_args is not None:
        raise InputError("--model-args are those of --model, which is missing")


def read_named(file: Path, model: nn.Module | None) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors of a file by name, and the names of what is no tensor.

    Args:
        file: a state dict, a checkpoint or arrays.
        model: has the names of arrays that come without; null: there is none.

    Raises:
        InputError: if the file cannot be read, or has no tensors by name.
    """
    content = load_arrays(file)
    if isinstance(content, list | tuple):
        if model is None:
            raise InputError(
                f"{file} holds {len(content)} arrays without names, as Flower hands them around; "
                "give the model that has the names, --model package.module:Net"
            )
        content = in_order(model, content, str(file))
    found = weights_in(content)
    if not found:
        raise InputError(f"{file} holds no tensors by name; save the model's state_dict() to it")
    tensors = {name: part for name, part in found.items() if hasattr(part, "shape")}
    return as_tensors(tensors), [name for name in found if name not in tensors]


def _read(path: str, model: nn.Module | None, notes: list[str]) -> dict[str, Tensor]:
    """Return the tensors of a file, by the names of the model or without those of wrappers."""
    file = expanded(path)
    tensors, left = read_named(file, model)
    if left:
        notes.append(f"left out, for it is no tensor: {', '.join(left[:3])}")
    if model is None:
        bare = {unwrapped(name): part for name, part in tensors.items()}
        return bare if len(bare) == len(tensors) else tensors
    known = model.state_dict()
    tensors = under_wanted_names(tensors, known.keys())
    if problem := partial_misfit(tensors, known):
        raise InputError(f"{file} does not fit the model: {problem}")
    return tensors


def _check_pair(
    before: Mapping[str, Tensor], sent: Mapping[str, Tensor], path: str, *, is_gradient: bool
) -> None:
    """Raise InputError unless what was sent answers what was sent out."""
    if problem := partial_misfit(sent, before):
        raise InputError(f"{expanded(path)} does not fit what the client was sent: {problem}")
    if not is_gradient and all(torch.equal(part, before[name]) for name, part in sent.items()):
        raise InputError(
            f"{expanded(path)} holds the same numbers as what the client was sent: it has not been "
            "trained; give the weights that came back"
        )


def _types(tensors: Iterable[Tensor]) -> str:
    names = dict.fromkeys(str(tensor.dtype).removeprefix("torch.") for tensor in tensors)
    return ", ".join(names)
