"""Where a run of the command line writes: everything below ``lightning_logs``.

The outputs of a run stand in one folder, ``lightning_logs/version_N``
(:func:`~lightning_recon.files.run_folder`).  Without a logger, and with those that keep no folder
for each run, Lightning would scatter them over the current directory.
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from pytorch_lightning import Trainer
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from pytorch_lightning.plugins import TorchCheckpointIO

from lightning_recon.errors import InputError
from lightning_recon.files import meant
from lightning_recon.runs.checkpoints import WholeCheckpoints
from lightning_recon.runs.claiming import claimed, held, is_first_process

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


def _described(trainer: Namespace) -> list[Namespace]:
    """Return the loggers that options describe by class and arguments."""
    found = trainer.get("logger")
    loggers = found if isinstance(found, list) else [found]
    return [one for one in loggers if isinstance(one, Namespace) and "init_args" in one]


def expand_places(trainer: Namespace) -> None:
    """Replace ``~`` and variables in where a run writes: Lightning does so in some places only.

    Args:
        trainer: the trainer's options, as they are parsed.

    Raises:
        InputError: a variable is not set, or there is no such user.
    """
    named = [(one.init_args, "save_dir") for one in _described(trainer)]
    for options, name in [(trainer, "default_root_dir"), *named]:
        if value := options.get(name):
            options[name] = meant(str(value))


def place_loggers(trainer: Namespace) -> None:
    """Give wandb and MLflow, where no place is named, one below ``lightning_logs`` for all runs.

    Args:
        trainer: the trainer's options, as they are parsed.
    """
    root = Path(trainer.get("default_root_dir") or ".", _PLACE)
    for logger in _described(trainer):
        name, options = logger.class_path.rpartition(".")[2], logger.init_args
        package = {"WandbLogger": "wandb", "MLFlowLogger": "mlflow"}.get(name)
        if package is None or find_spec(package) is None:
            continue  # making it says what is missing, and no empty folder is left
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


def placed(options: Mapping[str, Any], resumed: Path | None, stack: ExitStack) -> dict[str, Any]:
    """Return the options of a trainer that make its run write into one folder, and hold that.

    Args:
        options: of the trainer, its loggers made.
        resumed: the folder of the run that it goes on with; None: a new one.
        stack: holds the folder until it is closed; see :mod:`lightning_recon.runs.claiming`.

    Raises:
        InputError: if another run goes on in the folder.
        OSError: if it cannot be made.
    """
    root = Path(options.get("default_root_dir") or ".")
    logger = options.get("logger")
    loggers = [
        _default_logger(root) if one is None or one is True else one
        for one in (logger if isinstance(logger, list) else [logger])
        if one is not False
    ]
    is_first = is_first_process()
    if resumed is not None:
        if is_first:
            stack.enter_context(held(resumed))
            _keep_metrics(resumed)
        loggers = [_into(resumed, one) for one in loggers]
        return {"logger": loggers or False, "default_root_dir": str(resumed)}
    keeping = [one for one in loggers if isinstance(one, TensorBoardLogger | CSVLogger)]
    if options.get("fast_dev_run"):  # Lightning takes its loggers away
        keeping = []
    place = {} if keeping else {"default_root_dir": str(root / _PLACE)}
    if is_first:  # the others are told; see run_folder
        named = [one for one in keeping if one._version is not None]
        if named:  # by the user
            stack.enter_context(held(Path(named[0].log_dir)))
        numbered = [one for one in keeping if one._version is None]
        if numbered or not named:
            roots = list(dict.fromkeys(Path(one.root_dir) for one in numbered))
            version = stack.enter_context(claimed(roots or [root / _PLACE]))
            for one in numbered:
                one._version = version
            if place:
                place = {"default_root_dir": str(root / _PLACE / version)}
    return {"logger": loggers or False, **place}


def _default_logger(root: Path) -> Logger:
    """Return Lightning's own choice, in whose folder no number is asked for before it is made."""
    kind = TensorBoardLogger if find_spec("tensorboard") else CSVLogger
    return kind(root, name=_PLACE)


def _keep_metrics(folder: Path) -> None:
    """Rename the ``metrics.csv`` of a run's last session: a CSV logger removes what it finds."""
    path = folder / "metrics.csv"
    if path.is_file():
        path.rename(folder / f"metrics_{len(list(folder.glob('metrics_*.csv'))) + 1}.csv")


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
    """Have whole checkpoints written into the run's folder; a trial run (fast_dev_run) has none."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # and no plugin of the user's
        trainer.strategy.checkpoint_io = WholeCheckpoints()
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        callbacks[:] = [one for one in callbacks if not isinstance(one, Checkpoint)]
        return
    own = [log for log in trainer.loggers if isinstance(log, TensorBoardLogger | CSVLogger)]
    folders = [Path(log.log_dir) for log in own]  # asked now, before one of them makes it
    folder = folders[0] if folders else Path(trainer.default_root_dir)
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
            # absolute: only in the same place does a checkpoint's own state hold
            callback.dirpath = str((folder / "checkpoints").absolute())
