"""The record of a run's configuration."""

from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.cli import SaveConfigCallback
from pytorch_lightning.loggers import TensorBoardLogger

from lightning_recon.audit.records import configuration_hash
from lightning_recon.documents import read_text
from lightning_recon.files import run_folder, write_atomically


class RunConfig(SaveConfigCallback):
    """Writes ``config.yaml`` just before what cannot be resumed without it.

    That is the first record, or the first iteration of ``fit``: bad input leaves nothing.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write nothing yet."""

    def text(self, folder: Path) -> str:
        """Return what ``config.yaml`` says, or will say: a resumed run's stays as it was.

        Args:
            folder: of the run.
        """
        if self.already_saved:
            return read_text(folder / self.config_filename)
        return str(self.parser.dump(self.config, skip_none=False))

    def _begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._folder = run_folder(trainer)  # asked by all processes at once

    on_fit_start = on_validation_start = _begin

    def write(self, trainer: Trainer, folder: Path) -> None:
        """Write, once.

        Every process does, before its own first record, and all write the same.

        Args:
            trainer: of the run.
            folder: its own.
        """
        if self.already_saved:
            return
        text = self.text(folder)
        path = folder / self.config_filename
        if trainer.is_global_zero or not path.exists():
            write_atomically(path, text)
        self.already_saved = True
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                logger.experiment.add_text("config", f"```yaml\n{text}\n```")

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Write: the client's update was observed and decoded."""
        self.write(trainer, self._folder)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *_: Any
    ) -> None:
        """Write: what a checkpoint holds was scored."""
        self.write(trainer, self._folder)


def write_config(trainer: Trainer, folder: Path) -> None:
    """Have the configuration of a run written, if it was given as one; again: do nothing.

    Args:
        trainer: of the run.
        folder: its own.
    """
    if (config := _of(trainer)) is not None:
        config.write(trainer, folder)


def configuration_of(trainer: Trainer, folder: Path) -> str:
    """Return the hash of a run's configuration; empty if it was not given as one.

    Args:
        trainer: of the run.
        folder: its own.
    """
    config = _of(trainer)
    return "" if config is None else configuration_hash(config.text(folder))


def _of(trainer: Trainer) -> RunConfig | None:
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return next((one for one in callbacks if isinstance(one, RunConfig)), None)
