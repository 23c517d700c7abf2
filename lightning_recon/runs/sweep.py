"""Sweeps: the product of some axes, run as the clients of one evaluation.

What a sweep's YAML holds stands in :mod:`lightning_recon.runs.cells`.  Every pair of cell and
client is one item, and the items are spread over the devices; each is on disk once it is done.
"""

import argparse
import copy
import inspect
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
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
from lightning_recon.documents import read_yaml as read_stored_yaml
from lightning_recon.errors import InputError, input_error_in, instead, program
from lightning_recon.federation import Federation
from lightning_recon.files import write_atomically, write_csv, write_json
from lightning_recon.observation import Observation
from lightning_recon.report import write_sweep_report
from lightning_recon.report.plot import write_sweep_figure
from lightning_recon.report.sweep import sweep_findings
from lightning_recon.report.terminal import print_findings, print_outputs
from lightning_recon.runs.allowed import check_named
from lightning_recon.runs.callback import Audit
from lightning_recon.runs.cells import (
    SECTIONS,
    Cell,
    check_trainers,
    description,
    read_cells,
    read_yaml,
)
from lightning_recon.runs.claiming import Holding, claimed, held, is_first_process
from lightning_recon.runs.command import command_line
from lightning_recon.runs.making import RunParser, making
from lightning_recon.runs.places import check_devices
from lightning_recon.runs.progress import with_progress
from lightning_recon.runs.refusals import explain
from lightning_recon.runs.results import summarise, versions
from lightning_recon.runs.stopping import Stopping

_TRAINER_DEFAULTS: dict[str, Any] = {
    "devices": 1,
    "logger": False,
    "use_distributed_sampler": False,
    "inference_mode": False,
    "enable_checkpointing": False,
    "enable_model_summary": False,
}
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

    def __init__(self, cells: Sequence[Cell], folder: Path) -> None:
        super().__init__()
        self.cells = list(cells)
        self.folder = folder
        text = json.dumps(description(cells), sort_keys=True, default=str)
        self.origin = Origin(hash_of(text.encode()))
        """What the records say that they belong to."""
        self.parser = cell_parser()
        self.parsed = []
        for cell in self.cells:
            known = {name: cell.config[name] for name in SECTIONS if name in cell.config}
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
        item = int(batch)
        number, client = self.items[item]
        clients = self.parsed[number].data.init_args.num_clients
        self.doing = f"cell {number + 1} of {len(self.cells)}, client {client + 1} of {clients}"
        attack, _, auditor = self.build(number)
        attack.watch = self.watch
        started = time.monotonic()
        outcome = attack.attempt(attack.attack_client, client)
        record, _ = auditor.audit(attack, client, outcome, time.monotonic() - started)
        path = self.folder / "sweep.yaml"
        if not path.exists():  # before what cannot be resumed without it
            write_atomically(path, yaml.safe_dump(description(self.cells), sort_keys=False))
        append_record(self.folder, self.global_rank, record._replace(client=item), self.origin)

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
            len(self.sweep.items), self.completed, self.trainer.global_rank, self.trainer.world_size
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
    if resume is not None:
        _check_same(cells, config, resume)
    root = Path("lightning_logs", folder_name(config))
    if options is not None:
        check_trainers(cells, options)
    if is_dry_run:
        _list_cells(Sweep(cells, root), trainer)
        return None
    with ExitStack() as stack:
        folder = root if resume is None else resume
        if is_first_process():  # the others are told
            if resume is not None:
                stack.enter_context(held(resume))
            else:
                folder = root / stack.enter_context(claimed([root]))
        sweep = Sweep(cells, folder)
        records = []
        if resume is not None:
            records = read_records(resume, sweep.origin, len(sweep.items))
        _run(sweep, config, trainer, {record.client for record in records})
    return folder


