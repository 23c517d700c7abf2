"""``results.json``, read: every figure an attribute of a known type, None where the file has none.

Pages and the terminal read these records, never the file itself, and so never meet a text where a
number should be.  What the keys mean stands in docs/results-schema.md.
"""

import json
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

from lightning_recon.audit.schema import SCHEMA_VERSION, ResultsJson
from lightning_recon.audit.scores import Row, aggregate
from lightning_recon.errors import InputError

_AGAIN = "run the audit again"
_NONE: Mapping[str, Any] = types.MappingProxyType({})
_NAMES = {str: "text", bool: "true or false", int: "whole number", float: "number"}
_Record = TypeVar("_Record", bound=tuple[Any, ...])


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
    expected_psnr: float | None = None
    expected_psnr_clamped: float | None = None
    statement: str | None = None


class Communication(NamedTuple):
    """What one client's update costs to send."""

    num_bits: float | None = None
    bits_per_parameter: float | None = None


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
    privacy: Privacy = Privacy()
    seed: int | None = None
    communication: Communication = Communication()
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
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is no JSON ({error}); {_AGAIN}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no object of names and values; {_AGAIN}")
    _check_version(content, path)
    return view(_completed(content, rows, str(path)), str(path))


def view(content: Mapping[str, Any], source: str = "results.json") -> Results:
    """Return the records of what ``results.json`` holds.

    Args:
        content: the file's, or that of one that is to be written.
        source: what an error names.

    Raises:
        InputError: if a value is of another type than the schema's.
    """
    return _record(Results, content, source)


def _check_version(content: Mapping[str, Any], path: Path) -> None:
    version = content.get("schema_version", 1)
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise InputError(f"{path}: schema_version is {version!r}, no version; {_AGAIN}")
    if version > SCHEMA_VERSION:
        raise InputError(
            f"{path} is of version {version}, and this program reads up to {SCHEMA_VERSION}; use a "
            "newer one"
        )
    missing = ResultsJson.__required_keys__ - content.keys()
    if version == 1 and len(missing) == len(ResultsJson.__required_keys__):
        raise InputError(f"{path} holds nothing of an audit; name the folder of a finished run")
    if version > 1 and missing:
        raise InputError(f"{path} lacks {', '.join(sorted(missing))}; {_AGAIN}")


def _record(kind: type[_Record], content: Mapping[str, Any], where: str) -> _Record:
    """Return a record of the values that are there; the others keep their defaults."""
    found = {
        name: _value(
            hint, content[name], f"{where}: {name}" if kind is Results else f"{where}.{name}"
        )
        for name, hint in get_type_hints(kind).items()
        if content.get(name) is not None
    }
    return kind(**found)


def _value(hint: Any, value: Any, where: str) -> Any:
    """Return a value as its hint says; InputError where it cannot be."""
    if get_origin(hint) is types.UnionType:  # X | None
        return None if value is None else _value(get_args(hint)[0], value, where)
    kind = get_origin(hint) or hint
    if kind is Mapping and isinstance(value, Mapping):
        inner = get_args(hint)[1]
        there = {name: one for name, one in value.items() if one is not None}
        return {name: _value(inner, one, f"{where}.{name}") for name, one in there.items()}
    if kind is Sequence and isinstance(value, list):
        (inner,) = get_args(hint)
        return [_value(inner, one, f"{where}[{place}]") for place, one in enumerate(value)]
    if issubclass(kind, tuple) and isinstance(value, Mapping):
        return _record(kind, value, where)
    fits = isinstance(value, (int, float) if kind is float else kind)
    if kind in _NAMES and fits and isinstance(value, bool) == (kind is bool):
        return value
    expected = _NAMES.get(kind, "list" if kind is Sequence else "object")
    raise InputError(f"{where} is {str(value)[:40]!r}, no {expected}; {_AGAIN}")


def _completed(content: dict[str, Any], rows: Sequence[Row], source: str) -> dict[str, Any]:
    """Return the content with the figures that an early file lacks, from the rows."""
    is_complete = "recall_ci_low" in content
    if is_complete or not rows or any(row.get("recovered") not in (0, 1) for row in rows):
        return content
    known = view(content, source)
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
