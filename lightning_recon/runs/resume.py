"""Going on with a run of ``test`` that was stopped: which run, and whether it is the same one.

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

from lightning_recon.errors import InputError
from lightning_recon.runs.command import command_line

_SAME = ("seed_everything", "model", "data", "audit", "trainer.precision", "ckpt_path")
"""What must be as it was."""


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
        InputError: if the folder holds no run of ``test``, or the command is another one.
    """
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--resume")
    name = finder.parse_known_args(list(args))[0].resume
    if name is None:
        return None
    if args[0] != "test":
        raise InputError("--resume is for test; fit goes on with --ckpt_path CHECKPOINT")
    folder = Path(name).absolute()
    if not folder.is_dir():
        raise InputError(f"--resume: no folder {folder}; give one such as lightning_logs/version_0")
    config = folder / "config.yaml"
    if not config.is_file():
        raise InputError(
            f"--resume: no config.yaml in {folder}: it is no run, or was stopped before its first "
            "client; start it again without --resume"
        )
    written_by = re.search(rf"^# {header('(.*)')}$", config.read_text(), flags=re.MULTILINE)
    if written_by is None or written_by[1] != "test":
        found = written_by[1] if written_by else "an unknown command"
        raise InputError(f"--resume is for runs of test, but {config} was written by {found}")
    return folder


def going_on(folder: Path, words: Sequence[str]) -> str | None:
    """Return the command line that goes on with a run that was stopped; None if nothing is kept.

    Args:
        folder: of the run.
        words: that it was started with, the command first.
    """
    checkpoint = folder / "checkpoints" / "last.ckpt"
    if words[:1] == ["test"] and (folder / "config.yaml").is_file():
        return command_line(["cli.py", "test", "--resume", str(folder)])
    if words[:1] == ["fit"] and checkpoint.is_file():
        return command_line(["cli.py", *words, "--ckpt_path", str(checkpoint)])
    return None


def check_same(parser: ArgumentParser, stored: Namespace, given: Namespace) -> None:
    """Make sure that the command line changes nothing that the figures depend on.

    Args:
        parser: of the command ``test``.
        stored: the configuration of the run.
        given: the same with the command line's options on top.

    Raises:
        InputError: naming the first key that differs, with both values.
    """
    before, after = (_plain(parser, config) for config in (stored, given))
    for key in _SAME:
        found = _first_difference(_at(before, key), _at(after, key), key)
        if found:
            name, old, new = found
            raise InputError(
                f"--resume: {name} is {json.dumps(new)}, but the run has {json.dumps(old)}; leave "
                "it out, or start another run without --resume"
            )


def _plain(parser: ArgumentParser, config: Namespace) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(parser.dump(config, skip_link_targets=False))
    return content


def _at(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = (config or {}).get(part)
    return config


def _first_difference(old: Any, new: Any, key: str) -> tuple[str, Any, Any] | None:
    """Return key, old and new value of the first difference of two trees; None if equal."""
    if isinstance(old, dict) and isinstance(new, dict):
        pairs = [(old.get(name), new.get(name), f"{key}.{name}") for name in {**old, **new}]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = [(*both, f"{key}.{place}") for place, both in enumerate(zip(old, new, strict=True))]
    else:
        return None if old == new else (key, old, new)
    return next(filter(None, (_first_difference(*pair) for pair in pairs)), None)
