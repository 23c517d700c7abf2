"""The command ``recommend``: the weakest defense that holds, of a list.

Its YAML is that of a sweep with two axes by name, and says besides what the federation trains and
what a defense must keep::

    base: ../feature_inversion.yaml     # relative to this file
    set: {...}                          # changes to every cell, as in a sweep
    defenses:                           # changes by label; the others are compared with the first
      none: {}
      clip 1, noise .01: {model.init_args.defenses: [...]}
    attacks: {adaptive: {...}, blind: {...}}
    training: {rounds: 100}             # of FederatedTraining
    holds: {worst_gain_db: 3}           # of Holds
    local_estimate: 1                   # clients, 0: none
    trainer: {devices: 2}

Leakage is that of the sweep defenses x attacks, client by client; the trainings, and the local
estimates, are further items of the same run, so that all share devices, records and resuming.
"""

import copy
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from pytorch_lightning import Trainer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lightning_recon.audit.privacy_statement import privacy_statement
from lightning_recon.audit.recommendation import (
    Accuracy,
    Assessed,
    Attacked,
    Criterion,
    Estimated,
    Guaranteed,
    Recommendation,
    check_criterion,
    cost,
    leak_of,
    recommended,
    wilson,
)
from lightning_recon.audit.records import ClientRecord, read_records
from lightning_recon.errors import InputError
from lightning_recon.files import write_csv, write_json
from lightning_recon.observation import Grant
from lightning_recon.report import write_recommendation_report
from lightning_recon.report.page import DASH
from lightning_recon.report.recommend import recommendation_findings, sentence
from lightning_recon.report.terminal import print_findings, print_outputs
from lightning_recon.runs.cells import (
    SECTIONS,
    Cell,
    check_keys,
    check_trainers,
    product,
    read_yaml,
)
from lightning_recon.runs.estimate import estimated_clients
from lightning_recon.runs.federated import Dealt, FederatedTraining, Server, Setting
from lightning_recon.runs.making import RunParser, making
from lightning_recon.runs.sweep import (
    Sweep,
    about,
    cell_parser,
    in_folder,
    list_cells,
    run_items,
    trainer_of,
    write_results,
)

_KEYS = (*("base", "set", "defenses", "attacks", "training", "holds", "local_estimate", "trainer"),)
_OUTPUTS = ("report.html", "recommendation.json", "settings.csv", "results.csv", "records")
_ESTIMATE = "local_estimate"
_PROTECTION = ("model.init_args.client", "model.init_args.defenses")


class Holds:
    """What a defense must keep to hold, against every attack of the list that fits.

    Nothing of it is a guarantee: it speaks of these attacks on these clients.

    Args:
        worst_gain_db: by how much the worst image of all clients may be above the best of its own
            null controls (mean image, class mean, noise only), dB; null: by anything.
        right_share: the highest upper end that the 95 % interval of the share of images recovered
            convincingly may have; null: any.
        epsilon: the largest epsilon over all rounds, of a client's or of a record's data; null:
            none is asked for.
    """

    def __init__(
        self,
        worst_gain_db: float | None = 3.0,
        right_share: float | None = None,
        epsilon: float | None = None,
    ) -> None:
        self.criterion = Criterion(worst_gain_db, right_share, epsilon)


