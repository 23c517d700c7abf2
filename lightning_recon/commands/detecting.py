"""The command ``detect``: is the model that a server sent there to be trained?"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lightning_recon.captures.loading import load_arrays
from lightning_recon.captures.tensors import as_tensors
from lightning_recon.commands.importing import read_named
from lightning_recon.detect import detect, detect_sent
from lightning_recon.detect.words import as_json, as_text
from lightning_recon.errors import InputError
from lightning_recon.files import expanded
from lightning_recon.targets.importing import imported_module, json_arguments


def detect_payload(options: Any) -> int:
    """Print what is strange about a payload.

    Args:
        options: of the command, by name.

    Returns:
        The exit code: 1 if it is suspicious, else 0.

    Raises:
        InputError: if something cannot be used.
    """
    if options.file is None and options.model is None:
        raise InputError("give a FILE of tensors, --model PKG:NET, or both")
    model = None
    if options.model is not None:
        model = imported_module(options.model, json_arguments(options.model_args))()
    title = options.model if options.file is None else Path(options.file).name
    sent = _read(options.file, model)
    reference = _read(options.reference, model)
    sample = None if options.sample is None else _sample(expanded(options.sample))
    if sent is None:
        assert model is not None
        found = detect(model, reference, sample)
    else:
        found = detect_sent(sent, model, reference, sample)
    said = as_json(title, found)
    print(json.dumps(said, indent=2) if options.json else as_text(title, found))  # noqa: T201
    return 1 if found.verdict == "suspicious" else 0


def _read(file: str | None, model: nn.Module | None) -> dict[str, Tensor] | None:
    return None if file is None else read_named(expanded(file), model)[0]


def _sample(path: Path) -> tuple[Tensor, Tensor]:
    """Return images and labels of a file."""
    content = load_arrays(path)
    if not isinstance(content, Mapping) or not {"images", "labels"} <= content.keys():
        raise InputError(f"{path} should hold images, B C H W, and labels, B, by these names")
    found = as_tensors({name: content[name] for name in ("images", "labels")})
    return found["images"], found["labels"].long()
