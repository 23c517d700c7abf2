"""Builds ``results.json`` from the attack, its data and the records of all clients."""

import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module, metadata
from typing import Any

import torch
from pytorch_lightning import Trainer

from lightning_recon.attacks import Attack
from lightning_recon.audit.bits import told_of_run
from lightning_recon.audit.privacy_statement import privacy_statement
from lightning_recon.audit.records import ClientRecord
from lightning_recon.audit.schema import (
    SCHEMA_VERSION,
    AttackJson,
    BitsJson,
    CommunicationJson,
    ControlJson,
    DataJson,
    OutcomeJson,
    ResultsJson,
)
from lightning_recon.audit.scores import Row, aggregate
from lightning_recon.data import AuditDataModule, ClientDataModule
from lightning_recon.data.masked_images import MaskSummary
from lightning_recon.defenses import Defense
from lightning_recon.observation import Grant, Reconstruction
from lightning_recon.runs.command import command_line

MAX_CURVES = 24  # of clients, that results.json keeps
_NO_MASKS: MaskSummary = {"method": "none", "mean_area": None, "replaced": 0}
_UNKNOWN = "unknown: nobody said what the clients did to their updates"
_PACKAGES = (
    "torch",
    "torchvision",
    "pytorch-lightning",
    "torchmetrics",
    "jsonargparse",
    "segment-anything",
    "numpy",
    "dp-accounting",
)


resource: Any = None
with suppress(ModuleNotFoundError):  # Windows has none
    resource = import_module("resource")


def peak_memory_bytes() -> int:
    """Return the largest memory that this process has held so far, in bytes; 0: not known."""
    if resource is None:
        return 0
    peak: int = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


IMPORT_MEMORY_BYTES = peak_memory_bytes()
"""What the libraries alone take: measured when this module was imported."""


def versions() -> dict[str, str]:
    """Return the versions of what a figure may depend on, as far as it is installed."""
    found = {}
    for name in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return {"python": platform.python_version(), **found}


def build_results(
    trainer: Trainer,
    attack: Attack,
    records: Sequence[ClientRecord],
    *,
    experiment: str,
    num_candidates: int,
    recovered_psnr: float,
    num_clients_planned: int,
    unavailable_metrics: dict[str, str],
    seconds: float,
    peak_memory: int,
) -> ResultsJson:
    """Return all that ``results.json`` says of a run.

    Args:
        trainer: that ran the attack, with its data.
        attack: as it ran.
        records: of all clients, at least one.
        experiment: name of the run.
        num_candidates: among how many images each was to be identified.
        recovered_psnr: least PSNR, in dB, of an image that counts as recovered.
        num_clients_planned: how many clients a whole run attacks.
        unavailable_metrics: why a metric could not be computed, by its name.
        seconds: that the run took.
        peak_memory: largest memory of a process, in bytes.
    """
    data = trainer.datamodule  # type: ignore[attr-defined]
    outcome = summarise(attack, records, num_candidates)
    if not isinstance(data, ClientDataModule) and not attack.federation.defenses:
        outcome["privacy"]["statement"] = _UNKNOWN
    return {
        "schema_version": SCHEMA_VERSION,
        "experiment": experiment,
        **outcome,
        "oracles": [
            grant.value for grant in map(Grant, attack.oracles) if grant not in data.unknown
        ],
        "data": _describe_data(data),
        "masks": data.mask_summary() if isinstance(data, ClientDataModule) else _NO_MASKS,
        "recovered_psnr": recovered_psnr,
        "unavailable_metrics": unavailable_metrics,
        "wall_seconds": round(seconds, 3),
        "peak_memory_bytes": peak_memory,
        "import_memory_bytes": IMPORT_MEMORY_BYTES,
        "device": device_name(attack.device),
        "num_processes": trainer.world_size,
        "num_clients_planned": num_clients_planned,
        "num_clients_resumed": len(data.completed),
        "iterations": attack.loop.num_steps,
        "iterations_planned": attack.iterations,
        "trainer_precision": str(trainer.precision),
        "versions": versions(),
        "command": command_line(),
        "integrity": {"configuration": "", "data": "", "clients": "", "results": ""},
    }


def summarise(
    attack: Attack, records: Sequence[ClientRecord], num_candidates: int | None = None
) -> OutcomeJson:
    """Return what ``results.json`` says of the attack and its outcome, whatever ran it.

    Args:
        attack: as it ran.
        records: of all clients, at least one.
        num_candidates: among how many images each was to be identified.
    """
    rows = [row for record in records for row in record.rows]
    scores = aggregate(rows, sum(record.num_reconstructions for record in records), num_candidates)
    # the last client may hold fewer; where there is no truth the size is not known
    num_samples = max(len(record.rows) for record in records) or None
    bounds = [r.controls["prior_free_bound"] for r in records if "prior_free_bound" in r.controls]
    return {
        **describe_attack(attack, num_samples, bounds),
        "communication": _communication(records),
        "bits": _bits(records),
        "num_clients": len(records),
        "failures": [
            {"client": record.client, "reason": record.failure}
            for record in records
            if record.failure
        ],
        "clients_unrecovered": [
            record.client
            for record in records
            if record.rows
            and not record.failure
            and not any(row["recovered"] for row in record.rows)
        ],
        **scores,
        "null": {**scores["null"], **_controls(records)},
        "notes": [{"client": record.client, **record.notes} for record in records],
        "curves": [
            {
                "client": record.client,
                "iteration": [iteration for iteration, _ in record.curve],
                "objective": [objective for _, objective in record.curve],
            }
            for record in [record for record in records if record.curve][:MAX_CURVES]
        ],
        "seconds_per_client": round(statistics.median(record.seconds for record in records), 3),
    }