def _folder(trainer: Trainer) -> Path:
    """Return the sweep's folder; all processes ask at once, and are told the first one's."""
    return Path(trainer.strategy.broadcast(str(trainer.lightning_module.folder)))


def _going_on(config: Path, folder: Path) -> str | None:
    """Return the command line that goes on with a sweep; None if nothing of it is kept."""
    if not (folder / "records").is_dir():
        return None
    words = ["sweep", "--config", str(config), "--resume", str(folder)]
    return command_line(words)


def _run(sweep: Sweep, config: Path, trainer: Trainer, completed: set[int]) -> None:
    """Attack the clients that are not completed, and write the results."""
    stopping = Stopping(lambda folder: _going_on(config, folder), _folder)
    trainer.callbacks += [Holding(_folder), stopping]  # type: ignore[attr-defined]
    trainer.test(sweep, _Items(sweep, completed), verbose=False)
    trainer.strategy.barrier()
    if trainer.is_global_zero:
        records = read_records(sweep.folder, sweep.origin, len(sweep.items))
        table = write_results(sweep, records)
        about = {
            "command": command_line(),
            "versions": versions(),
            "num_clients": len(records),
            "num_clients_planned": len(sweep.items),
        }
        write_json(sweep.folder / "run.json", about)
        write_sweep_report(sweep.folder)
        write_sweep_figure(sweep.folder / "figure.png", table, list(sweep.cells[0].labels))
        _print_table(sweep, table)


def folder_name(config: Path) -> str:
    """Return the name of a sweep's folder, that of its file, with "sweep" in front."""
    name = config.stem
    return name if name == "sweep" or name.startswith("sweep_") else f"sweep_{name}"


def _check_same(cells: Sequence[Cell], config: Path, resume: Path) -> None:
    path = resume.absolute() / "sweep.yaml"
    if not path.is_file():
        raise InputError(f"{path} is missing: {resume} is no sweep to resume")
    if read_stored_yaml(path) != description(cells):
        raise InputError(f"{path} lists other cells than {config}; run the sweep anew")


def _list_cells(sweep: Sweep, trainer: Trainer) -> None:
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
    parser = RunParser(
        prog=f"{program()} sweep", description="Run the product of some axes.", exit_on_error=False
    )
    parser.add_argument("--config", type=Path, required=True, help="the sweep's YAML")
    parser.add_argument("--resume", type=Path | None, help="folder of an interrupted sweep")
    parser.add_argument("--dry-run", action="store_true", help="list the cells and their time")
    parser.add_class_arguments(Trainer, "trainer", instantiate=False)
    parser.set_defaults({f"trainer.{name}": value for name, value in _TRAINER_DEFAULTS.items()})
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--config")
    found = finder.parse_known_args(list(args))[0].config
    if found:  # what the file says stands behind what the command line says
        section = read_yaml(Path(found)).get("trainer")
        values = dict(section) if isinstance(section, Mapping) else {}
        options = inspect.signature(Trainer).parameters
        for name in values:
            if name not in options:
                meant = instead(name, options)
                raise InputError(f"{found}: trainer: there is no option {name}{meant}")
        parser.set_defaults({f"trainer.{name}": value for name, value in values.items()})
    config = parser.parse_args(list(args))
    check_named(config, Attack, ClientDataModule)
    parser.says_where(config)
    options = parser.instantiate_classes(config).trainer.as_dict()
    if options.get("default_root_dir") not in (None, "."):
        raise InputError(
            "trainer.default_root_dir: a sweep writes below lightning_logs of the folder that it "
            "is started in; leave the option out, and change the folder"
        )
    with making("trainer", options):
        trainer = Trainer(**{**options, "callbacks": with_progress(options)})
    check_devices(trainer)
    device = trainer.strategy.root_device.type  # what "auto" has come to
    options["accelerator"] = {"cuda": "gpu"}.get(device, device)
    run_sweep(config.config, trainer, config.resume, is_dry_run=config.dry_run, options=options)
    return 0
