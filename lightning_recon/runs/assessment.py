"""The items behind a recommendation: attacks on clients, trainings and local estimates.

All are items of one run, so that they share devices, records and resuming; what one item came to is
the record of a client, a training's curve that of its accuracy.
"""

import copy
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jsonargparse import Namespace
from torch import Tensor

from lightning_recon.audit.privacy_statement import privacy_statement
from lightning_recon.audit.recommendation import (
    Accuracy,
    Assessed,
    Attacked,
    Estimated,
    Guaranteed,
    leak_of,
    wilson,
)
from lightning_recon.audit.records import ClientRecord
from lightning_recon.errors import InputError
from lightning_recon.functional.image_quality import decibels
from lightning_recon.observation import Grant
from lightning_recon.runs.cells import SECTIONS, Cell
from lightning_recon.runs.estimate import estimated_clients
from lightning_recon.runs.federated import Dealt, FederatedTraining, Server, Setting
from lightning_recon.runs.items import Sweep, cell_parser
from lightning_recon.runs.making import RunParser, making

ESTIMATE = "local_estimate"
"""Key of a cell: clients that are estimated of each defense."""
_Found = tuple[dict[str, float], list[tuple[int, float]]]
"""Notes and curve of a record."""
_PROTECTION = ("model.init_args.client", "model.init_args.defenses")


