"""The auditor: here, and only here, a reconstruction meets the truth."""

import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.cli import SaveConfigCallback
from pytorch_lightning.loggers import TensorBoardLogger
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lightning_recon.attacks import Attack, OptimizationAttack
from lightning_recon.data import ClientDataModule
from lightning_recon.functional.image_quality import psnr
from lightning_recon.matching import match
from lightning_recon.outputs import (
    IMPORT_MEMORY_BYTES,
    describe_attack,
    device_name,
    peak_memory_bytes,
    versions,
    write_csv,
    write_json,
)
from lightning_recon.report import AuditedImage, save_grid, save_image, verdict, write_report
from lightning_recon.scores import Row, aggregate, score
from lightning_recon.structures import PrivateBatch, Reconstruction


class ClientRecord(NamedTuple):
    """What the audit keeps of one client."""

    client: int
    rows: list[Row]
    num_reconstructions: int
    notes: dict[str, float]
    noise_only: dict[str, float] | None


class Audit(Callback):
    """Matches, scores, shows and writes what the attack reconstructs.

    Args:
        experiment: name of the run in its outputs; null: that of the configuration file.
        recovered_psnr: least PSNR, in dB, of an image that counts as recovered.
        null_controls: whether the attack is run on a noise-only update of each client, too.
        psnr_every: iterations between two scores in the progress bar.
        images_every: iterations between two image grids in TensorBoard.
        max_report_images: pictures that are kept for the report.
    """

    def __init__(
        self,
        experiment: str | None = None,
        recovered_psnr: float = 19.0,
        null_controls: bool = True,
        psnr_every: int = 20,
        images_every: int = 100,
        max_report_images: int = 512,
    ) -> None:
        super().__init__()
        self.experiment = experiment
        self.recovered_psnr = recovered_psnr
        self.null_controls = null_controls
        self.psnr_every = psnr_every
        self.images_every = images_every
        self.max_report_images = max_report_images
        self._records: list[ClientRecord] = []
        self._pictures: list[AuditedImage] = []
        self._truth: PrivateBatch | None = None
        self._mean_image: Tensor | None = None
        self._folder: Path | None = None
        self._started = time.monotonic()
        self._seconds_before = 0.0
        self._summary: tuple[dict[str, Any], list[Row], Path] | None = None

    # --- one client ----------------------------------------------------------------------------

    def _record(
        self, trainer: Trainer, attack: Attack, client: int, reconstruction: Reconstruction
    ) -> list[Row]:
        """Score one client, and write its pictures."""
        truth = _data(trainer).client(client)
        reconstruction = Reconstruction(
            reconstruction.images.detach().cpu().float(), *reconstruction[1:]
        )
        mean_image = self._mean(trainer)
        noise_only = None
        if self.null_controls:
            null = attack.attack_noise(client).images.detach().cpu().float()
            values = psnr(_shown(null, truth.images, mean_image), truth.images)
            floor = psnr(mean_image.expand_as(truth.images), truth.images)
            recovered = (values >= self.recovered_psnr) & (values > floor)
            noise_only = {"psnr": float(values.mean()), "recovered": int(recovered.sum())}
        scored = score(reconstruction, truth, mean_image, self.recovered_psnr)
        rows = [{"client": float(client), **row} for row in scored]
        self._records.append(
            ClientRecord(client, rows, len(reconstruction.images), reconstruction.notes, noise_only)
        )
        aligned = _aligned(reconstruction.images, truth.images, rows)
        folder = self._output_folder(trainer) / "reconstructions"
        save_grid(folder / f"client{client:05d}.png", truth.images, aligned)
        for position, row in enumerate(rows):
            pair = slice(position, position + 1)
            name = f"client{client:05d}_image{position:03d}.png"
            save_grid(folder / name, truth.images[pair], aligned[pair])
            if len(self._pictures) < self.max_report_images:
                self._pictures.append(
                    {
                        "truth": truth.images[position],
                        "reconstruction": aligned[position] if row["matched"] >= 0 else None,
                        "row": row,
                    }
                )
        return rows

    def _mean(self, trainer: Trainer) -> Tensor:
        """Return the mean of the public images: the guess of one who learned nothing."""
        if self._mean_image is None:
            public = _data(trainer).public_images()
            shape = _data(trainer).image_shape
            self._mean_image = public.mean(0) if len(public) else torch.full(shape, 0.5)
        return self._mean_image

    def _output_folder(self, trainer: Trainer) -> Path:
        # asked for on every process at once, since Lightning broadcasts it
        assert self._folder is not None
        return self._folder

    def _begin(self, trainer: Trainer, attack: LightningModule) -> None:
        self._folder = Path(trainer.log_dir or trainer.default_root_dir)
        self._started = time.monotonic()

    # --- fit: an epoch is a client -------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember where the outputs go."""
        self._begin(trainer, pl_module)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Show how far the client is, for people only, and score it after its last iteration."""
        if not isinstance(pl_module, OptimizationAttack):
            return
        iteration = batch_idx + 1
        is_last = iteration == trainer.num_training_batches
        show_images = iteration % self.images_every == 0 or iteration == 1
        if is_last or show_images or iteration % self.psnr_every == 0:
            self._show(trainer, pl_module, with_images=is_last or show_images)
        if is_last:
            # here and not at the end of the epoch: the checkpoint of this step holds the scores
            self._score_fitted(trainer, pl_module)

    def _show(self, trainer: Trainer, attack: OptimizationAttack, *, with_images: bool) -> None:
        assert attack.client_index is not None
        if self._truth is None:
            self._truth = _data(trainer).client(attack.client_index)
        images = attack.current.images.detach().cpu().float()
        truth = self._truth.images
        shown = _shown(images, truth, self._mean(trainer))
        attack.log("psnr", psnr(shown, truth).mean(), prog_bar=True, rank_zero_only=True)
        if with_images and isinstance(trainer.logger, TensorBoardLogger):
            columns = torch.cat([truth, shown], dim=2)[:8]  # truth above its reconstruction
            trainer.logger.experiment.add_image(
                f"client_{attack.client_index}/truth_above_reconstruction",
                torch.cat(list(columns), dim=2),
                trainer.global_step,
            )

    def _score_fitted(self, trainer: Trainer, attack: OptimizationAttack) -> None:
        assert attack.client_index is not None
        self._truth = None
        rows = self._record(trainer, attack, attack.client_index, attack.current)
        for name in ("psnr", "ssim", "cw_ssim", "psnr_subject"):
            mean = sum(row[name] for row in rows) / len(rows)
            attack.log(f"client/{name}", mean, rank_zero_only=True)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the outputs."""
        self._finish(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Keep what was scored in the checkpoint, so that a resumed run reports all clients."""
        seconds = self._seconds_before + time.monotonic() - self._started
        return {"records": [record._asdict() for record in self._records], "seconds": seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See :meth:`state_dict`."""
        self._records = [ClientRecord(**record) for record in state_dict["records"]]
        self._seconds_before = state_dict["seconds"]

    # --- validate and test: a step is a client -------------------------------------------------

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember where the outputs go."""
        self._records, self._pictures = [], []
        self._begin(trainer, pl_module)

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
        self._begin(trainer, pl_module)

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
        if isinstance(outputs, Reconstruction):
            self._record(trainer, attack, int(batch), outputs)

    # --- predict: no truth ---------------------------------------------------------------------

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember where the outputs go."""
        self._begin(trainer, pl_module)

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
        client = int(batch)
        folder = self._output_folder(trainer) / "reconstructions"
        folder.mkdir(parents=True, exist_ok=True)
        for position, image in enumerate(images):
            save_image(folder / f"client{client:05d}_reconstruction{position:03d}.png", image)
        self._records.append(ClientRecord(client, [], len(images), outputs.notes, None))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the outputs."""
        self._finish(trainer, pl_module)

    # --- all clients ---------------------------------------------------------------------------

    def _finish(self, trainer: Trainer, attack: LightningModule) -> None:
        assert isinstance(attack, Attack)
        records = sorted(_gather(self._records), key=lambda record: record.client)
        pictures = _gather(self._pictures)
        peak = max(_gather([peak_memory_bytes()]))
        folder = self._output_folder(trainer)
        if not trainer.is_global_zero or not records:
            return
        rows = [row for record in records for row in record.rows]
        seconds = self._seconds_before + time.monotonic() - self._started
        results = self._results(trainer, attack, records)
        results |= {
            "wall_seconds": round(seconds, 3),
            "peak_memory_bytes": peak,
            "import_memory_bytes": IMPORT_MEMORY_BYTES,
            "device": device_name(attack.device),
            "num_processes": trainer.world_size,
            "trainer_precision": str(trainer.precision),
            "versions": versions(),
            "command": shlex.join(["python", *sys.argv]),
        }
        write_csv(folder / "clients.csv", rows)
        write_json(folder / "results.json", results)
        pictures.sort(key=lambda picture: (picture["row"]["client"], picture["row"]["image"]))
        if rows:
            write_report(folder, results, rows, pictures)
        self._summary = results, rows, folder

    def print_summary(self) -> None:
        """Print the figures and where the outputs are; nothing on processes but the first."""
        if self._summary is not None:
            _print_summary(*self._summary)

    def _results(
        self, trainer: Trainer, attack: Attack, records: list[ClientRecord]
    ) -> dict[str, Any]:
        data = trainer.datamodule  # type: ignore[attr-defined]
        rows = [row for record in records for row in record.rows]
        results = {
            "experiment": self.experiment or type(attack).__name__,
            **describe_attack(attack),
            "num_clients": len(records),
            **aggregate(rows, sum(record.num_reconstructions for record in records)),
            "notes": [{"client": record.client, **record.notes} for record in records],
        }
        results["recovered_psnr"] = self.recovered_psnr
        if isinstance(data, ClientDataModule):
            results["data"] = {
                "name": data.name,
                "fallback": data.fallback,
                "description": data.describe(),
            }
            results["masks"] = data.mask_summary()
        controls = [record.noise_only for record in records if record.noise_only]
        if controls:
            results["null"]["noise_only"] = {
                "psnr": sum(control["psnr"] for control in controls) / len(controls),
                "recovered": int(sum(control["recovered"] for control in controls)),
            }
        return results


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


def _data(trainer: Trainer) -> ClientDataModule:
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(data, ClientDataModule)
    return data


def _gather(items: list[Any]) -> list[Any]:
    """Return the items of all processes, on every process."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return list(items)
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, items)
    return [item for part in gathered for item in part]


