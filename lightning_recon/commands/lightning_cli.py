"""Lightning's command line, with what an attack, and a training, add to it."""

import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentError
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from rich.console import Console

from lightning_recon.audit.records import Origin, configuration_hash, read_records
from lightning_recon.commands.lists import replacing_lists
from lightning_recon.documents import read_text
from lightning_recon.errors import InputError
from lightning_recon.files import expanded
from lightning_recon.runs.allowed import check_named
from lightning_recon.runs.callback import Audit
from lightning_recon.runs.claiming import Holding, is_first_process
from lightning_recon.runs.making import RunParser, making
from lightning_recon.runs.places import (
    check_devices,
    expand_places,
    place_checkpoints,
    place_loggers,
    placed,
    with_save_dir,
)
from lightning_recon.runs.progress import with_progress
from lightning_recon.runs.refusals import check_seed_words, explained
from lightning_recon.runs.requeue import requeued
from lightning_recon.runs.resume import (
    RESUMED,
    check_same,
    differing,
    folder_of_fit,
    folder_to_resume,
    going_on,
)
from lightning_recon.runs.run_config import RunConfig
from lightning_recon.runs.stopping import Stopping

_WORDS = {"best", "last", "hpc", "registry"}
"""What Lightning would look for beside the run's own checkpoints, and go on without."""


class _CheckedCLI(LightningCLI):
    """Lightning's command line, with a line on what cannot be made from the options."""

    run_folder: Path | None = None
    """Of the run to go on with, if any."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with ExitStack() as self.held:  # the run's folder, from the trainer's making on
            super().__init__(*args, **kwargs)

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Make a parser that says what is wrong with an option, and where."""
        self.parser_class = RunParser
        return super().init_parser(**kwargs)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; a list that is given later replaces the first one."""
        words = words_of(args)
        check_seed_words(words)
        with explained(words):
            self.config = parser.parse_args(replacing_lists(with_save_dir(words)))
        config = self.config.get(self.config.get("subcommand") or "", self.config)
        expand_places(config.trainer)
        seed = config.get("seed_everything")
        if not isinstance(seed, bool) and seed is not None and not 0 <= seed < 2**32:
            raise InputError(f"seed_everything must lie between 0 and {2**32 - 1}, not {seed}")
        if self.config.get("subcommand") == "fit":
            self._go_on_with_fit(parser, words)

    def _go_on_with_fit(self, parser: LightningArgumentParser, words: list[str]) -> None:
        """Have a ``fit`` that goes on with a checkpoint do so in the folder of its run."""
        config = self.config.fit
        root = Path(config.trainer.get("default_root_dir") or ".")
        config.ckpt_path = config.get("ckpt_path") or requeued(root, words)
        folder = folder_of_fit(config.ckpt_path)
        if folder is None:
            return
        with suppress(ArgumentError, InputError):  # of a version that knew other options
            stored = parser.parse_args(["fit", "--config", str(folder / "config.yaml")]).fit
            given = config.clone()
            stored.ckpt_path = given.ckpt_path = None
            if found := differing(self._parser("fit"), stored, given):
                if is_first_process():
                    print(f"{found}: this run has a folder of its own")  # noqa: T201
                return
            self.run_folder = folder

    def instantiate_classes(self) -> None:
        """Make the attack or training, the data and the trainer, of classes that may be named.

        Here, since Lightning adds to the configuration what a checkpoint says of the model.
        """
        config = self.config[self.subcommand] if self.subcommand else self.config
        check_named(config, self._model_class, self._datamodule_class)
        assert isinstance(self.parser, RunParser)
        self.parser.says_where(config)
        super().instantiate_classes()

    def before_instantiate_classes(self) -> None:
        """Give loggers that would write into the current directory a place."""
        config = self.config[self.subcommand] if self.subcommand else self.config
        place_loggers(config.trainer)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the trainer, whose run writes into one folder."""
        options = {**self._get(self.config_init, "trainer", default={}), **kwargs}
        kwargs |= placed(options, self.run_folder, self.held)
        with making("trainer", vars(self._get(self.config, "trainer"))):
            trainer = super().instantiate_trainer(**kwargs)
        check_devices(trainer)
        place_checkpoints(trainer)
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        for callback in callbacks if self.run_folder is not None else ():
            if isinstance(callback, RunConfig):
                callback.already_saved = True  # it stays as it is
        words = sys.argv[1:]
        callbacks += [Holding(), Stopping(lambda folder: going_on(folder, words))]
        return trainer


