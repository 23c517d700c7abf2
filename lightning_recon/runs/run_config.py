"""The record of a run's configuration."""

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.cli import SaveConfigCallback
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

from lightning_recon.audit.records import configuration_hash
from lightning_recon.documents import read_text
from lightning_recon.files import run_folder
from lightning_recon.runs.callback import Audit

_LOGS = ("events.out.", "hparams.yaml", "metrics.csv")


class RunConfig(SaveConfigCallback):
    """Writes ``config.yaml`` once the first client has passed, so that bad input leaves nothing."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write nothing yet; tell the audit what its records belong to."""
        if self.already_saved:  # a resumed run's, as it was
            text = read_text(run_folder(trainer) / self.config_filename)
        else:
            text = self.parser.dump(self.config, skip_none=False)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Audit):
                callback.configuration = configuration_hash(text)

    def _save_once(self, trainer: Trainer) -> None:
        if self.already_saved:
            return
        self.already_saved = True
        folder = run_folder(trainer)
        if not trainer.is_global_zero:
            return
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / self.config_filename
        self.parser.save(self.config, path, skip_none=False, overwrite=True, multifile=False)
        text = self.parser.dump(self.config, skip_none=False)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("config", f"```yaml\n{text}\n```")

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Take back the folder that Lightning made for a run that never began."""
        if self.already_saved or not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            if not isinstance(logger, TensorBoardLogger | CSVLogger):
                continue
            logger.finalize("failed")
            folder = Path(logger.log_dir)
            files = list(folder.iterdir()) if folder.is_dir() else []
            if all(file.name.startswith(_LOGS) for file in files):
                shutil.rmtree(folder, ignore_errors=True)
                with suppress(OSError):  # other runs are there
                    folder.parent.rmdir()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Write: the client's update was observed and decoded."""
        self._save_once(trainer)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *_: Any
    ) -> None:
        """Write: a client was attacked."""
        self._save_once(trainer)

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Write: a client was attacked."""
        self._save_once(trainer)

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Write: an update was attacked."""
        self._save_once(trainer)