def _shown(images: Tensor, truth: Tensor, mean_image: Tensor) -> Tensor:
    """Return for each true image its reconstruction, or the mean image, B C H W."""
    row = match(images, truth).row
    shown = mean_image.expand_as(truth).clone()
    shown[row >= 0] = images[row[row >= 0]]
    return shown


def _aligned(images: Tensor, truth: Tensor, rows: list[Row]) -> Tensor:
    """Return the reconstruction of each true image, B C H W; NaN where there is none."""
    aligned = torch.full_like(truth, torch.nan)
    for position, row in enumerate(rows):
        if row["matched"] >= 0:
            aligned[position] = images[int(row["matched"])]
    return aligned


def _print_summary(results: dict[str, Any], rows: list[Row], folder: Path) -> None:
    """Print the figures and where the outputs are."""
    console = Console()
    if rows:
        table = Table(
            title=f"{results['experiment']}: {verdict(results, rows)}", title_style="bold"
        )
        table.add_column("over all images")
        for name in ("mean", "median", "worst leak"):
            table.add_column(name, justify="right")
        for name, values in results["metrics"].items():
            digits = 4 if name.startswith("mse") else 2 if "psnr" in name else 3
            table.add_row(
                name + (" (dB)" if "psnr" in name else ""),
                *(f"{values[key]:.{digits}f}" for key in ("mean", "median", "worst")),
            )
        for name, values in results["null"].items():
            table.add_row(f"null control: {name}, psnr (dB)", f"{values['psnr']:.2f}", "", "")
        console.print(table)
    for note in _warnings(results):
        console.print(note, style="bold red")
    data = results.get("data", {})
    console.print(f"data     {data.get('description', 'captured updates')}", highlight=False)
    console.print(f"privacy  {results['privacy']['statement']}", highlight=False)
    console.print(f"granted  {', '.join(results['oracles']) or 'nothing'} to the attacker")
    console.print(f"outputs  {folder}/ (report.html, results.json, clients.csv, reconstructions/)")


def _warnings(results: dict[str, Any]) -> list[str]:
    """Return what stood in for data or masks that were asked for."""
    warnings = []
    if results.get("data", {}).get("fallback"):
        warnings.append("SAMPLE PHOTOGRAPHS were attacked: the data set was not found")
    if results.get("masks", {}).get("method") == "grabcut":
        warnings.append("GRABCUT made the subject masks: no SAM checkpoint was found")
    return warnings
