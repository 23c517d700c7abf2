"""The record of a run's configuration."""

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.cli import SaveConfigCallback
from pytorch_lightning.loggers import TensorBoardLogger


class RunConfig(SaveConfigCallback):
    """Writes ``config.yaml`` once the first client has passed, so that bad input leaves nothing."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write nothing yet."""

    def _save_once(self, trainer: Trainer, attack: LightningModule) -> None:
        if self.already_saved:
            return
        super().setup(trainer, attack, str(trainer.state.fn))
        if isinstance(trainer.logger, TensorBoardLogger) and trainer.is_global_zero:
            text = self.parser.dump(self.config, skip_none=False)
            trainer.logger.experiment.add_text("config", f"```yaml\n{text}\n```")

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Take back the folder that Lightning made for a run that never began."""
        logger = trainer.logger
        if self.already_saved or not isinstance(logger, TensorBoardLogger):
            return
        if trainer.is_global_zero:
            logger.finalize("failed")
            folder = Path(logger.log_dir)
            files = list(folder.iterdir()) if folder.is_dir() else []
            if all(file.name.startswith(("events.out.", "hparams.yaml")) for file in files):
                shutil.rmtree(folder, ignore_errors=True)
                with suppress(OSError):  # other runs are there
                    folder.parent.rmdir()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Write: the client's update was observed and decoded."""
        self._save_once(trainer, pl_module)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *_: Any
    ) -> None:
        """Write: a client was attacked."""
        self._save_once(trainer, pl_module)

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Write: a client was attacked."""
        self._save_once(trainer, pl_module)

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Write: an update was attacked."""
        self._save_once(trainer, pl_module)
