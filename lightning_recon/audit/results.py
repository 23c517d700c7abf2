"""``results.json``, read: every figure an attribute of a known type, None where the file has none.

Pages and the terminal read these records, never the file itself, and so never meet a text where a
number should be.  What the keys mean stands in docs/results-schema.md.
"""

import json
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning_recon.audit.records import Origin, configuration_hash, hash_of
from lightning_recon.audit.schema import SCHEMA_VERSION, IntegrityJson, ResultsJson
from lightning_recon.audit.scores import Row, aggregate
from lightning_recon.documents import read_json, read_text, refusal
from lightning_recon.errors import InputError
from lightning_recon.files import finite_json
from lightning_recon.schemas import MisfitError, conform

_AGAIN = "run the audit again"
_ADDED = {"integrity": 3, "local_estimate": 4, "bits": 4}  # by key, the version that has it first
_NONE: Mapping[str, Any] = types.MappingProxyType({})


class Metric(NamedTuple):
    """One metric over all images."""

    mean: float | None = None
    median: float | None = None
    worst: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None


class Control(NamedTuple):
    """One null control."""

    psnr: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    recovered: int | None = None
    failed: int | None = None


class Identification(NamedTuple):
    """How often a reconstruction is nearest to its own truth."""

    rate: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    num_candidates: int | None = None


class LocalEstimated(NamedTuple):
    """What a linearised attacker would get, in dB, by mean squared errors over the same images."""

    num_images: int | None = None
    psnr_mean_image: float | None = None
    psnr_attack: float | None = None
    psnr: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None


class Guarantee(NamedTuple):
    """Privacy that is claimed, or that holds."""

    epsilon: float | None = None
    delta: float | None = None
    rule: str | None = None


class Privacy(NamedTuple):
    """What is claimed and what holds."""

    clip_norm: float | None = None
    noise_std: float | None = None
    claimed: Guarantee = Guarantee()
    claim_holds: bool | None = None
    actual: Guarantee = Guarantee()
    record_level: Guarantee = Guarantee()
    zcdp_rho: float | None = None
    rero_1000: float | None = None
    rero_record_1000: float | None = None
    expected_psnr: float | None = None
    expected_psnr_clamped: float | None = None
    statement: str | None = None


class Communication(NamedTuple):
    """What one client's update costs to send."""

    num_bits: float | None = None
    bits_per_parameter: float | None = None


class Bits(NamedTuple):
    """Bits of an image that were read, beside what the channel carries."""

    read: float | None = None
    capacity: float | None = None
    noise_only: float | None = None


class FailedClient(NamedTuple):
    """A client on which the attack failed."""

    client: int | None = None
    reason: str | None = None


class Curve(NamedTuple):
    """The attack's objective on one client; None where it was not finite."""

    client: int | None = None
    iteration: Sequence[int] = ()
    objective: Sequence[float | None] = ()


class Data(NamedTuple):
    """What was attacked."""

    name: str | None = None
    fallback: str | None = None
    description: str | None = None
    classes: Sequence[str] | None = None
    skipped: Sequence[str] = ()


class Masks(NamedTuple):
    """How the subjects were masked."""

    method: str | None = None
    mean_area: float | None = None
    replaced: int | None = None


class Results(NamedTuple):
    """All that pages and the terminal read."""

    experiment: str | None = None
    attack: str | None = None
    citation: str | None = None
    threat_model: str | None = None
    oracles: Sequence[str] = ()
    target: str | None = None
    defenses: Sequence[str] = ()
    unsimulated: Sequence[str] = ()
    privacy: Privacy = Privacy()
    seed: int | None = None
    communication: Communication = Communication()
    bits: Bits = Bits()
    num_clients: int | None = None
    failures: Sequence[FailedClient] = ()
    clients_unrecovered: Sequence[int] = ()
    num_images: int | None = None
    num_reconstructions: int | None = None
    recovered: int | None = None
    recovered_convincing: int | None = None
    convincing_rule: str | None = None
    precision: float | None = None
    recall: float | None = None
    recall_ci_low: float | None = None
    recall_ci_high: float | None = None
    metrics: Mapping[str, Metric] = _NONE
    null: Mapping[str, Control] = _NONE
    thresholds: Mapping[str, Mapping[str, float]] = _NONE
    identification: Identification = Identification()
    local_estimate: LocalEstimated = LocalEstimated()
    notes: Sequence[Mapping[str, float]] = ()
    """The attack's own numbers, by client."""
    curves: Sequence[Curve] = ()
    data: Data = Data()
    masks: Masks = Masks()
    recovered_psnr: float | None = None
    unavailable_metrics: Mapping[str, str] = _NONE
    wall_seconds: float | None = None
    peak_memory_bytes: int | None = None
    device: str | None = None
    num_processes: int | None = None
    num_clients_planned: int | None = None
    iterations: int | None = None
    iterations_planned: int | None = None
    trainer_precision: str | None = None
    versions: Mapping[str, str] = _NONE
    command: str | None = None

    @property
    def is_masked(self) -> bool:
        """Whether subjects were masked; where not, subject-only figures repeat the others."""
        return self.masks.method != "none"

    def metric(self, name: str) -> Metric:
        """Return a metric, one without figures where it was not computed."""
        return self.metrics.get(name, Metric())

    def noted(self, name: str) -> int | None:
        """Return a count that the attack noted, over all clients; None if it noted none."""
        counts = [note[name] for note in self.notes if name in note]
        return int(sum(counts)) if counts else None

    def control(self, name: str) -> Control:
        """Return a null control, one without figures where it was not run."""
        return self.null.get(name, Control())


