"""Sweeps: the product of some axes, run as the clients of one evaluation.

What a sweep's YAML holds stands in :mod:`lightning_recon.runs.cells`.  Every pair of cell and
client is one item, and the items are spread over the devices; each is on disk once it is done.
"""

import copy
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jsonargparse import ArgumentError, Namespace
from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lightning_recon.attacks import Attack
from lightning_recon.audit.auditor import Auditor
from lightning_recon.audit.records import (
    ClientRecord,
    Origin,
    append_record,
    hash_of,
    read_records,
)
from lightning_recon.audit.results import Results, view
from lightning_recon.data import ClientDataModule
from lightning_recon.data.sharing import ClientLoader, share_clients
from lightning_recon.errors import InputError, input_error_in
from lightning_recon.federation import Federation
from lightning_recon.files import write_atomically, write_csv, write_json
from lightning_recon.observation import Observation
from lightning_recon.report import write_sweep_report
from lightning_recon.report.plot import write_sweep_figure
from lightning_recon.report.sweep import sweep_findings
from lightning_recon.report.terminal import print_findings, print_outputs
from lightning_recon.runs.allowed import check_named
from lightning_recon.runs.callback import Audit
from lightning_recon.runs.cell_command import about, check_cells, in_folder, trainer_of
from lightning_recon.runs.cells import (
    SECTIONS,
    Cell,
    check_trainers,
    description,
    read_cells,
)
from lightning_recon.runs.claiming import Holding
from lightning_recon.runs.command import command_line
from lightning_recon.runs.making import RunParser
from lightning_recon.runs.refusals import explain
from lightning_recon.runs.results import summarise
from lightning_recon.runs.stopping import Stopping

_OUTPUTS = ("report.html", "figure.png", "results.csv", "records", "sweep.yaml", "run.json")


class BuiltCell(NamedTuple):
    """A cell's objects."""

    attack: Attack
    data: ClientDataModule
    auditor: Auditor


def cell_parser() -> RunParser:
    """Return the parser of a cell's configuration."""
    parser = RunParser(exit_on_error=False)
    parser.add_argument("--seed_everything", type=int, default=0)
    parser.add_lightning_class_args(Attack, "model", subclass_mode=True)
    parser.add_lightning_class_args(ClientDataModule, "data", subclass_mode=True)
    parser.add_lightning_class_args(Audit, "audit")
    parser.link_arguments("seed_everything", "model.init_args.seed")
    parser.link_arguments("seed_everything", "data.init_args.seed")
    return parser


@contextmanager
def _in_cell(cell: Cell) -> Iterator[None]:
    """Within this context what is said of the input names the cell."""
    try:
        yield
    except Exception as error:
        found = input_error_in(error)
        if found is None and not isinstance(error, ArgumentError):
            raise
        said = found or explain(str(error))
        labels = ", ".join(f"{axis} {label}" for axis, label in cell.labels.items())
        raise InputError(f"the cell of {labels}: {said}") from error


