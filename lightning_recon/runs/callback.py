"""The audit of a run: what Lightning calls when, and what is written."""

import math
import time
from contextlib import suppress
from typing import Any, Literal

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.trainer.states import TrainerFn
from rich.console import Console
from torch import Tensor

from lightning_recon.attacks import Attack, GradientMatching
from lightning_recon.audit.auditor import Auditor
from lightning_recon.audit.guesses import shown
from lightning_recon.audit.records import (
    ClientRecord,
    checked_record,
    read_records,
)
from lightning_recon.data import ClientDataModule
from lightning_recon.errors import InputError
from lightning_recon.files import write_csv
from lightning_recon.functional.image_quality import psnr
from lightning_recon.metrics import PerImageMetric
from lightning_recon.observation import Failure, Reconstruction
from lightning_recon.report import board
from lightning_recon.report.pictures import save_grid, save_image, save_pictures
from lightning_recon.report.terminal import print_summary
from lightning_recon.runs.ledger import Ledger
from lightning_recon.runs.results import marks_of
from lightning_recon.runs.stopping import Stopped
from lightning_recon.schemas import MisfitError, told


class Audit(Callback):
    """Matches, scores, shows and writes what the attack reconstructs.

    Args:
        experiment: name of the run in its outputs; null: that of the configuration file.
        recovered_psnr: least PSNR, in dB, of an image that counts as recovered.
        null_controls: whether the attack is run on a noise-only update of each client, too.
        num_candidates: images among which a reconstruction is to be identified; 0: none.
        extra_metrics: further metrics of each image, by the name of their column, such as
            ``lpips: {class_path: LPIPS, init_args: {weights: FILE}}``; one that finds no network
            is reported as unavailable.
        num_pictured_clients: clients, by number, whose pictures are written.
        num_estimated_clients: clients, by number, of whose images is told what a linearised
            attacker would get: seconds for one small image, minutes for larger ones or batches; 0:
            none.
        on_failure: what ``test`` does about a client whose attack fails: end, or record it (its
            images then count with the mean image) and go on.
        psnr_every: iterations between two scores in the progress bar.
        images_every: iterations between two image grids in TensorBoard.
    """

    def __init__(
        self,
        experiment: str | None = None,
        recovered_psnr: float = 19.0,
        null_controls: bool = True,
        num_candidates: int = 1000,
        extra_metrics: dict[str, PerImageMetric] | None = None,
        num_pictured_clients: int = 50,
        num_estimated_clients: int = 0,
        on_failure: Literal["stop", "record"] = "stop",
        psnr_every: int = 50,
        images_every: int = 100,
    ) -> None:
        super().__init__()
        if not 0 <= recovered_psnr < math.inf:  # NaN is neither
            raise InputError(
                f"audit.recovered_psnr must be a number of decibels from 0, not {recovered_psnr}"
            )
        for name, value, least in (
            ("num_candidates", num_candidates, 0),
            ("num_pictured_clients", num_pictured_clients, 0),
            ("num_estimated_clients", num_estimated_clients, 0),
            ("psnr_every", psnr_every, 1),
            ("images_every", images_every, 1),
        ):
            if value < least:
                raise InputError(f"audit.{name} must be at least {least}, not {value}")
        self.experiment = experiment
        self.recovered_psnr = recovered_psnr
        self.null_controls = null_controls
        self.num_candidates = num_candidates
        self.extra_metrics = extra_metrics
        self.num_pictured_clients = num_pictured_clients
        self.num_estimated_clients = num_estimated_clients
        self.on_failure = on_failure
        self.psnr_every = psnr_every
        self.images_every = images_every
        self._auditor: Auditor | None = None
        self._fitted: list[ClientRecord] = []
        self._truth: Tensor | None = None
        self._ledger = Ledger()
        self._client_started = time.monotonic()
        # of a fit that was stopped: of the client that it goes on with
        self._client_seconds_before = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse callbacks that would choose by the truth, or end the run with a client.

        Raises:
            InputError: naming the callback and what to do instead.
        """
        assert isinstance(pl_module, Attack)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            name, monitor = type(callback).__name__, getattr(callback, "monitor", None)
            if monitor == "psnr" or str(monitor).startswith("client/"):
                raise InputError(
                    f"{name}: {monitor} is measured against the truth, which must neither stop an "
                    "attack nor choose what it gives back; watch objective, or a part of it"
                )
            if isinstance(callback, EarlyStopping):
                has_patience = isinstance(pl_module, GradientMatching)
                raise InputError(
                    f"{name} would end the whole run, whose epochs are clients; to leave a client "
                    "whose objective stands still, in fit and in test, set "
                    f"model.init_args.{'patience' if has_patience else 'iterations'}"
                )

    # --- one client ----------------------------------------------------------------------------

    def _begin(self, trainer: Trainer) -> list[ClientRecord]:
        """Open the run's folder, and return the records that it holds."""
        self._client_started = time.monotonic()
        records = self._ledger.open(trainer)
        data = trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, ClientDataModule):
            self._auditor = self.auditor(data)
        return records

    def auditor(self, data: ClientDataModule) -> Auditor:
        """Return the auditor of some data, with this audit's settings."""
        return Auditor(
            data,
            self.recovered_psnr,
            self.null_controls,
            self.num_candidates,
            self.extra_metrics,
            self.num_estimated_clients,
        )

    def _record(
        self,
        trainer: Trainer,
        attack: Attack,
        client: int,
        outcome: Reconstruction | Failure,
        seconds: float | None = None,
        noise: Reconstruction | Failure | None = None,
    ) -> ClientRecord:
        """Score one client, and write what is known of it; see :meth:`Auditor.audit`."""
        assert self._auditor is not None
        if seconds is None:
            seconds = time.monotonic() - self._client_started
        record, aligned = self._auditor.audit(attack, client, outcome, seconds, noise)
        if client < self.num_pictured_clients:
            truth = self._auditor.data.client(client).images
            folder = self._ledger.folder / "reconstructions"
            save_grid(folder / f"client{client:05d}.png", truth, aligned)
            for row, image, found in zip(record.rows, truth, aligned, strict=True):
                position = int(row["image"])
                save_pictures(
                    folder, client, position, image, found if row["matched"] >= 0 else None
                )
            if trainer.state.fn != TrainerFn.FITTING and trainer.is_global_zero:
                board.add_images(trainer.loggers, client, truth, aligned, client)
        # last, so that what has a record is complete
        record = self._ledger.append(trainer, record)
        if trainer.is_global_zero:
            board.add_scores(trainer.loggers, record)
        self._client_started = time.monotonic()
        return record

    # --- fit: an epoch is a client -------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember where the outputs go; write again what a resumed run had scored."""
        known = {record.client for record in self._begin(trainer)}
        for record in self._fitted:
            if record.client not in known:  # in a folder of its own they are there
                self._ledger.append_again(trainer, record)
            board.add_scores(trainer.loggers, record)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the time of the client that a resumed run goes on with."""
        self._client_started = time.monotonic() - self._client_seconds_before
        # else a client of few iterations would pass without a figure
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        steps = int(trainer.num_training_batches)
        trainer.log_every_n_steps = min(every, steps)  # type: ignore[attr-defined]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the time of the next client."""
        self._client_started = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Show how far the client is, for people only, and score it after its last iteration."""
        assert isinstance(pl_module, Attack)
        iteration = batch_idx + 1
        is_last = iteration == trainer.num_training_batches
        show_images = iteration % self.images_every == 0 or iteration == 1
        if is_last or show_images or iteration % self.psnr_every == 0:
            step = trainer.current_epoch * int(trainer.num_training_batches) + batch_idx
            self._show(trainer, pl_module, step, with_images=is_last or show_images)
        if is_last:
            # here and not at the end of the epoch: the checkpoint of this step holds the scores
            self._score_fitted(trainer, pl_module)

    def _show(self, trainer: Trainer, attack: Attack, step: int, *, with_images: bool) -> None:
        assert attack.client_index is not None
        assert self._auditor is not None
        if self._truth is None:
            self._truth = self._auditor.data.client(attack.client_index).images
        images = attack.current.images.detach().cpu().float()
        found = shown(images, self._truth, self._auditor.mean_image)
        figure = psnr(found, self._truth).mean()
        attack.log("psnr", figure, prog_bar=True, logger=False, rank_zero_only=True)
        if trainer.is_global_zero:
            board.add_figures(trainer.loggers, {"psnr": float(figure)}, step)
            if with_images:
                client = attack.client_index
                board.add_images(trainer.loggers, client, self._truth, found, step)

    def _score_fitted(self, trainer: Trainer, attack: Attack) -> None:
        assert attack.client_index is not None
        self._truth = None
        self._fitted.append(self._record(trainer, attack, attack.client_index, attack.current))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the outputs."""
        self._finish(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Keep what was scored in the checkpoint, so that a resumed run reports all clients."""
        return {
            "records": [record._asdict() for record in self._fitted],
            "seconds": self._ledger.elapsed,
            "client_seconds": time.monotonic() - self._client_started,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See :meth:`state_dict`."""
        try:
            self._fitted = [checked_record(record) for record in state_dict["records"]]
        except MisfitError as error:
            raise InputError(
                f"the checkpoint holds what is no record of a client: {told(error.place)} {error}; "
                "give another checkpoint, or start again"
            ) from error
        self._ledger.seconds_before = state_dict["seconds"]
        self._client_seconds_before = state_dict.get("client_seconds", 0.0)

    # --- validate and test: a step is a client -------------------------------------------------

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember where the outputs go."""
        self._begin(trainer)

    def on_validation_batch_start(self, *_: Any, **__: Any) -> None:
        """Take the time of the next client."""
        self._client_started = time.monotonic()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Score what the checkpoint holds."""
        self._score_outputs(trainer, pl_module, outputs, batch)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the outputs."""
        self._finish(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember where the outputs go."""
        assert isinstance(pl_module, Attack)
        pl_module.records_failures = self.on_failure == "record"
        self._begin(trainer)
        if self._auditor is not None and self._auditor.data.completed:
            self._ledger.check_same_clients(self._auditor.data)
            if trainer.is_global_zero:  # a CSV logger begins its file anew
                for record in read_records(self._ledger.folder):
                    board.add_scores(trainer.loggers, record)

    on_test_batch_start = on_validation_batch_start

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Score the client."""
        self._score_outputs(trainer, pl_module, outputs, batch)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the outputs."""
        self._finish(trainer, pl_module)

    def _score_outputs(
        self, trainer: Trainer, attack: LightningModule, outputs: Any, batch: Any
    ) -> None:
        assert isinstance(attack, Attack)
        if isinstance(outputs, Reconstruction | Failure):
            self._record(trainer, attack, int(batch), outputs)
        elif isinstance(outputs, list):  # of several clients that were attacked as one
            assert isinstance(attack, GradientMatching)
            assert self._auditor is not None
            outcomes = dict(zip(batch.tolist(), outputs, strict=True))
            seconds = (time.monotonic() - self._client_started) / len(outcomes)
            noises = self._auditor.noise_outcomes(attack, outcomes)
            for client, outcome in outcomes.items():
                self._record(trainer, attack, client, outcome, seconds, noises.get(client))

    # --- predict: no truth ---------------------------------------------------------------------

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember where the outputs go."""
        self._begin(trainer)

    on_predict_batch_start = on_validation_batch_start

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the pictures; there is nothing to score them against."""
        assert isinstance(outputs, Reconstruction)
        images = outputs.images.detach().cpu().float()
        seconds = round(time.monotonic() - self._client_started, 3)
        client = int(batch)
        folder = self._ledger.folder / "reconstructions"
        for position, image in enumerate(images):
            save_image(folder / f"client{client:05d}_reconstruction{position:03d}.png", image)
        if outputs.marks is not None:
            write_csv(folder / f"client{client:05d}_marks.csv", marks_of(outputs))
        record = ClientRecord(
            client, [], len(images), outputs.notes, {}, list(outputs.curve), seconds, None
        )
        self._ledger.append(trainer, record)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the outputs."""
        self._finish(trainer, pl_module)

    # --- stopped ---------------------------------------------------------------------------------

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Write and print what a run that was stopped has come to."""
        is_stopped = isinstance(exception, KeyboardInterrupt | Stopped)
        if is_stopped and trainer.world_size == 1:  # of several processes, others may be gone
            with suppress(InputError):
                self._finish(trainer, pl_module)
            self.print_summary()

    # --- all clients ---------------------------------------------------------------------------

    def _finish(self, trainer: Trainer, attack: LightningModule) -> None:
        assert isinstance(attack, Attack)
        metrics = self.extra_metrics or {}
        self._ledger.write(
            trainer,
            attack,
            experiment=self.experiment or type(attack).__name__,
            num_candidates=self._auditor.num_candidates if self._auditor else 0,
            recovered_psnr=self.recovered_psnr,
            unavailable_metrics={
                name: metric.unavailable for name, metric in metrics.items() if metric.unavailable
            },
        )

    def print_summary(self) -> None:
        """Print the figures and where the outputs are; nothing on processes but the first."""
        if self._ledger.results is not None:
            print_summary(self._ledger.results, self._ledger.folder)
        elif self._ledger.is_empty:
            Console(markup=False).print("no client was finished, and so there are no results")
