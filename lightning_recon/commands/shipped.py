"""Files that stand beside the package in a clone, and inside of it where it is installed."""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path


def shipped(folder: str) -> Path:
    """Return a folder: ``configs`` or ``requirements``."""
    package = Path(str(resources.files("lightning_recon")))
    inside = package / folder
    return inside if inside.is_dir() else package.parent / folder


def with_configs(words: Sequence[str]) -> list[str]:
    """Return a command line in which the name of a shipped configuration is its path.

    ``--config ldp_imagenet`` and ``--config configs/ldp_imagenet.yaml`` find it from any folder; a
    file of that name in the working folder comes first.

    Args:
        words: the command and its options.
    """
    found = []
    for before, word in zip(["", *words], words, strict=False):
        option, equals, value = word.partition("=")
        if equals and option == "--config":
            found.append(f"{option}={_config(value)}")
        else:
            found.append(_config(word) if before in ("--config", "-c") else word)
    return found


def _config(name: str) -> str:
    if not name or Path(name).exists():
        return name
    inside = name.removeprefix("configs/").removesuffix(".yaml")
    path = shipped("configs") / f"{inside}.yaml"
    return str(path) if path.is_file() else name
