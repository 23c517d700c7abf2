"""The command line of the project."""

import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentError
from pytorch_lightning.callbacks import ModelCheckpoint, RichProgressBar
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI

from lightning_recon.attacks import Attack
from lightning_recon.callbacks import Audit, RunConfig
from lightning_recon.data import AuditDataModule
from lightning_recon.errors import InputError

_TRAINER_DEFAULTS: dict[str, Any] = {
    "devices": 1,
    "max_epochs": -1,  # as many as there are clients; see before_fit
    "log_every_n_steps": 10,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
    "use_distributed_sampler": False,  # Lightning's pads: a client would count twice
    "inference_mode": False,  # test differentiates too
}
_NOISE = (  # warnings of Lightning that do not concern a person who runs an audit
    ".*isinstance\\(treespec, LeafSpec\\).*",
    "Total length of `ClientLoader` across ranks is zero.*",
    "Using ModelCheckpoint with manual optimization and every_n_train_steps.*",
)


class ReconCLI(LightningCLI):
    """Lightning's command line with the audit added."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the sections ``audit``, ``checkpoint`` and ``progress_bar``."""
        parser.add_lightning_class_args(Audit, "audit")
        parser.add_lightning_class_args(RichProgressBar, "progress_bar")
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults(
            {
                "checkpoint.every_n_train_steps": 100,
                "checkpoint.save_last": True,
                "checkpoint.save_top_k": 1,
            }
        )

    def before_instantiate_classes(self) -> None:
        """Name the experiment after its configuration file; one seed for data and attack."""
        config = self.config[self.subcommand] if self.subcommand else self.config
        files = config.get("config") or []
        if files and config.audit.experiment is None:
            config.audit.experiment = Path(str(files[-1])).stem

    def before_fit(self) -> None:
        """Make an epoch of every client."""
        if self.trainer.max_epochs == -1:
            clients = int(self.datamodule.num_clients)
            self.trainer.fit_loop.max_epochs = clients // self.trainer.world_size or 1


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: what stands after the program's name; null: ``sys.argv``.

    Returns:
        The exit code: 0, or 2 for input that cannot be used.
    """
    torch.set_float32_matmul_precision("highest")
    for noise in _NOISE:
        warnings.filterwarnings("ignore", message=noise)
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    try:
        ReconCLI(
            Attack,
            AuditDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            seed_everything_default=0,
            save_config_callback=RunConfig,
            save_config_kwargs={"overwrite": True},
            trainer_defaults=_TRAINER_DEFAULTS,
            parser_kwargs={"exit_on_error": False},
            args=list(args) if args is not None else None,
        )
    except (InputError, ArgumentError) as error:
        print(f"error: {_one_line(error)}", file=sys.stderr)  # noqa: T201
        return 2
    return 0


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