def read_results(path: Path, rows: Sequence[Row] = ()) -> Results:
    """Read ``results.json`` of this or the previous version.

    Args:
        path: the file.
        rows: of ``clients.csv`` beside it, from which figures are computed that the earliest files
            lack.

    Raises:
        InputError: if there is none, it is no such file, it is of a later version, or it lacks a
            key.  Of version 1, whose keys were never written down, a missing one leaves a gap.
    """
    if not path.is_file():
        raise InputError(
            f"{path.parent} holds no {path.name}; name the folder of a finished run, such as "
            "lightning_logs/version_0"
        )
    content, text = read_json(path, _AGAIN)
    try:
        _check_version(content, path)
        if "integrity" in content:
            _check_integrity(content, path)
        results: Results = conform(Results, _completed(content, rows))
    except MisfitError as misfit:
        raise refusal(path, text, misfit, _AGAIN) from misfit
    return results


def view(content: Mapping[str, Any]) -> Results:
    """Return the records of what ``results.json`` holds.

    Args:
        content: of a file that is to be written.

    Raises:
        MisfitError: if a value is of another type than the schema's.
    """
    results: Results = conform(Results, content)
    return results


def integrity(origin: Origin, clients: Path) -> IntegrityJson:
    """Return what tells that a run's files were changed.

    Args:
        origin: of the run's records.
        clients: the file ``clients.csv``; one that is not there is left out.
    """
    table = hash_of(clients.read_bytes()) if clients.is_file() else ""
    return {**origin._asdict(), "clients": table, "results": ""}  # type: ignore[typeddict-item]


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of ``results.json`` with its checksum in ``integrity``."""
    finite: dict[str, Any] = finite_json(content)
    found = {**finite["integrity"], "results": _checksum(finite)}
    return {**finite, "integrity": found}


def _checksum(content: Mapping[str, Any]) -> str:
    inner = {name: value for name, value in content["integrity"].items() if name != "results"}
    return hash_of(json.dumps({**content, "integrity": inner}, sort_keys=True).encode())


def _check_integrity(content: Mapping[str, Any], path: Path) -> None:
    """Raise InputError if the file, or one beside it, is not as the run wrote it."""
    found: IntegrityJson = conform(IntegrityJson, content["integrity"], ("integrity",))
    if found["results"] != _checksum(content):
        raise InputError(f"{path} was changed: its checksum is not its own; {_AGAIN}")
    clients = path.with_name("clients.csv")
    if clients.is_file() and found["clients"] != hash_of(clients.read_bytes()):
        raise InputError(f"{clients} was changed since {path.name} was written; {_AGAIN}")
    config = path.with_name("config.yaml")
    if config.is_file() and found["configuration"]:
        text = read_text(config)
        if configuration_hash(text, str(config)) != found["configuration"]:
            raise InputError(
                f"{config} is another configuration than that of {path.name}; put back what was "
                "changed, or run the audit again"
            )


def _check_version(content: Mapping[str, Any], path: Path) -> None:
    version = content.get("schema_version", 1)
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise InputError(f"{path}: schema_version is {version!r}, no version; {_AGAIN}")
    if version > SCHEMA_VERSION:
        raise InputError(
            f"{path} is of version {version}, and this program reads up to {SCHEMA_VERSION}; use a "
            "newer one"
        )
    later = {name for name, first in _ADDED.items() if version < first}
    required = ResultsJson.__required_keys__ - later
    missing = required - content.keys()
    if version == 1 and missing == required:
        raise InputError(f"{path} holds nothing of an audit; name the folder of a finished run")
    if version > 1 and missing:
        raise InputError(f"{path} lacks {', '.join(sorted(missing))}; {_AGAIN}")


def _completed(content: dict[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
    """Return the content with the figures that an early file lacks, from the rows."""
    is_complete = "recall_ci_low" in content
    if is_complete or not rows or any(row.get("recovered") not in (0, 1) for row in rows):
        return content
    known = view(content)
    computed: dict[str, Any] = {**aggregate(rows, known.num_reconstructions or 0)}
    computed["clients_unrecovered"] = sorted(
        {int(row.get("client", 0)) for row in rows}
        - {int(row.get("client", 0)) for row in rows if row["recovered"]}
        - {failure.client for failure in known.failures}
    )
    return _merged(computed, content)


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Return both, keys of dictionaries within included; where both have one, the second's."""
    merged = below | above
    for key in below.keys() & above.keys():
        if isinstance(below[key], dict) and isinstance(above[key], dict):
            merged[key] = _merged(below[key], above[key])
    return merged
