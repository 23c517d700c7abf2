"""Reads what other programs wrote: tensors and arrays in files of torch, numpy and safetensors."""

import itertools
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightning_recon.captures.tensors import read_tensors
from lightning_recon.errors import InputError
from lightning_recon.files import spoiled

SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".npz")
"""Of the files that :func:`load_arrays` reads."""
_KINDS = "?bhilqBHILQefd"  # of numpy's arrays that are numbers


def load_torch(path: Path, kind: str = "file of tensors") -> Any:
    """Return what ``torch.save`` wrote, on the CPU: tensors, arrays of numbers, plain values.

    Args:
        path: the file.
        kind: what it should be, for the message.

    Raises:
        InputError: if it is missing or broken, or holds anything that would have to be unpickled.
    """
    if not path.is_file():
        raise InputError(f"no {kind} at {path.absolute()}")
    try:
        with torch.serialization.safe_globals(_array_globals()):
            return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # a broken file fails in many ways, all of them the user's to mend
        what = spoiled(path) or f"is no readable {kind}: {_reason(error)}"
        raise InputError(f"{path} {what}") from error


def load_arrays(path: Path) -> Any:
    """Return what a file of tensors or arrays holds.

    Args:
        path: ends as one of :data:`SUFFIXES`.

    Returns:
        Tensors or arrays by name; a list of arrays where an ``.npz`` names them ``arr_0`` and so
        on, as numpy does without names; whatever else ``torch.save`` was given.

    Raises:
        InputError: if it ends otherwise, is missing or broken, or would have to be unpickled.
    """
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        return read_tensors(path)
    if suffix == ".npz":
        return _load_npz(path)
    if suffix in SUFFIXES:
        return load_torch(path)
    raise InputError(f"{path} should end in one of {', '.join(SUFFIXES)}")


def _load_npz(path: Path) -> dict[str, Any] | list[Any]:
    if not path.is_file():
        raise InputError(f"no file at {path.absolute()}")
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        reason = "it holds more than numbers" if "pickle" in str(error) else _reason(error)
        raise InputError(f"{path} is no readable file of arrays: {reason}") from error
    ordered = [f"arr_{place}" for place in range(len(found))]
    if found and found.keys() == set(ordered):
        return [found[name] for name in ordered]
    return found


def _array_globals() -> list[Any]:
    """Return what a pickled array of numbers names; none of it runs anything."""
    dtypes = {type(np.dtype(kind)) for kind in _KINDS}
    makers: list[Any] = [np.zeros(1).__reduce__()[0], np.float64(0).__reduce__()[0]]
    modules = ("numpy.core.multiarray", "numpy._core.multiarray")  # before and since numpy 2
    named = [
        (maker, f"{module}.{maker.__name__}")
        for maker, module in itertools.product(makers, modules)
    ]
    return [np.ndarray, np.dtype, *dtypes, *named]


def _reason(error: Exception) -> str:
    """Return in a line why a file cannot be read."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))  # torch writes in bold
    named = re.search(r"GLOBAL (\w+(?:\.\w+)+)", text)
    if named or ("weights_only" in text and "Unsupported operand" not in text):
        what = f" ({named[1]})" if named else ""
        return (
            f"it holds more than tensors{what}, and is not unpickled; save the state_dict(), or "
            "other tensors by name, alone"
        )
    if "Unsupported operand" in text or not text.strip():
        return "it is empty, breaks off, or was not written by torch.save"
    return text.strip().partition("\n")[0][:200]
