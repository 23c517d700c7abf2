"""What a run keeps in its folder: a record of each client as it ends, and all files at the end."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.trainer.states import TrainerFn

from lightning_recon.attacks import Attack
from lightning_recon.audit.records import UNKNOWN, ClientRecord, append_record, read_records
from lightning_recon.audit.results import Results, integrity, sealed, view
from lightning_recon.data import ClientDataModule
from lightning_recon.errors import InputError
from lightning_recon.files import run_folder, write_csv, write_json
from lightning_recon.report import board, write_report
from lightning_recon.runs.results import build_results, peak_memory_bytes, with_files
from lightning_recon.runs.resume import origin_of
from lightning_recon.runs.run_config import configuration_of, write_config


class Ledger:
    """The records of a run and the time that it took, its earlier sessions included.

    Attributes:
        folder: of the run, once it is open.
        seconds_before: that earlier sessions took.
        results: what was written at the end; None before, and on processes but the first.
        is_empty: whether the end came before any client's.
    """

    def __init__(self) -> None:
        self.folder = Path()
        self.seconds_before = 0.0
        self.results: Results | None = None
        self.is_empty = False
        self._origin = UNKNOWN
        self._started = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds of the run so far."""
        return self.seconds_before + time.monotonic() - self._started

    def open(self, trainer: Trainer) -> list[ClientRecord]:
        """Look at the run's folder, and return the records that it holds.

        Raises:
            InputError: if they are another run's.
        """
        # the folder is asked for on every process at once, since Lightning broadcasts it
        self.folder = run_folder(trainer)
        self._started = time.monotonic()
        data = trainer.datamodule  # type: ignore[attr-defined]
        is_fit = trainer.state.fn == TrainerFn.FITTING
        is_resumed = data.completed or (is_fit and trainer.ckpt_path is not None)
        # all processes ask before any begins: one alone could meet the records of this run
        records = read_records(self.folder)
        elapsed = max(_gather(max((one.elapsed for one in records), default=-1.0)))
        if not is_fit:  # a checkpoint is a fit's, with which this run does not go on
            self.seconds_before = max(0.0, elapsed)
        if not is_resumed and elapsed >= 0:
            raise InputError(
                f"{self.folder.absolute()} holds the records of another run, which would count as "
                "this one's; go on with that run, or give this one a folder of its own"
            )
        self._origin = origin_of(configuration_of(trainer, self.folder), data)
        return records

    def check_same_clients(self, data: ClientDataModule) -> None:
        """Look whether the data holds the clients that a resumed run began with.

        Raises:
            InputError: if their images are others, or records are damaged.
        """
        for record in read_records(self.folder, num_clients=data.num_clients):
            labels = data.client_labels(record.client).tolist()
            found = list(zip(data.places(record.client), labels, strict=True))
            if found != [(row.get("index"), row.get("label")) for row in record.rows]:
                raise InputError(
                    f"client {record.client} holds other images than when {self.folder} was begun; "
                    "resume in the same working folder, with the same data set"
                )
        read_records(self.folder, self._origin, data.num_clients)

    def append(self, trainer: Trainer, record: ClientRecord) -> ClientRecord:
        """Keep a record with the time of the run so far, behind the configuration."""
        write_config(trainer, self.folder)
        record = record._replace(elapsed=round(self.elapsed, 3))
        self.append_again(trainer, record)
        return record

    def append_again(self, trainer: Trainer, record: ClientRecord) -> None:
        """Keep a record of an earlier session as it is."""
        append_record(self.folder, trainer.global_rank, record, self._origin)

    def write(
        self,
        trainer: Trainer,
        attack: Attack,
        *,
        experiment: str,
        num_candidates: int,
        recovered_psnr: float,
        unavailable_metrics: dict[str, str],
    ) -> None:
        """Write ``results.json``, ``clients.csv`` and the report of all records; on every process.

        Args:
            trainer: that ran the attack, with its data.
            attack: as it ran.
            experiment: name of the run.
            num_candidates: among how many images each was to be identified.
            recovered_psnr: least PSNR, in dB, of an image that counts as recovered.
            unavailable_metrics: why a metric could not be computed, by its name.

        Raises:
            InputError: if every client failed; all is written then, too.
        """
        peak = max(_gather(peak_memory_bytes()))  # and all processes have written
        if not trainer.is_global_zero:
            return
        records = read_records(self.folder)
        self.is_empty = not records
        if self.is_empty:
            return
        is_validated = trainer.state.fn == TrainerFn.VALIDATING
        data = trainer.datamodule  # type: ignore[attr-defined]
        content = build_results(
            trainer,
            attack,
            records,
            experiment=experiment,
            num_candidates=num_candidates,
            recovered_psnr=recovered_psnr,
            # validate scores what a checkpoint holds, however many clients there are
            num_clients_planned=len(records) if is_validated else data.num_clients,
            unavailable_metrics=unavailable_metrics,
            seconds=self.elapsed,
            peak_memory=peak,
        )
        rows = [row for record in records for row in record.rows]
        if rows:  # else there is no truth
            write_csv(self.folder / "clients.csv", with_files(rows, data))
        content["integrity"] = integrity(self._origin, self.folder / "clients.csv")
        write_json(self.folder / "results.json", sealed(content))
        results = view(content)
        write_report(self.folder)
        if rows:
            board.add_summary(trainer.loggers, results, rows)
        self.results = results
        _check_any_success(records)


def _check_any_success(records: Sequence[ClientRecord]) -> None:
    """Raise InputError if every client failed: then it is the configuration that is wrong."""
    reasons = [record.failure for record in records if record.failure]
    if len(reasons) == len(records):
        raise InputError(f"the attack failed on all {len(records)} clients: {reasons[0]}")


def _gather(value: Any) -> list[Any]:
    """Return the values of all processes, on every process."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return [value]
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, value)
    return gathered