class Sweep(LightningModule):
    """Runs items, each a client of a cell.

    Args:
        cells: of the sweep.
        folder: that records are written to.
    """

    sections: tuple[str, ...] = SECTIONS
    """What is made of a cell's configuration."""

    def __init__(self, cells: Sequence[Cell], folder: Path) -> None:
        super().__init__()
        self.cells = list(cells)
        self.folder = folder
        text = json.dumps(description(cells), sort_keys=True, default=str)
        self.origin = Origin(hash_of(text.encode()))
        """What the records say that they belong to."""
        self.parser = self.make_parser()
        self.parsed = []
        for cell in self.cells:
            known = {name: cell.config[name] for name in self.sections if name in cell.config}
            # the parser writes into what it is given
            with _in_cell(cell):
                parsed = self.parser.parse_object(copy.deepcopy(known))
                check_named(parsed, Attack, ClientDataModule)
            self.parsed.append(parsed)
        self.items = [
            (number, client)
            for number, parsed in enumerate(self.parsed)
            for client in range(parsed.data.init_args.num_clients)
        ]
        self._built: tuple[int, str, BuiltCell] | None = None
        self.watch: Callable[[int, int], None] | None = None
        """Told how far the attack is; set by who shows progress."""
        self.doing = ""
        """Cell and client in hand, for people."""

    def make_parser(self) -> RunParser:
        """Return the parser of a cell's configuration."""
        return cell_parser()

    @property
    def num_items(self) -> int:
        """How many items a whole run has."""
        return len(self.items)

    @property
    def order(self) -> Sequence[int]:
        """The order in which the items are done."""
        return range(self.num_items)

    def on_test_start(self) -> None:
        """Agree on the folder: processes that started at different times would not."""
        self.folder = _folder(self.trainer)

    def make(self, number: int) -> Namespace:
        """Return the attack, data and audit of a cell, as they are made."""
        with _in_cell(self.cells[number]):
            self.parser.says_where(self.parsed[number])
            objects: Namespace = self.parser.instantiate_classes(self.parsed[number])
        return objects

    def build(self, number: int) -> BuiltCell:
        """Return the objects of a cell; the last one's are kept, and its data if they are alike."""
        if self._built is not None and self._built[0] == number:
            return self._built[2]
        parsed = self.parsed[number]
        fingerprint = repr((parsed.data, parsed.audit))
        shared = None
        if self._built is not None and self._built[1] == fingerprint:
            shared = self._built[2].data, self._built[2].auditor
        self._built = None  # a payload may take gigabytes: let go of it before the next is made
        objects = self.make(number)
        attack, data, audit = objects.model, objects.data, objects.audit
        if shared is not None:
            data, auditor = shared
        else:
            data.prepare_data()
            auditor = audit.auditor(data)
        attack.trainer = self.trainer
        attack.records_failures = True
        attack.loop.limit = int(self.trainer.fast_dev_run) or None  # type: ignore[attr-defined]
        attack.to(self.device)
        attack.bind(data.spec, data.public_images())
        self._built = number, fingerprint, BuiltCell(attack, data, auditor)
        return self._built[2]

    @property
    def data(self) -> ClientDataModule:
        """The data of the cell that was built last."""
        assert self._built is not None
        return self._built[2].data

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        """Attack one client of one cell; ``batch`` is the item's number."""
        self.keep(self.attack_item(int(batch)))

    def attack_item(self, item: int) -> ClientRecord:
        """Return the record of one client of one cell, which has the item's number."""
        number, client = self.items[item]
        clients = self.parsed[number].data.init_args.num_clients
        self.doing = f"cell {number + 1} of {len(self.cells)}, client {client + 1} of {clients}"
        attack, _, auditor = self.build(number)
        attack.watch = self.watch
        started = time.monotonic()
        outcome = attack.attempt(attack.attack_client, client)
        record, _ = auditor.audit(attack, client, outcome, time.monotonic() - started)
        return record._replace(client=item)

    def keep(self, record: ClientRecord) -> None:
        """Put the record of an item on disk, which it has the number of."""
        path = self.folder / "sweep.yaml"
        if not path.exists():  # before what cannot be resumed without it
            write_atomically(path, yaml.safe_dump(description(self.cells), sort_keys=False))
        append_record(self.folder, self.global_rank, record, self.origin)

    def estimate_seconds(self, number: int) -> float:
        """Return about how long one client of a cell takes, from one measured iteration."""
        attack, data, auditor = self.build(number)
        started = time.monotonic()
        with attack.computing():
            observation = data.play(attack.federation, 0)
            seconds = time.monotonic() - started + attack.loop.estimate(observation)
        return seconds * (2 if auditor.null_controls else 1)


class _Items(LightningDataModule):
    """The numbers of the items that are still to do, and the data of the cell in hand."""

    def __init__(self, sweep: Sweep, completed: set[int]) -> None:
        super().__init__()
        self.sweep = sweep
        self.completed = completed

    def play(self, federation: Federation, client: int, *, noise_only: bool = False) -> Observation:
        """Play a round with one client of the cell in hand."""
        return self.sweep.data.play(federation, client, noise_only=noise_only)

    def test_dataloader(self) -> ClientLoader:
        """This process' share."""
        assert self.trainer is not None
        return share_clients(
            self.sweep.num_items,
            self.completed,
            self.trainer.global_rank,
            self.trainer.world_size,
            self.sweep.order,
        )


def write_results(sweep: Sweep, records: Sequence[ClientRecord]) -> list[dict[str, Any]]:
    """Write ``results.csv``, one row per cell that has records, and return the rows."""
    by_cell: dict[int, list[ClientRecord]] = {}
    for record in records:
        by_cell.setdefault(sweep.items[record.client][0], []).append(record)
    table = []
    for number, cell_records in sorted(by_cell.items()):
        objects = sweep.make(number)
        results = view(summarise(objects.model, cell_records))
        table.append({**sweep.cells[number].labels, **_tidy(results, cell_records)})
    write_csv(sweep.folder / "results.csv", table)
    return table


def _tidy(results: Results, records: Sequence[ClientRecord]) -> dict[str, Any]:
    """Return the figures of one cell; None where there is none."""
    psnr, privacy = results.metric("psnr"), results.privacy
    return {
        "psnr": psnr.mean,
        "psnr_ci_low": psnr.ci_low,
        "psnr_ci_high": psnr.ci_high,
        "psnr_worst": psnr.worst,
        **{name: results.metric(name).mean for name in ("psnr_subject", "ssim", "cw_ssim", "mse")},
        "recovered": results.recovered,
        "recall": results.recall,
        "precision": results.precision,
        "identification": results.identification.rate,
        **{f"null_{name}": control.psnr for name, control in results.null.items()},
        "local_estimate": results.local_estimate.psnr,
        "clip_norm": privacy.clip_norm,
        "noise_std": privacy.noise_std,
        "epsilon_claimed": privacy.claimed.epsilon,
        "epsilon_actual": privacy.actual.epsilon,
        "num_clients": results.num_clients,
        "num_images": results.num_images,
        "num_failed": len(results.failures),
        "noise_only_recovered": results.control("noise_only").recovered,
        "recovered_convincing": results.recovered_convincing,
        "seconds": sum(record.seconds for record in records) / len(records),
    }