class ReconCLI(_CheckedCLI):
    """Lightning's command line with the audit added."""

    def setup_parser(self, add_subcommands: bool, *args: Any) -> None:
        """Add ``--resume`` to ``test`` and ``predict``."""
        super().setup_parser(add_subcommands, *args)
        for command in RESUMED if add_subcommands else ():
            self._parser(command).add_argument(
                "--resume",
                type=Path | None,
                metavar="RUN",
                help=f"folder of a run of {command} that was stopped: attacks the clients that are "
                "missing; the configuration is the run's own",
            )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the sections ``audit`` and ``checkpoint``."""
        parser.add_lightning_class_args(Audit, "audit")
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        # one seed for the clients that are drawn, their randomness and the attack's
        parser.link_arguments("seed_everything", "model.init_args.seed", compute_fn=_as_seed)
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=_as_seed)
        parser.set_defaults(
            {
                "checkpoint.every_n_train_steps": 100,
                "checkpoint.save_last": True,
                "checkpoint.save_top_k": 1,
                # last.ckpt is the last one, in a folder that was moved, too
                "checkpoint.enable_version_counter": False,
            }
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and look at the run to resume and at the checkpoint before Lightning does."""
        words = words_of(args)
        self.run_folder = folder_to_resume(words)
        if self.run_folder is None:
            super().parse_arguments(parser, args)
        else:
            command = words[0]
            stored = [command, "--config", str(self.run_folder / "config.yaml")]
            super().parse_arguments(parser, [*stored, *words[1:]])
            before = parser.parse_args(stored)[command]
            check_same(self._parser(command), before, self.config[command])
        config = self.config.get(self.config.get("subcommand") or "", self.config)
        config.pop("resume", None)  # no part of the experiment
        _check_checkpoint(config.get("ckpt_path"), "client_index", "an attack")

    def before_instantiate_classes(self) -> None:
        """Name the experiment after its configuration file."""
        super().before_instantiate_classes()
        config = self.config[self.subcommand] if self.subcommand else self.config
        files = config.get("config") or []
        if files and config.audit.experiment is None:
            config.audit.experiment = Path(str(files[-1])).stem

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the trainer, with a bar or lines that tell the time left."""
        options = {**self._get(self.config_init, "trainer", default={}), **kwargs}
        kwargs["callbacks"] = with_progress(options)
        return super().instantiate_trainer(**kwargs)

    def before_test(self) -> None:
        """Leave out what a resumed run has done."""
        if self.run_folder is None:
            return
        config = self.run_folder / "config.yaml"
        origin = Origin(configuration_hash(read_text(config), str(config)))
        records = read_records(self.run_folder, origin, self.datamodule.num_clients)
        self.datamodule.completed = {record.client for record in records}

    before_predict = before_test

    def before_fit(self) -> None:
        """Make an epoch of every client, and no more than there are."""
        clients = int(self.datamodule.num_clients)
        epochs = clients // self.trainer.world_size or 1
        asked = self.trainer.max_epochs
        if asked is None or asked == -1 or asked > epochs:
            self.trainer.fit_loop.max_epochs = epochs
        if asked is not None and asked > epochs and self.trainer.is_global_zero:
            line = f"max_epochs is {asked}, but an epoch is a client and there are {clients}: each"
            Console(markup=False, soft_wrap=True).print(f"{line} is attacked once")

    def after_fit(self) -> None:
        """Print the figures, once the progress bar is gone."""
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Audit):
                callback.print_summary()

    after_validate = after_test = after_predict = after_fit


class TrainingCLI(_CheckedCLI):
    """Lightning's command line as it is, to train a denoiser or a refiner."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Give one seed to the patches and to the noise."""
        parser.link_arguments("seed_everything", "model.init_args.seed", compute_fn=_as_seed)
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=_as_seed)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and look at the checkpoint before Lightning does."""
        super().parse_arguments(parser, args)
        config = self.config.get(self.config.get("subcommand") or "", self.config)
        _check_checkpoint(config.get("ckpt_path"), "optimizer_states", "a training")


def words_of(args: Any) -> list[str]:
    """Return what stands after the program's name; None: that of this process."""
    return sys.argv[1:] if args is None else list(args)


def _check_checkpoint(path: Any, key: str, kind: str) -> None:
    """Raise InputError if a checkpoint is asked for that cannot be read, or lacks ``key``."""
    if path is None:
        return
    if str(path) in _WORDS and not Path(str(path)).exists():
        raise InputError(
            f"--ckpt_path {path}: a run begins in a new folder, which holds none; give the file, "
            "such as lightning_logs/version_0/checkpoints/last.ckpt"
        )
    path = expanded(str(path))
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}; see --ckpt_path")
    if not _is_whole(path, key):
        others = sorted(path.parent.glob("*.ckpt"), key=lambda one: -one.stat().st_mtime_ns)
        whole = next((one for one in others if one != path and _is_whole(one, key)), None)
        instead = "give one that fit wrote below lightning_logs/version_N/checkpoints"
        raise InputError(
            f"{path} is no readable checkpoint of {kind}; "
            + (f"{whole} is whole: give that to --ckpt_path" if whole else instead)
        )


def _is_whole(path: Path, key: str) -> bool:
    """Return whether a checkpoint can be read, and holds ``key``."""
    try:
        checkpoint = torch.load(path, weights_only=True, map_location="meta")
        return "state_dict" in checkpoint and key in checkpoint
    except Exception:  # torch raises many types for a broken file
        return False


def _as_seed(seed_everything: bool | int | None) -> int:
    """Return the seed of ``seed_everything``; 0 where it is switched off."""
    return 0 if seed_everything is None or seed_everything is True else int(seed_everything)
