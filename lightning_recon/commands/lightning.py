"""The commands that run a Trainer: Lightning's own, ``sweep`` and ``recommend``."""

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lightning_recon import __version__
from lightning_recon.attacks import Attack
from lightning_recon.commands.bad_input import report_bad_input
from lightning_recon.commands.lightning_cli import ReconCLI, TrainingCLI, words_of
from lightning_recon.commands.names import LIGHTNING
from lightning_recon.data import AuditDataModule
from lightning_recon.documents import read_yaml
from lightning_recon.errors import InputError, program
from lightning_recon.runs.resume import (
    RESUMED,
    header,
)
from lightning_recon.runs.run_config import RunConfig
from lightning_recon.runs.stopping import stopped_by_signals

_TRAINER_DEFAULTS: dict[str, Any] = {
    "devices": 1,
    "max_epochs": -1,  # as many as there are clients; see before_fit
    "log_every_n_steps": 10,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
    "use_distributed_sampler": False,  # Lightning's pads: a client would count twice
    "inference_mode": False,  # test differentiates too
}
_TRAINING_DEFAULTS: dict[str, Any] = {
    "devices": 1,
    "max_epochs": 20,
    "log_every_n_steps": 10,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
    "use_distributed_sampler": False,  # patches are shared by their numbers
}
_TRAININGS = ("DenoiserTraining", "RefinerTraining")
"""What ``fit`` can train, all in :mod:`lightning_recon.training`, which attacks need not import."""
_MOVED = (
    "lightning_recon.data.patches",
    "lightning_recon.priors.training",
    "lightning_recon.refiners.training",
)
"""Where configurations of version 0.1.0 look for them."""
_NOISE = (  # warnings of Lightning that do not concern a person who runs an audit
    ".*isinstance\\(treespec, LeafSpec\\).*",
    "Total length of `ClientLoader` across ranks is zero.*",
    "The '.*_dataloader' does not have many workers.*",
    "Using ModelCheckpoint with manual optimization and every_n_train_steps.*",
    "The number of training batches .* is smaller than the logging interval.*",
    "Experiment logs directory .* exists and is not empty.*",  # made before its logger
    "Checkpoint directory .* exists and is not empty.*",  # a resumed fit goes on in its own
)


_OPTIONS = """

options of which most commands need no others (later ones take precedence):
  --config configs/NAME.yaml        an experiment; --print_config shows all that holds
  --model.init_args.NAME VALUE      an option of the attack; --model.help CLASS lists them
  --data.init_args.NAME VALUE       an option of the data set; --data.help CLASS lists them
  --seed_everything SEED            all randomness
  --trainer.accelerator gpu --trainer.devices 2
"""
_RESUME = """\
  --resume lightning_logs/version_0 go on with a stopped run; needs no --config
"""


def command_line(args: Sequence[str] | None = None) -> None:
    """Run a command on an attack.

    Args:
        args: what stands after the program's name; null: ``sys.argv``.
    """
    commands = {
        name: {
            "usage": f"{program()} {name} --config FILE [OPTION ...]",
            "description": summary + _OPTIONS + (_RESUME if name in RESUMED else ""),
            "dump_header": _header(name),
        }
        for name, summary in LIGHTNING.items()
    }
    ReconCLI(
        Attack,
        AuditDataModule,
        trainer_defaults=_TRAINER_DEFAULTS,
        **_cli_options(args, commands),
    )


def _train(args: Sequence[str] | None, command: str, name: str) -> None:
    from lightning_recon import training

    if command not in {"fit", "validate"}:
        raise InputError(f"{name} knows fit and validate, not {command}")
    for module in _MOVED:
        sys.modules.setdefault(module, training)
    TrainingCLI(
        getattr(training, name),
        training.PatchDataModule,
        trainer_defaults=_TRAINING_DEFAULTS,
        **_cli_options(args, {name: {"dump_header": _header(name)} for name in LIGHTNING}),
    )


def _header(command: str) -> list[str]:
    """Return the first lines of ``config.yaml``."""
    lightning = f"pytorch_lightning=={version('pytorch_lightning')}"
    return [f"lightning_recon=={__version__}", lightning, header(command)]


def _cli_options(args: Sequence[str] | None, commands: dict[str, Any]) -> dict[str, Any]:
    """What both command lines have in common; ``commands``: the parsers' options of each."""
    return {
        "subclass_mode_model": True,
        "subclass_mode_data": True,
        "auto_configure_optimizers": False,
        "load_from_checkpoint_support": False,
        "seed_everything_default": 0,
        "save_config_callback": RunConfig,
        "save_config_kwargs": {"overwrite": True},
        "parser_kwargs": {
            "prog": "cli.py",
            "exit_on_error": False,
            **commands,
        },
        "args": None if args is None else list(args),
    }


def _model_in(file: str) -> Any:
    """The class of the model that a configuration names, if any."""
    try:
        return read_yaml(Path(file))["model"]["class_path"]
    except (OSError, LookupError, TypeError):
        return None


def _training(words: Sequence[str]) -> str | None:
    """The training that the command line or its last configuration names; None for an attack.

    Files that cannot be opened are left to the parser, which says so; one that is no YAML is not.
    """
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("-c", "--config", action="append", default=[])
    finder.add_argument("--model", "--model.class_path", dest="model")
    found = finder.parse_known_args(list(words))[0]
    name = found.model
    for named in map(_model_in, reversed(found.config)):
        name = name or named
    name = str(name).rpartition(".")[2]
    return name if name in _TRAININGS else None


def main(args: Sequence[str] | None = None) -> int:
    """Run ``fit``, ``validate``, ``test``, ``predict``, ``sweep`` or ``recommend``.

    Args:
        args: what stands after the program's name; null: ``sys.argv``.

    Returns:
        The exit code: 0, or 2 for input that cannot be used.
    """
    torch.set_float32_matmul_precision("highest")
    for noise in _NOISE:
        warnings.filterwarnings("ignore", message=noise)
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    words = words_of(args)
    with report_bad_input() as outcome, stopped_by_signals():
        if words[:1] == ["sweep"]:
            from lightning_recon.runs.sweep import main as sweep

            sweep(words[1:])
        elif words[:1] == ["recommend"]:
            from lightning_recon.runs.recommend import main as recommend

            recommend(words[1:])
        elif name := _training(words):
            _train(args, words[0], name)
        else:
            command_line(args)
    return outcome.exit_code