class Plan:
    """What a file asks for.

    Args:
        path: the YAML.

    Raises:
        InputError: if it cannot be used.
    """

    def __init__(self, path: Path) -> None:
        content = read_yaml(path)
        check_keys(path, content, _KEYS)
        for name in ("defenses", "attacks"):
            if not isinstance(content.get(name), Mapping) or not content[name]:
                raise InputError(
                    f"{path}: {name} must hold a label with its changes for each of the {name}"
                )
        for name in ("training", "holds"):
            if not isinstance(content.get(name) or {}, Mapping):
                raise InputError(f"{path}: {name} must hold keys and values")
        number = content.get(_ESTIMATE, 0)
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise InputError(f"{path}: {_ESTIMATE} must be a number of clients, not {number!r}")
        changes = {"training": content.get("training") or {}, **(content.get("set") or {})}
        # what a defense says comes last: no attack may take it back
        axes = {"attack": content["attacks"], "defense": content["defenses"]}
        cells = product(path, {**content, "set": changes}, axes, (*SECTIONS, "training"))
        self.cells = []
        for place in range(len(content["defenses"])):
            for cell in cells[place :: len(content["defenses"])]:
                labels = {name: cell.labels[name] for name in ("defense", "attack")}
                self.cells.append(Cell(labels, {**cell.config, _ESTIMATE: number}))
        parser = RunParser(exit_on_error=False)
        parser.add_class_arguments(Holds, "holds")
        given = parser.parse_object({"holds": dict(content.get("holds") or {})})
        self.criterion: Criterion = parser.instantiate_classes(given).holds.criterion
        self.name = path.stem


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
        self.num_estimated: int = cells[0].config[_ESTIMATE]
        """Clients that are estimated of each defense."""
        self.unfit: dict[int, str] = {}
        """Why an attack cannot be made, by cell."""
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
        return next(number for number in self.cells_of(place) if number not in self.unfit)

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
                    continue
                fingerprint = repr(self.parsed[number].data)
                if fingerprint not in opened:
                    opened.add(fingerprint)
                    objects.data.prepare_data()
                    objects.data.setup()
            if refusal is not None and all(n in self.unfit for n in self.cells_of(place)):
                raise refusal

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        """Do one item; ``batch`` is its number."""
        item = int(batch)
        if item < len(self.items):
            self._attack(item, batch, batch_idx)
            return
        what, place = divmod(item - len(self.items), len(self.names))
        self.doing = f"{('training', 'estimate')[what]} {place + 1} of {len(self.names)}"
        started = time.monotonic()
        notes: dict[str, float] = {}
        curve: list[tuple[int, float]] = []
        failure = None
        try:
            with torch.inference_mode(False), torch.enable_grad():
                notes, curve = (self._train, self._estimate)[what](place)
        except (InputError, RuntimeError, ValueError) as error:  # torch raises the last two
            failure = " ".join(str(error).split())
        seconds = round(time.monotonic() - started, 3)
        self.keep(ClientRecord(item, [], 0, notes, {}, curve, seconds, failure))

    def _attack(self, item: int, batch: Tensor, batch_idx: int) -> None:
        """Attack one client; where the attack does not fit, that is its failure."""
        number = self.items[item][0]
        try:
            if number not in self.unfit:
                self.build(number)
        except InputError as error:
            self.unfit[number] = " ".join(str(error).split())
        if number in self.unfit:
            self.keep(ClientRecord(item, [], 0, {}, {}, [], 0.0, self.unfit[number]))
        else:
            super().test_step(batch, batch_idx)

    def setting(self, place: int) -> tuple[Namespace, Setting]:
        """Return the objects of a defense's federation, and what it trains."""
        objects = self.make(self.cell_of(place))
        attack = objects.model
        defenses = list(attack.federation.defenses)
        return objects, Setting(attack.target, attack.client, defenses, objects.data.batch_size)

    def _train(self, place: int) -> tuple[dict[str, float], list[tuple[int, float]]]:
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
        key = repr((data, vars(parsed.training)))
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

    def _estimate(self, place: int) -> tuple[dict[str, float], list[tuple[int, float]]]:
        attack, data, _ = self.build(self.cell_of(place))
        found = estimated_clients(attack, data, min(self.num_estimated, data.num_clients)).clients
        mse = torch.cat([one.mse for one in found])
        prior = torch.cat([one.prior_mse for one in found])
        notes = {"mse": float(mse.mean()), "prior_mse": float(prior.mean())}
        return {**notes, "num_images": float(len(mse))}, []


