"""Going on with a run that was stopped: which run, and whether it is the same one.

The run's ``config.yaml`` is the configuration; what the command line adds may change how the rest
is computed (devices, progress bar), but nothing that the figures depend on.
"""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from lightning_recon.audit.records import SAME, Origin, hash_of
from lightning_recon.data import AuditDataModule
from lightning_recon.documents import MAX_YAML_BYTES, read_text
from lightning_recon.errors import InputError
from lightning_recon.files import expanded
from lightning_recon.runs.command import command_line

RESUMED = ("test", "predict")
"""Commands that take ``--resume``."""
_SAME = (*SAME, "ckpt_path")
"""What must be as it was."""
_FREE = ("audit.on_failure", "audit.experiment")
"""What may change: a run goes on past a client that fails, and the others' figures stay."""


def header(command: str) -> str:
    """Return the line of ``config.yaml`` that tells which command wrote it."""
    return f"written by: python cli.py {command}"


def folder_to_resume(args: Sequence[str]) -> Path | None:
    """Find ``--resume RUN`` among the arguments of the command line.

    The folder is needed before Lightning parses them, since its configuration comes first.

    Args:
        args: the command and its options.

    Returns:
        The folder of the run, absolute; None without ``--resume``.

    Raises:
        InputError: if the folder holds no run of the command, or the command is another one.
    """
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--resume")
    name = finder.parse_known_args(list(args))[0].resume
    if name is None:
        return None
    if args[0] not in RESUMED:
        raise InputError(
            "--resume is for test and predict; fit goes on with --ckpt_path CHECKPOINT"
        )
    folder = expanded(name)
    if not folder.is_dir():
        raise InputError(f"--resume: no folder {folder}; give one such as lightning_logs/version_0")
    config = folder / "config.yaml"
    if not config.is_file():
        raise InputError(
            f"--resume: no config.yaml in {folder}: it is no run, or was stopped before its first "
            "client; start it again without --resume"
        )
    found = _written_by(config)
    if found != args[0]:
        raise InputError(
            f"--resume: {config} was written by {found or 'an unknown command'}, not by {args[0]}"
        )
    return folder


def folder_of_fit(checkpoint: Any) -> Path | None:
    """Return the folder of the run of ``fit`` that wrote a checkpoint, absolute; None: no such.

    Args:
        checkpoint: its path, or one of Lightning's words for one.
    """
    path = expanded(str(checkpoint))
    config = path.parents[1] / "config.yaml" if len(path.parents) > 1 else path
    if checkpoint is None or path.parent.name != "checkpoints" or not config.is_file():
        return None
    return config.parent if _written_by(config) == "fit" else None


def _written_by(config: Path) -> str | None:
    """Return the command that wrote a ``config.yaml``, if it says so."""
    line = re.search(
        rf"^# {header('(.*)')}$", read_text(config, MAX_YAML_BYTES), flags=re.MULTILINE
    )
    return line[1] if line else None


def going_on(folder: Path, words: Sequence[str]) -> str | None:
    """Return the command line that goes on with a run that was stopped; None if nothing is kept.

    Args:
        folder: of the run.
        words: that it was started with, the command first.
    """
    checkpoint = folder / "checkpoints" / "last.ckpt"
    if words and words[0] in RESUMED and (folder / "config.yaml").is_file():
        return command_line([words[0], "--resume", str(folder)])
    if words[:1] == ["fit"] and checkpoint.is_file():
        return command_line([*_without_checkpoint(words), "--ckpt_path", str(checkpoint)])
    return None


def _without_checkpoint(words: Sequence[str]) -> list[str]:
    """Return words without ``--ckpt_path``, which the run went on with before."""
    kept: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        if "--ckpt_path" not in (before, word.partition("=")[0]):
            kept.append(word)
    return kept


def differing(parser: ArgumentParser, stored: Namespace, given: Namespace) -> str | None:
    """Return a line on the first thing the figures depend on that is not as it was; None: all is.

    Args:
        parser: of the command.
        stored: the configuration of the run.
        given: the one that it shall go on with.
    """
    before, after = (_plain(parser, config) for config in (stored, given))
    for key in _SAME:
        found = _first_difference(_at(before, key), _at(after, key), key)
        if found:
            name, old, new = found
            return f"{name} is {json.dumps(new)}, but the run has {json.dumps(old)}"
    return None


def origin_of(configuration: str, data: AuditDataModule) -> Origin:
    """Return what the records of a run say that they belong to.

    Args:
        configuration: hash of the run's configuration; empty: not known.
        data: of the run, set up.
    """
    contents = "\n".join(data.contents())
    # names may hold bytes that are no UTF-8
    hashed = hash_of(contents.encode("utf-8", "surrogateescape")) if contents else ""
    return Origin(configuration, hashed)


def check_same(parser: ArgumentParser, stored: Namespace, given: Namespace) -> None:
    """Make sure that the command line changes nothing that the figures depend on.

    Args:
        parser: of the command.
        stored: the configuration of the run.
        given: the same with the command line's options on top.

    Raises:
        InputError: naming the first key that differs, with both values.
    """
    if found := differing(parser, stored, given):
        raise InputError(f"--resume: {found}; leave it out, or start another run without --resume")


def _plain(parser: ArgumentParser, config: Namespace) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(parser.dump(config, skip_link_targets=False))
    return content


def _at(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = (config or {}).get(part)
    return config


def _first_difference(old: Any, new: Any, key: str) -> tuple[str, Any, Any] | None:
    """Return key, old and new value of the first difference of two trees; None if equal."""
    if key in _FREE:
        return None
    if isinstance(old, dict) and isinstance(new, dict):
        pairs = [(old.get(name), new.get(name), f"{key}.{name}") for name in {**old, **new}]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = [(*both, f"{key}.{place}") for place, both in enumerate(zip(old, new, strict=True))]
    else:
        return None if old == new else (key, old, new)
    return next(filter(None, (_first_difference(*pair) for pair in pairs)), None)
