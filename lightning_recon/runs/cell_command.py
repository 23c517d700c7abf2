"""What the commands that run the cells of a file have in common: options, and their folder."""

import argparse
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from pytorch_lightning import Trainer

from lightning_recon.attacks import Attack
from lightning_recon.data import ClientDataModule
from lightning_recon.documents import read_yaml as read_stored_yaml
from lightning_recon.errors import InputError, instead, program
from lightning_recon.files import expanded
from lightning_recon.runs.allowed import check_named
from lightning_recon.runs.cells import Cell, check_trainers, description, read_yaml
from lightning_recon.runs.claiming import claimed, held, is_first_process
from lightning_recon.runs.command import command_line
from lightning_recon.runs.making import RunParser, making
from lightning_recon.runs.places import check_devices
from lightning_recon.runs.progress import with_progress
from lightning_recon.runs.results import versions

_TRAINER_DEFAULTS: dict[str, Any] = {
    "devices": 1,
    "logger": False,
    "use_distributed_sampler": False,
    "inference_mode": False,
    "enable_checkpointing": False,
    "enable_model_summary": False,
}


def trainer_of(
    args: Sequence[str], command: str, description: str
) -> tuple[Namespace, Trainer, dict[str, Any]]:
    """Return the options of a command that runs items, its trainer, and the trainer's options.

    Args:
        args: what stands after the command.
        command: its name.
        description: of the command, for its help.

    Raises:
        InputError: if an option of the trainer cannot be used.
    """
    parser = RunParser(prog=f"{program()} {command}", description=description, exit_on_error=False)
    parser.add_argument("--config", type=Path, required=True, help=f"the YAML of the {command}")
    parser.add_argument("--resume", type=Path | None, help=f"folder of an interrupted {command}")
    parser.add_argument("--dry-run", action="store_true", help="list the cells and their time")
    parser.add_class_arguments(Trainer, "trainer", instantiate=False)
    parser.set_defaults({f"trainer.{name}": value for name, value in _TRAINER_DEFAULTS.items()})
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--config")
    found = finder.parse_known_args(list(args))[0].config
    if found:  # what the file says stands behind what the command line says
        section = read_yaml(expanded(found)).get("trainer")
        values = dict(section) if isinstance(section, Mapping) else {}
        options = inspect.signature(Trainer).parameters
        for name in values:
            if name not in options:
                meant = instead(name, options)
                raise InputError(f"{found}: trainer: there is no option {name}{meant}")
        parser.set_defaults({f"trainer.{name}": value for name, value in values.items()})
    config = parser.parse_args(list(args))
    check_named(config, Attack, ClientDataModule)
    parser.says_where(config)
    options = parser.instantiate_classes(config).trainer.as_dict()
    if options.get("default_root_dir") not in (None, "."):
        raise InputError(
            f"trainer.default_root_dir: a {command} writes below lightning_logs of the folder that "
            "it is started in; leave the option out, and change the folder"
        )
    with making("trainer", options):
        trainer = Trainer(**{**options, "callbacks": with_progress(options)})
    check_devices(trainer)
    device = trainer.strategy.root_device.type  # what "auto" has come to
    options["accelerator"] = {"cuda": "gpu"}.get(device, device)
    config.config = expanded(str(config.config))
    config.resume = None if config.resume is None else expanded(str(config.resume))
    return config, trainer, options


def folder_name(command: str, config: Path) -> str:
    """Return the name of a run's folder, that of its file, with the command in front."""
    name = config.stem
    return name if name == command or name.startswith(f"{command}_") else f"{command}_{name}"


@contextmanager
def in_folder(root: Path, resume: Path | None) -> Iterator[Path]:
    """Within this context a run's folder is its own, and is handed over.

    Args:
        root: in which a new folder is made.
        resume: the folder of a run that was interrupted; null: a new one.

    Raises:
        InputError: if that run still goes on.
    """
    with ExitStack() as stack:
        folder = root if resume is None else resume
        if is_first_process():  # the others are told
            if resume is not None:
                stack.enter_context(held(resume))
            else:
                folder = root / stack.enter_context(claimed([root]))
        yield folder


def check_run(
    cells: Sequence[Cell], config: Path, resume: Path | None, options: Mapping[str, Any] | None
) -> None:
    """Make sure that a file's cells can be run, and are those of the run that is resumed.

    Args:
        cells: that the file lists now.
        config: the file.
        resume: the folder of a run that was interrupted; null: a new one.
        options: of the trainer, to hold those of the cells' configurations against; null: not.

    Raises:
        InputError: if a trainer's option would be ignored, or the folder is of other cells.
    """
    if options is not None:
        check_trainers(cells, options)
    if resume is None:
        return
    path = resume.absolute() / "sweep.yaml"
    if not path.is_file():
        raise InputError(f"{path} is missing: {resume} is no sweep to resume")
    if read_stored_yaml(path) != description(cells):
        raise InputError(f"{path} lists other cells than {config}; run the sweep anew")


def about(num_done: int, num_planned: int) -> dict[str, Any]:
    """Return what ``run.json`` says of how a sweep was run, and of how much is done."""
    return {
        "command": command_line(),
        "versions": versions(),
        "num_clients": num_done,
        "num_clients_planned": num_planned,
    }