class Assessment(Sweep):
    """Attacks the clients of every cell, then trains and estimates every defense's federation.

    Args:
        cells: every defense with every attack, the attacks running fastest.
        folder: that records are written to.
    """

    sections = (*SECTIONS, "training")

    def __init__(self, cells: Sequence[Cell], folder: Path) -> None:
        super().__init__(cells, folder)
        self.names = list(dict.fromkeys(str(cell.labels["defense"]) for cell in cells))
        """Of the defenses."""
        self.attacks = list(dict.fromkeys(str(cell.labels["attack"]) for cell in cells))
        self.num_estimated: int = cells[0].config[ESTIMATE]
        """Clients that are estimated of each defense."""
        self.unfit: dict[int, str] = {}
        """Why an attack cannot be made, or not be bound to the data, by cell."""
        self._unmade: set[int] = set()
        self._dealt: tuple[str, Dealt] | None = None
        for place in range(len(self.names)):
            self._check_alike(place)

    def _check_alike(self, place: int) -> None:
        """Raise InputError unless all attacks on a defense attack the same federation."""
        first, *others = self.cells_of(place)
        for number in others:
            for key in ("model.init_args.target", *_PROTECTION, "data", "training"):
                if self.parsed[number].get(key) != self.parsed[first].get(key):
                    names = [self.cells[one].labels["attack"] for one in (first, number)]
                    raise InputError(
                        f"defense {self.names[place]}: attack {names[1]} has another {key} than "
                        f"attack {names[0]}; give it in set, or with the defense, so that all "
                        "attacks meet the same federation"
                    )

    def make_parser(self) -> RunParser:
        """Return the parser of a cell's configuration, which says how its federation trains."""
        parser = cell_parser()
        parser.add_class_arguments(FederatedTraining, "training")
        return parser

    @property
    def num_items(self) -> int:
        """Clients of all cells, a training for each defense, and its estimate."""
        return len(self.items) + len(self.names) * (1 + (self.num_estimated > 0))

    def cells_of(self, place: int) -> range:
        """Return the numbers of the cells of a defense."""
        return range(place * len(self.attacks), (place + 1) * len(self.attacks))

    def cell_of(self, place: int) -> int:
        """Return the number of the first cell of a defense whose attack can be made."""
        return next(number for number in self.cells_of(place) if number not in self._unmade)

    def check(self) -> None:
        """Find out which attacks fit, and open all data, before anything is written.

        Raises:
            InputError: if no attack fits a defense, or data cannot be used.
        """
        opened = set()
        for place in range(len(self.names)):
            refusal: InputError | None = None
            for number in self.cells_of(place):
                try:
                    objects = self.make(number)
                except InputError as error:
                    refusal = error
                    self.unfit[number] = " ".join(str(error).split())
                    self._unmade.add(number)
                    continue
                fingerprint = repr(self.parsed[number].data)
                if fingerprint not in opened:
                    opened.add(fingerprint)
                    objects.data.prepare_data()
                    objects.data.setup()
            if refusal is not None and all(n in self.unfit for n in self.cells_of(place)):
                raise refusal
            _guaranteed(self.setting(place)[1], 1)  # noise that was made for other batches

    @property
    def num_before(self) -> int:
        """Items that are numbered before the attacks: the trainings."""
        return len(self.names)

    @property
    def order(self) -> Sequence[int]:
        """Defense by defense, so that a run that is stopped has whole ones."""
        last = self.num_before + len(self.items)
        found = []
        for place in range(len(self.names)):
            cells = self.cells_of(place)
            attacks = [
                self.num_before + i for i, (cell, _) in enumerate(self.items) if cell in cells
            ]
            estimates = [last + place] if self.num_estimated else []
            found += [place, *attacks, *estimates]
        return found

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        """Do one item; ``batch`` is its number: trainings, then attacks, then estimates."""
        item = int(batch)
        attacked = item - self.num_before
        if item < self.num_before:
            self.doing = f"training {item + 1} of {len(self.names)}"
            self.keep(self._record(item, self._train, item))
        elif attacked < len(self.items):
            self.keep(self._attack(attacked)._replace(client=item))
        else:
            place = attacked - len(self.items)
            self.doing = f"estimate {place + 1} of {len(self.names)}"
            self.keep(self._record(item, self._estimate, place))

    def _record(self, item: int, work: Callable[[int], _Found], place: int) -> ClientRecord:
        """Return the record of work on a defense, or of why it failed."""
        started = time.monotonic()
        notes: dict[str, float] = {}
        curve: list[tuple[int, float]] = []
        failure = None
        try:
            with torch.inference_mode(False), torch.enable_grad():
                notes, curve = work(place)
        except (InputError, RuntimeError, ValueError) as error:  # torch raises the last two
            failure = " ".join(str(error).split())
        seconds = round(time.monotonic() - started, 3)
        return ClientRecord(item, [], 0, notes, {}, curve, seconds, failure)

    def _attack(self, item: int) -> ClientRecord:
        """Attack one client; where the attack does not fit, that is its failure."""
        number = self.items[item][0]
        try:
            if number not in self.unfit:
                self.build(number)
        except InputError as error:
            self.unfit[number] = " ".join(str(error).split())
        if number in self.unfit:
            return ClientRecord(item, [], 0, {}, {}, [], 0.0, self.unfit[number])
        return self.attack_item(item)

    def setting(self, place: int) -> tuple[Namespace, Setting]:
        """Return the objects of a defense's federation, and what it trains."""
        objects = self.make(self.cell_of(place))
        attack = objects.model
        defenses = list(attack.federation.defenses)
        return objects, Setting(attack.target, attack.client, defenses, objects.data.batch_size)

    def _train(self, place: int) -> _Found:
        number = self.cell_of(place)
        objects, setting = self.setting(place)
        objects.model.to(self.device)
        training: FederatedTraining = objects.training
        seed = self.parsed[number].seed_everything
        dealt = self._deal(number, objects)
        trained = training.run(setting, dealt, seed, self.watch)
        notes = {
            "accuracy": trained.curve[-1][1],
            "loss": trained.loss,
            "learning_rate": trained.learning_rate,
            "num_test": float(len(dealt.test.labels)),
        }
        return notes, trained.curve

    def estimate_seconds(self, number: int) -> float:
        """Return about how long one client of a cell takes; 0 where the attack does not fit."""
        try:
            return 0.0 if number in self.unfit else super().estimate_seconds(number)
        except InputError as error:
            self.unfit[number] = " ".join(str(error).split())
            return 0.0

    def training_seconds(self, place: int) -> float:
        """Return about how long the training of a defense takes, from one measured round."""
        number = self.cell_of(place)
        objects, setting = self.setting(place)
        training: FederatedTraining = objects.training
        dealt = self._deal(number, objects)
        rate = training.learning_rates[0]
        server = Server(setting, dealt, 0, rate, training.momentum, training.rounds)
        started = time.monotonic()
        with torch.inference_mode(False), torch.enable_grad():
            server.play(0)
        return (time.monotonic() - started) * training.num_rounds

    def _deal(self, number: int, objects: Namespace) -> Dealt:
        """Return the data of a defense's federation; those of the last one, if they are alike."""
        parsed, training = self.parsed[number], objects.training
        data = parsed.data.clone()
        data.init_args.batch_size = None
        shares = (training.num_clients, training.images_per_client, training.num_test)
        key = repr((data, training.test, shares))
        if self._dealt is None or self._dealt[0] != key:
            test = None
            if training.test is not None:
                known = {name: self.cells[number].config[name] for name in ("model", "data")}
                known = copy.deepcopy(known)
                known["data"].setdefault("init_args", {}).update(training.test)
                with making("training.test", training.test):
                    test = self.parser.instantiate_classes(self.parser.parse_object(known)).data
            dealt = training.deal(objects.data, test)
            move = self.device
            shards = [type(one)(*(field.to(move) for field in one)) for one in dealt.shards]
            held = type(dealt.test)(*(field.to(move) for field in dealt.test))
            labels = dealt.public_labels.to(move)
            self._dealt = key, Dealt(shards, dealt.public.to(move), labels, held)
        return self._dealt[1]

    def _estimate(self, place: int) -> _Found:
        attack, data, _ = self.build(self.cell_of(place))
        found = estimated_clients(attack, data, min(self.num_estimated, data.num_clients)).clients
        mse = torch.cat([one.mse for one in found])
        prior = torch.cat([one.prior_mse for one in found])
        notes = {"mse": float(mse.mean()), "prior_mse": float(prior.mean())}
        return {**notes, "num_images": float(len(mse))}, []