def describe_attack(
    attack: Attack,
    num_samples: int | None = None,
    bounds: Sequence[Mapping[str, float]] = (),
) -> AttackJson:
    """Return the attack, its threat model, all that the attacker was granted, and the privacy.

    Args:
        attack: as it ran.
        num_samples: of one client; None: not known.
        bounds: what the best attack without a prior would reach, of every client where noise and
            a bound let it be computed.
    """
    statement = privacy_statement(
        attack.federation.defenses,
        client=attack.client,
        num_samples=num_samples,
        num_rounds=attack.num_rounds,
        sends_buffers=Grant.BUFFERS in attack.oracles,
    )
    protocol = f"protocol {attack.client.protocol}, {attack.client.mode} mode"
    if attack.num_rounds > 1:
        protocol += f", {attack.num_rounds} rounds of the same data"
    return {
        "attack": type(attack).__name__,
        "citation": attack.citation,
        "threat_model": f"{attack.threat_model}; {protocol}",
        "oracles": [Grant(grant).value for grant in attack.oracles],
        "target": attack.target.name,
        "defenses": [type(defense).__name__ for defense in attack.defenses],
        "unsimulated": _unsimulated(attack),
        "privacy": {
            **statement,
            "expected_psnr": _mean(bounds, "expected_psnr"),
            "expected_psnr_clamped": _mean(bounds, "expected_psnr_clamped"),
        },
        "seed": attack.seed,
    }


def _unsimulated(attack: Attack) -> list[str]:
    """Return the defenses whose stand-ins the attack could use, and does not."""
    if not attack.can_simulate_defenses or Grant.DEFENSES in attack.oracles:
        return []
    chain = attack.federation.defenses
    return [type(one).__name__ for one in chain if type(one).stand_in is not Defense.stand_in]


def _mean(bounds: Sequence[Mapping[str, float]], name: str) -> float | None:
    return statistics.fmean(bound[name] for bound in bounds) if bounds else None


def _describe_data(data: AuditDataModule) -> DataJson:
    if not isinstance(data, ClientDataModule):
        return {"name": data.name, "fallback": None, "description": data.describe()}
    return {
        "name": data.name,
        "fallback": data.fallback,
        "description": data.describe(),
        "classes": data.classes,
        "skipped": data.skipped,
    }


def with_files(rows: Sequence[Row], data: AuditDataModule) -> Sequence[Mapping[str, float | str]]:
    """Return rows with ``file`` behind ``index``: by what a person finds the true image.

    Args:
        rows: one per true image.
        data: that it is of.
    """
    if not isinstance(data, ClientDataModule):
        return rows
    named = []
    for row in rows:
        cells: list[tuple[str, float | str]] = list(row.items())
        place = list(row).index("index") + 1
        cells.insert(place, ("file", data.file(int(row["index"]))))
        named.append(dict(cells))
    return named


def marks_of(outputs: Reconstruction) -> list[dict[str, Any]]:
    """Return what an attack says of each of its images, a row for each."""
    assert outputs.marks is not None
    count = len(outputs.marks)
    labels = [None] * count if outputs.labels is None else outputs.labels.tolist()
    p_values = [None] * count if outputs.p_values is None else outputs.p_values.tolist()
    return [
        {"reconstruction": place, "label": label, "mark": mark.value, "p_value": p_value}
        for place, (label, mark, p_value) in enumerate(
            zip(labels, outputs.marks, p_values, strict=True)
        )
    ]


def _communication(records: Sequence[ClientRecord]) -> CommunicationJson | None:
    """Return what one client's update costs to send, which stands beside what it leaks."""
    for record in records:
        if "update_bits" in record.notes:
            num_bits, num_parameters = (
                record.notes[name] for name in ("update_bits", "update_parameters")
            )
            return {
                "num_parameters": num_parameters,
                "num_bits": num_bits,
                "bits_per_parameter": num_bits / num_parameters,
            }
    return None


def _bits(records: Sequence[ClientRecord]) -> BitsJson | None:
    """Return how many bits of an image were read, by all clients of which that is bounded."""
    return told_of_run(
        [record.powers for record in records if record.powers is not None],
        [record.notes["bits_capacity"] for record in records if record.powers is not None],
        sum(len(record.rows) for record in records if record.powers is not None),
    )


def _controls(records: Sequence[ClientRecord]) -> dict[str, ControlJson]:
    """Return what the attack made of noise alone, and of another client's update."""
    found: dict[str, ControlJson] = {}
    for name in ("noise_only", "other_client"):
        controls = [record.controls[name] for record in records if name in record.controls]
        if not controls:
            continue
        found[name] = {"psnr": statistics.fmean(control["psnr"] for control in controls)}
        if all("recovered" in control for control in controls):
            found[name]["recovered"] = int(sum(control["recovered"] for control in controls))
        if failed := sum("failed" in control for control in controls):
            found[name]["failed"] = failed
    return found


def device_name(device: torch.device) -> str:
    """Return the name of what computed the figures."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"
