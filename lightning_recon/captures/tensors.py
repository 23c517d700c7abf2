"""Named tensors as safetensors: bit for bit, in their order, and never unpickled."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lightning_recon.documents import parse_json
from lightning_recon.errors import InputError

Arrays = Mapping[str, Any]
"""Tensors, or what numpy takes for an array, by name."""


def as_tensors(arrays: Arrays) -> dict[str, Tensor]:
    """Return contiguous copies on the CPU, of the type that they have.

    Args:
        arrays: tensors on any device, or arrays, of any shape and type that torch knows.

    Raises:
        InputError: if one cannot be a tensor.
    """
    return {str(name): _as_tensor(str(name), value) for name, value in arrays.items()}


def _as_tensor(name: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().cpu().clone(memory_format=torch.contiguous_format)
    try:
        return torch.from_numpy(np.array(value, order="C"))
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} is a {type(value).__name__}, and no array of numbers") from error


def packed(tensors: Mapping[str, Tensor]) -> bytes:
    """Return the bytes of a safetensors file that remembers the order of the names.

    Args:
        tensors: contiguous, on the CPU.
    """
    return save(dict(tensors), metadata={"names": json.dumps(list(tensors))})


def names_in(path: Path) -> list[str]:
    """Return the names in a safetensors file, in the order in which they were written.

    Args:
        path: the file; one that others wrote has the order of its header.

    Raises:
        InputError: if it is missing, truncated, or no safetensors file.
    """
    return list(_read(path, with_tensors=False))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, in the order of :func:`names_in`.

    Args:
        path: the file.

    Raises:
        InputError: if it is missing, truncated, or no safetensors file.
    """
    return _read(path, with_tensors=True)


def _read(path: Path, *, with_tensors: bool) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"no file at {path}")
    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            order = parse_json((file.metadata() or {}).get("names", "[]"))
            found = {name: file.get_tensor(name) if with_tensors else None for name in names}
    except (SafetensorError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is truncated or no safetensors file: {reason}") from error
    if not isinstance(order, list) or sorted(map(str, order)) != sorted(names):
        order = names
    return {name: found[name] for name in order}