def attack_records(sweep: Assessment, records: Sequence[ClientRecord]) -> list[ClientRecord]:
    """Return the records of the attacks, numbered as the sweep's items."""
    numbered = [one._replace(client=one.client - sweep.num_before) for one in records]
    return [one for one in numbered if 0 <= one.client < len(sweep.items)]


def assess(sweep: Assessment, records: Sequence[ClientRecord]) -> list[Assessed]:
    """Return every defense's figures, as far as they were measured."""
    by_number = {record.client: record for record in records}
    by_item = {record.client: record for record in attack_records(sweep, records)}
    last = sweep.num_before + len(sweep.items)
    found = []
    for place, name in enumerate(sweep.names):
        objects, setting = sweep.setting(place)
        leaks, bits = [], None
        for number in sweep.cells_of(place):
            items = [item for item, (cell, _) in enumerate(sweep.items) if cell == number]
            mine = [by_item[item] for item in items if item in by_item]
            leaks.append(leak_of(sweep.attacks[number % len(sweep.attacks)], mine, len(items)))
            sizes = [record.notes.get("update_bits") for record in mine]
            if bits is None and number == sweep.cell_of(place):
                bits = next((size for size in sizes if size is not None), None)
        found.append(
            Assessed(
                name,
                _accuracy(by_number.get(place), objects.training),
                leaks,
                _estimated(by_number.get(last + place)) if sweep.num_estimated else None,
                _guaranteed(setting, objects.training.rounds),
                bits,
            )
        )
    return found


def _accuracy(record: ClientRecord | None, training: FederatedTraining) -> Accuracy:
    if record is None:
        return Accuracy(reason="not trained yet")
    if record.failure:
        return Accuracy(reason=record.failure)
    value, number = record.notes["accuracy"], int(record.notes["num_test"])
    low, high = wilson(round(value * number), number)
    rate = record.notes["learning_rate"]
    return Accuracy(value, low, high, number, training.rounds, rate, record.curve)


def _estimated(record: ClientRecord | None) -> Estimated:
    if record is None:
        return Estimated(reason="not estimated yet")
    if record.failure:
        return Estimated(reason=record.failure)
    psnr, mean_image = (decibels(record.notes[name]) for name in ("mse", "prior_mse"))
    return Estimated(psnr, mean_image, int(record.notes["num_images"]))


def _guaranteed(setting: Setting, num_rounds: int) -> Guaranteed:
    whole, single = (
        privacy_statement(setting.defenses, setting.client, setting.batch_size, num_rounds=number)
        for number in (num_rounds, 1)
    )
    actual, record, once = whole["actual"], whole["record_level"], single["actual"]
    shown = actual or record
    return Guaranteed(
        epsilon=actual["epsilon"] if actual else None,
        record_epsilon=record["epsilon"] if record else None,
        delta=shown["delta"] if shown else None,
        round_epsilon=once["epsilon"] if once else None,
        statement=whole["statement"],
    )


def attacked(sweep: Assessment) -> list[Attacked]:
    """Return what the attacks of the list are."""
    found = []
    for place, name in enumerate(sweep.attacks):
        numbers = range(place, len(sweep.cells), len(sweep.attacks))
        number = next((one for one in numbers if one not in sweep.unfit), None)
        if number is None:
            model = sweep.parsed[place].model.class_path.rpartition(".")[2]
            found.append(Attacked(name, model, "it fits no defense of the list"))
            continue
        attack = sweep.make(number).model
        grants = [Grant(grant).value for grant in attack.oracles]
        found.append(Attacked(name, type(attack).__name__, attack.threat_model, grants))
    return found
