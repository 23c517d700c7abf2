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

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning import Trainer
from rich.console import Console
from rich.table import Table

from lightning_recon.audit.judging import check_criterion, cost, recommended
from lightning_recon.audit.recommendation import (
    Criterion,
    Recommendation,
)
from lightning_recon.audit.records import read_records
from lightning_recon.errors import InputError
from lightning_recon.files import write_csv, write_json
from lightning_recon.report import write_recommendation_report
from lightning_recon.report.front import write_front_figure
from lightning_recon.report.page import DASH
from lightning_recon.report.recommend import HOLDS_WORDS, recommendation_findings, sentence
from lightning_recon.report.terminal import print_findings, print_outputs
from lightning_recon.runs.assessment import ESTIMATE, Assessment, assess, attack_records, attacked
from lightning_recon.runs.cell_command import about, check_run, folder_name, trainer_of
from lightning_recon.runs.cells import (
    SECTIONS,
    Cell,
    check_keys,
    product,
    read_yaml,
)
from lightning_recon.runs.items import list_cells, run_cells
from lightning_recon.runs.making import RunParser
from lightning_recon.runs.sweep import write_results

_KEYS = ("base", "set", "defenses", "attacks", "training", "holds", ESTIMATE, "trainer")
_OUTPUTS = (
    "report.html",
    "figure.png",
    "recommendation.json",
    "settings.csv",
    "results.csv",
    "records",
)


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
        number = content.get(ESTIMATE, 0)
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise InputError(f"{path}: {ESTIMATE} must be a number of clients, not {number!r}")
        changes = {"training": content.get("training") or {}, **(content.get("set") or {})}
        # what a defense says comes last: no attack may take it back
        axes = {"attack": content["attacks"], "defense": content["defenses"]}
        cells = product(path, {**content, "set": changes}, axes, (*SECTIONS, "training"))
        self.cells = []
        for place in range(len(content["defenses"])):
            for cell in cells[place :: len(content["defenses"])]:
                labels = {name: cell.labels[name] for name in ("defense", "attack")}
                self.cells.append(Cell(labels, {**cell.config, ESTIMATE: number}))
        parser = RunParser(exit_on_error=False)
        parser.add_class_arguments(Holds, "holds")
        given = parser.parse_object({"holds": dict(content.get("holds") or {})})
        self.criterion: Criterion = parser.instantiate_classes(given).holds.criterion
        self.name = path.stem


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
    check_run(plan.cells, config, resume, options)
    sweep = Assessment(plan.cells, Path("lightning_logs", folder_name("recommend", config)))
    fewest = min(parsed.data.init_args.num_clients for parsed in sweep.parsed)
    check_criterion(plan.criterion, fewest)
    sweep.check()
    if is_dry_run:
        list_cells(sweep, trainer)
        seconds = [sweep.training_seconds(place) for place in range(len(sweep.names))]
        minutes = sum(seconds) / trainer.world_size / 60
        print(f"and about {minutes:.1f} minutes for {len(seconds)} trainings")  # noqa: T201
        return None

    def write() -> None:
        write_recommendation(sweep, plan)

    return run_cells(sweep, "recommend", config, trainer, resume, write)


def write_recommendation(sweep: Assessment, plan: Plan) -> Recommendation:
    """Judge what is on disk, write and print it, and return it."""
    records = read_records(sweep.folder, sweep.origin, sweep.num_items)
    attacks = attacked(sweep)
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
    write_results(sweep, [record for record in attack_records(sweep, records) if record.rows])
    write_csv(sweep.folder / "settings.csv", _table(found))
    write_recommendation_report(sweep.folder)
    write_front_figure(sweep.folder / "figure.png", found)
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
        for scope in found.scopes:
            worst = one.worst(scope.attacks)
            prefix = "honest" if found.is_honest(scope) else "any"
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
    for one in found.settings:
        accuracy, epsilon = one.accuracy.value, one.guaranteed.least
        cells = []
        for scope in found.scopes:
            worst = one.worst(scope.attacks)
            gain = "" if worst is None else f"{worst.worst_gain:+.1f} dB, "
            cells.append(gain + HOLDS_WORDS[one.judged[scope.name].holds])
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
