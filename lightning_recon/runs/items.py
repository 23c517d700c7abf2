"""Items of one run, each a client of a cell, spread over the devices, each on disk once done.

What a cell is stands in :mod:`lightning_recon.runs.cells`; what runs them, and what is made of
their records, in :mod:`lightning_recon.runs.sweep` and :mod:`lightning_recon.runs.recommend`.
"""

import copy
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

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
from lightning_recon.data import ClientDataModule
from lightning_recon.data.sharing import ClientLoader, share_clients
from lightning_recon.errors import InputError, input_error_in
from lightning_recon.federation import Federation
from lightning_recon.files import write_atomically
from lightning_recon.observation import Observation
from lightning_recon.runs.allowed import check_named
from lightning_recon.runs.callback import Audit
from lightning_recon.runs.cell_command import in_folder
from lightning_recon.runs.cells import SECTIONS, Cell, description
from lightning_recon.runs.claiming import Holding
from lightning_recon.runs.command import command_line
from lightning_recon.runs.making import RunParser
from lightning_recon.runs.refusals import explain
from lightning_recon.runs.stopping import Stopping


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


def _folder(trainer: Trainer) -> Path:
    """Return the sweep's folder; all processes ask at once, and are told the first one's."""
    return Path(trainer.strategy.broadcast(str(trainer.lightning_module.folder)))


def run_cells(
    sweep: Sweep,
    command: str,
    config: Path,
    trainer: Trainer,
    resume: Path | None,
    write: Callable[[], object],
) -> Path:
    """Do what is missing of a file's items, in a folder of their own, and write what they come to.

    Args:
        sweep: with the folder that a new one is made in.
        command: that runs it.
        config: the file that lists the cells, which
            :func:`~lightning_recon.runs.cell_command.check_run` has seen.
        trainer: without a logger.
        resume: the folder of a run that was interrupted; null: a new one.
        write: writes the results of what is on disk in ``sweep.folder``; by one process.

    Returns:
        The folder.
    """
    with in_folder(sweep.folder, resume) as folder:
        sweep.folder = folder
        run_items(sweep, [command, "--config", str(config)], trainer, resume)
        if trainer.is_global_zero:
            write()
    return folder


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
