"""Where a run of the command line writes: everything below ``lightning_logs``.

The outputs of a run stand in one folder, ``lightning_logs/version_N``
(:func:`~lightning_recon.files.run_folder`).  Without a logger, and with those that keep no folder
for each run, Lightning would scatter them over the current directory.
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from pytorch_lightning import Trainer
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger

from lightning_recon.errors import InputError

_PLACE = "lightning_logs"
PROCESSES_PER_CPU = 4
"""More on a processor are slower than fewer; a test of several processes still fits."""


def with_save_dir(words: Sequence[str]) -> list[str]:
    """Return a command line whose CSV or TensorBoard logger writes where the default one would.

    Args:
        words: the command and its options.
    """
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--trainer.logger", dest="logger", default="")
    finder.add_argument("--trainer.default_root_dir", dest="root", default=".")
    for option in ("--trainer.logger.save_dir", "--trainer.logger.init_args.save_dir"):
        finder.add_argument(option, dest="save_dir")
    found = finder.parse_known_args(list(words))[0]
    name = found.logger.rpartition(".")[2]
    if name not in ("CSVLogger", "TensorBoardLogger") or found.save_dir is not None:
        return list(words)
    return [*words, "--trainer.logger.save_dir", found.root]


def place_loggers(trainer: Namespace) -> None:
    """Give wandb and MLflow, where no place is named, one below ``lightning_logs`` for all runs.

    Args:
        trainer: the trainer's options, as they are parsed.
    """
    root = Path(trainer.get("default_root_dir") or ".", _PLACE)
    loggers = trainer.get("logger")
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        if not isinstance(logger, Namespace) or "init_args" not in logger:
            continue
        name, options = logger.class_path.rpartition(".")[2], logger.init_args
        if name == "WandbLogger" and options.get("save_dir") == ".":
            options.save_dir = str(root)
            root.mkdir(parents=True, exist_ok=True)  # else it takes the system's temporary folder
        elif name == "MLFlowLogger" and not options.get("tracking_uri"):
            # a data base: MLflow refuses the plain files that are Lightning's default
            is_default = options.get("save_dir") in (None, "./mlruns")
            folder = root / "mlruns" if is_default else Path(options.save_dir)
            folder = folder.absolute()
            folder.mkdir(parents=True, exist_ok=True)
            options.tracking_uri = f"sqlite:///{folder / 'mlflow.db'}"
            options.artifact_location = options.get("artifact_location") or folder.as_uri()


def placed(options: Mapping[str, Any], resumed: Path | None) -> dict[str, Any]:
    """Return the options of a trainer that make its run write into one folder.

    Args:
        options: of the trainer, its loggers made.
        resumed: the folder of the run that it goes on with; None: a new one.
    """
    logger = options.get("logger")
    loggers = logger if isinstance(logger, list) else [logger]
    keeps_folder = any(
        one is None or one is True or isinstance(one, TensorBoardLogger | CSVLogger)
        for one in loggers
    )
    if resumed is not None:
        made = [_into(resumed, one) for one in loggers if one is not False]
        return {"logger": made or False, "default_root_dir": str(resumed)}
    if keeps_folder and not options.get("fast_dev_run"):
        return {}
    root = options.get("default_root_dir") or "."
    return {"default_root_dir": CSVLogger(root, _PLACE).log_dir}


def _into(folder: Path, logger: Any) -> Logger:
    """Return a logger that goes on in a run's folder; one that keeps no folder as it is."""
    if isinstance(logger, CSVLogger):
        return CSVLogger(folder.parent, name="", version=folder.name)
    if logger is None or logger is True or isinstance(logger, TensorBoardLogger):
        return TensorBoardLogger(folder.parent, name="", version=folder.name)
    made: Logger = logger
    return made


def check_devices(trainer: Trainer) -> None:
    """Make sure that the processors can run as many processes as were asked for.

    Lightning starts whatever number is given: 99 processes of PyTorch bring a small machine down.

    Raises:
        InputError: if there are more than :data:`PROCESSES_PER_CPU` for each, and more than 16.
    """
    count, processors = trainer.num_devices, os.cpu_count() or 1
    is_cpu = isinstance(trainer.accelerator, CPUAccelerator)
    if is_cpu and count > max(16, PROCESSES_PER_CPU * processors):
        raise InputError(
            f"trainer.devices: {count} processes, but the machine has {processors} processors; "
            f"give at most {max(16, PROCESSES_PER_CPU * processors)}"
        )


def place_checkpoints(trainer: Trainer) -> None:
    """Have checkpoints written into the run's folder; a trial run (fast_dev_run) writes none."""
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        callbacks[:] = [one for one in callbacks if not isinstance(one, Checkpoint)]
        return
    own = [log for log in trainer.loggers if isinstance(log, TensorBoardLogger | CSVLogger)]
    folders = [Path(log.log_dir) for log in own]  # asked now, before one of them makes it
    folder = folders[0] if folders else Path(trainer.default_root_dir)
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
            callback.dirpath = str(folder / "checkpoints")