def assess(sweep: Assessment, records: Sequence[ClientRecord]) -> list[Assessed]:
    """Return every defense's figures, as far as they were measured."""
    by_item = {record.client: record for record in records}
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
        first = len(sweep.items) + place
        found.append(
            Assessed(
                name,
                _accuracy(by_item.get(first), objects.training),
                leaks,
                _estimated(by_item.get(first + len(sweep.names))) if sweep.num_estimated else None,
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
    low, high = wilson(value * number, number)
    rate = record.notes["learning_rate"]
    return Accuracy(value, low, high, number, training.rounds, rate, record.curve)


def _estimated(record: ClientRecord | None) -> Estimated:
    if record is None:
        return Estimated(reason="not estimated yet")
    if record.failure:
        return Estimated(reason=record.failure)
    psnr, mean_image = (
        -10 * math.log10(max(record.notes[name], 1e-30)) for name in ("mse", "prior_mse")
    )
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


def _attacked(sweep: Assessment) -> list[Attacked]:
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


def recommend(
    config: Path,
    trainer: Trainer,
    resume: Path | None = None,
    *,
    is_dry_run: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Path | None:
    """Assess the defenses of a file, or what is missing of them, and write what is recommended.

    Args:
        config: the YAML.
        trainer: without a logger.
        resume: the folder of a run that was interrupted.
        is_dry_run: list the cells and estimate the time; attack and train nothing.
        options: of the trainer, to hold those of the configurations against.

    Returns:
        The folder; None after a dry run.

    Raises:
        InputError: if the configuration cannot be used, or is not that of the resumed run.
    """
    plan = Plan(config)
    if options is not None:
        check_trainers(plan.cells, options)
    name = plan.name if plan.name.startswith("recommend") else f"recommend_{plan.name}"
    root = Path("lightning_logs", name)
    sweep = Assessment(plan.cells, root)
    check_criterion(plan.criterion, sweep.parsed[0].data.init_args.num_clients)
    sweep.check()
    if is_dry_run:
        list_cells(sweep, trainer)
        seconds = [sweep.training_seconds(place) for place in range(len(sweep.names))]
        minutes = sum(seconds) / trainer.world_size / 60
        print(f"and about {minutes:.1f} minutes for {len(seconds)} trainings")  # noqa: T201
        return None
    with in_folder(plan.cells, config, root, resume) as folder:
        sweep.folder = folder
        run_items(sweep, ["recommend", "--config", str(config)], trainer, resume)
        if trainer.is_global_zero:
            write_recommendation(sweep, plan)
    return folder


def write_recommendation(sweep: Assessment, plan: Plan) -> Recommendation:
    """Judge what is on disk, write and print it, and return it."""
    records = read_records(sweep.folder, sweep.origin, sweep.num_items)
    attacks = _attacked(sweep)
    settings, scopes = recommended(assess(sweep, records), attacks, plan.criterion)
    run = about(len(records), sweep.num_items)
    objects, setting = sweep.setting(0)
    found = Recommendation(
        name=plan.name,
        federation={
            "Data": objects.data.describe(),
            "Model": setting.target.name,
            "Clients": f"{objects.training.num_clients or objects.data.num_clients} train, all of "
            f"them in each of the {objects.training.rounds} rounds; "
            f"{objects.data.num_clients} are attacked",
        },
        criterion=plan.criterion,
        attacks=attacks,
        settings=settings,
        scopes=scopes,
        num_done=len(records),
        num_planned=sweep.num_items,
        command=run["command"],
        versions=run["versions"],
    )
    write_json(sweep.folder / "recommendation.json", as_json(found))
    write_json(sweep.folder / "run.json", run)
    write_results(sweep, [record for record in records if record.rows])
    write_csv(sweep.folder / "settings.csv", _table(found))
    write_recommendation_report(sweep.folder)
    _print(found, sweep.folder)
    return found


def as_json(value: Any) -> Any:
    """Return records as JSON has them."""
    if hasattr(value, "_asdict"):
        return {name: as_json(part) for name, part in value._asdict().items()}
    if isinstance(value, Mapping):
        return {name: as_json(part) for name, part in value.items()}
    return [as_json(part) for part in value] if isinstance(value, list | tuple) else value


def _table(found: Recommendation) -> list[dict[str, Any]]:
    """Return a row a defense."""
    rows = []
    for one in found.settings:
        price = cost(one, found.settings[0])
        row: dict[str, Any] = {
            "defense": one.name,
            "accuracy": one.accuracy.value,
            "accuracy_low": one.accuracy.low,
            "accuracy_high": one.accuracy.high,
            "cost": price and price[0],
            "learning_rate": one.accuracy.learning_rate,
        }
        for number, scope in enumerate(found.scopes):
            worst = one.worst(scope.attacks)
            prefix = "honest" if number == 0 and len(found.scopes) > 1 else "any"
            row |= {
                f"{prefix}_worst_gain": worst and worst.worst_gain,
                f"{prefix}_worst_attack": worst and worst.attack,
                f"{prefix}_right_high": one.highest_share(scope.attacks),
                f"{prefix}_holds": one.judged[scope.name].holds,
            }
        row |= {
            "epsilon": one.guaranteed.epsilon,
            "record_epsilon": one.guaranteed.record_epsilon,
            "estimate_psnr": one.estimate and one.estimate.psnr,
            "bits": one.num_bits,
        }
        rows.append(row)
    return rows


def _print(found: Recommendation, folder: Path) -> None:
    table = Table(title=f"{len(found.settings)} defenses; gain: of the worst image, over its nulls")
    for name in ("defense", "accuracy", *(scope.name for scope in found.scopes), "epsilon"):
        table.add_column(name, justify="left" if name == "defense" else "right")
    words = {True: "holds", False: "leaks", None: "not shown"}
    for one in found.settings:
        accuracy, epsilon = one.accuracy.value, one.guaranteed.least
        cells = []
        for scope in found.scopes:
            worst = one.worst(scope.attacks)
            gain = "" if worst is None else f"{worst.worst_gain:+.1f} dB, "
            cells.append(gain + words[one.judged[scope.name].holds])
        table.add_row(
            one.name,
            DASH if accuracy is None else f"{100 * accuracy:.1f} %",
            *cells,
            "none" if epsilon is None else f"{epsilon:.3g}",
        )
    console = Console(markup=False, highlight=False)
    console.print(table)
    for scope in found.scopes:
        console.print(sentence(found, scope))
    print_findings(console, recommendation_findings(found))
    print_outputs(console, folder, _OUTPUTS)


def main(args: Sequence[str]) -> int:
    """Run the command ``recommend``.

    Args:
        args: what stands after the command.

    Returns:
        The exit code, 0.

    Raises:
        InputError: see :func:`recommend`.
    """
    description = "Find the weakest defense of a list that holds."
    config, trainer, options = trainer_of(args, "recommend", description)
    recommend(config.config, trainer, config.resume, is_dry_run=config.dry_run, options=options)
    return 0
