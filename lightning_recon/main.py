"""The command line of the project."""

import logging
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentError
from pytorch_lightning.callbacks import ModelCheckpoint
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
            }
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and look at the checkpoint before Lightning does."""
        super().parse_arguments(parser, args)
        config = self.config.get(self.config.get("subcommand") or "", self.config)
        _check_checkpoint(config.get("ckpt_path"))

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

    def after_fit(self) -> None:
        """Print the figures, once the progress bar is gone."""
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Audit):
                callback.print_summary()

    after_validate = after_test = after_predict = after_fit


def _check_checkpoint(path: Any) -> None:
    """Raise InputError if a checkpoint is asked for that cannot be read."""
    if path is None or str(path) in {"best", "last", "hpc", "registry"}:
        return
    if not Path(str(path)).is_file():
        raise InputError(f"no checkpoint at {Path(str(path)).absolute()}; see --ckpt_path")
    try:
        checkpoint = torch.load(path, weights_only=True, map_location="meta")
        complete = "state_dict" in checkpoint and "client_index" in checkpoint
    except Exception:  # torch raises many types for a broken file
        complete = False
    if not complete:
        raise InputError(
            f"{Path(str(path)).absolute()} is no readable checkpoint of an attack; give one that "
            "fit wrote below lightning_logs/version_N/checkpoints"
        )


def _as_seed(seed_everything: bool | int | None) -> int:
    """Return the seed of ``seed_everything``; 0 where it is switched off."""
    return 0 if seed_everything is None or seed_everything is True else int(seed_everything)


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
    except (InputError, ArgumentError, ValueError) as error:
        message = _explain(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)  # noqa: T201
        return 2
    return 0


def _explain(error: Exception) -> str | None:
    """Return one line on what is wrong with the input; None if the error is not the input's."""
    cause: BaseException | None = error
    while cause is not None:  # jsonargparse wraps what a constructor raises
        if isinstance(cause, InputError):
            return " ".join(str(cause).split())
        cause = cause.__cause__ or cause.__context__
    if not isinstance(error, ArgumentError):
        return None
    text = str(error)
    if "\n" not in text:
        return text
    keys = re.findall(r'Parser key "([\w.]+)"', text)
    reasons = re.findall(r"\n\s*- (.*?)(?=\n\s*- |\n\s*Given value)", text, flags=re.DOTALL)
    if reasons and "class_path" in reasons[0]:
        reasons = reasons[:1]  # the class is the type that was meant
    reason = re.sub(r'Parser key "[\w.]+": *', "", " or ".join(reasons) or text)
    if found := re.search(r"Expected a dot import path string: (\S+)", text):
        reason = (
            f"there is no class {found[1]}; give the name of a class of lightning_recon or the "
            "full import path of one"
        )
    return f"{'.'.join(dict.fromkeys(keys))}: {' '.join(reason.split())}"