def run_sweep(
    config: Path,
    trainer: Trainer,
    resume: Path | None = None,
    *,
    is_dry_run: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Path | None:
    """Run a sweep, or what is missing of one, and write its results.

    Args:
        config: the sweep's YAML.
        trainer: without a logger.
        resume: the folder of a sweep that was interrupted.
        is_dry_run: list the cells and estimate the time; attack nothing.
        options: of the trainer, to hold those of the cells' configurations against.

    Returns:
        The sweep's folder; None after a dry run.

    Raises:
        InputError: if the configuration cannot be used, or is not that of the resumed sweep.
    """
    cells = read_cells(config)
    if options is not None:
        check_trainers(cells, options)
    root = Path("lightning_logs", folder_name(config))
    if is_dry_run:
        if resume is not None:
            check_cells(cells, config, resume)
        list_cells(Sweep(cells, root), trainer)
        return None
    with in_folder(cells, config, root, resume) as folder:
        sweep = Sweep(cells, folder)
        run_items(sweep, ["sweep", "--config", str(config)], trainer, resume)
        if trainer.is_global_zero:
            records = read_records(sweep.folder, sweep.origin, sweep.num_items)
            table = write_results(sweep, records)
            write_json(sweep.folder / "run.json", about(len(records), sweep.num_items))
            write_sweep_report(sweep.folder)
            write_sweep_figure(sweep.folder / "figure.png", table, list(sweep.cells[0].labels))
            _print_table(sweep, table)
    return folder


def _folder(trainer: Trainer) -> Path:
    """Return the sweep's folder; all processes ask at once, and are told the first one's."""
    return Path(trainer.strategy.broadcast(str(trainer.lightning_module.folder)))


def run_items(sweep: Sweep, words: Sequence[str], trainer: Trainer, resume: Path | None) -> None:
    """Do the items that are not done yet, each on disk once it is.

    Args:
        sweep: with its folder.
        words: of the command line that begins such a sweep anew; with ``--resume`` it goes on.
        trainer: without a logger.
        resume: the folder of a sweep that was interrupted; null: nothing is done.
    """

    def going_on(folder: Path) -> str | None:
        is_kept = (folder / "records").is_dir()
        return command_line([*words, "--resume", str(folder)]) if is_kept else None

    done = [] if resume is None else read_records(resume, sweep.origin, sweep.num_items)
    trainer.callbacks += [Holding(_folder), Stopping(going_on, _folder)]  # type: ignore[attr-defined]
    trainer.test(sweep, _Items(sweep, {record.client for record in done}), verbose=False)
    trainer.strategy.barrier()


def folder_name(config: Path) -> str:
    """Return the name of a sweep's folder, that of its file, with "sweep" in front."""
    name = config.stem
    return name if name == "sweep" or name.startswith("sweep_") else f"sweep_{name}"


def list_cells(sweep: Sweep, trainer: Trainer) -> None:
    """Print every cell with the time it will take."""
    sweep.trainer = trainer
    sweep.to(trainer.strategy.root_device)
    table = Table(title=f"{len(sweep.cells)} cells, {len(sweep.items)} clients")
    for name in (*sweep.cells[0].labels, "clients", "seconds"):
        table.add_column(name)
    total = 0.0
    for number, cell in enumerate(sweep.cells):
        clients = sum(item[0] == number for item in sweep.items)
        seconds = sweep.estimate_seconds(number) * clients
        total += seconds
        table.add_row(*map(str, cell.labels.values()), str(clients), f"{seconds:.1f}")
    console = Console(markup=False)  # a label may hold brackets
    console.print(table)
    minutes = total / trainer.world_size / 60
    console.print(f"about {minutes:.1f} minutes on {trainer.world_size} devices")


def _print_table(sweep: Sweep, rows: Sequence[Mapping[str, Any]]) -> None:
    figures = {
        "PSNR (dB)": "psnr",
        "mean image": "null_mean_image",
        "recall": "recall",
        "failed": "num_failed",
    }
    names = list(sweep.cells[0].labels)
    table = Table(title=f"{len(rows)} cells, over all images")
    for name in (*names, *figures):
        table.add_column(name, justify="right")
    for row in rows:
        labels = [f"{row[n]:g}" if isinstance(row[n], float) else str(row[n]) for n in names]
        table.add_row(*labels, *(f"{row[name]:.4g}" for name in figures.values()))
    console = Console(markup=False)  # a path may hold brackets
    console.print(table)
    print_findings(console, sweep_findings(sweep.folder))
    print_outputs(console, sweep.folder, _OUTPUTS)


def main(args: Sequence[str]) -> int:
    """Run the command ``sweep``.

    Args:
        args: what stands after the command.

    Returns:
        The exit code, 0.

    Raises:
        InputError: see :func:`run_sweep`.
    """
    config, trainer, options = trainer_of(args, "sweep", "Run the product of some axes.")
    run_sweep(config.config, trainer, config.resume, is_dry_run=config.dry_run, options=options)
    return 0
