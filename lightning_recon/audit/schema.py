"""What ``results.json`` holds, key by key; docs/results-schema.md is the same page for people.

Other programs read the file, so that a key keeps its name, its type and its meaning.  One that is
added raises :data:`SCHEMA_VERSION`; :mod:`lightning_recon.audit.results` reads every version.
"""

from typing import NotRequired, TypedDict

from lightning_recon.data.masked_images import MaskSummary
from lightning_recon.privacy.sensitivity import Adjacency

SCHEMA_VERSION = 4
"""Of what is written now.  Files without ``schema_version`` are of version 1."""


class Interval(TypedDict):
    """Ends of a 95 % interval; null where a single client gives none."""

    ci_low: float | None
    ci_high: float | None


class MetricJson(Interval):
    """One metric over all images."""

    mean: float
    median: float
    worst: float
    """Worst for privacy: of the image that leaked most."""


class _Psnr(TypedDict):
    psnr: float


class ControlJson(_Psnr, total=False):
    """One null control; an interval where it is made of rows, counts where it is an attack."""

    ci_low: float | None
    ci_high: float | None
    recovered: int
    """Images that the attack "recovers" although nothing of the client reached it."""
    failed: int
    """Clients on which the attack failed on noise."""


class IdentificationJson(Interval):
    """How often a reconstruction is nearest to its own truth."""

    rate: float
    num_candidates: int | None


class LocalEstimateJson(Interval):
    """What a linearised attacker would get, by mean squared errors over the same images."""

    num_images: int
    psnr_mean_image: float
    psnr_attack: float
    psnr: float
    """Of the estimate; its interval, too."""


class ScoresJson(TypedDict):
    """What the rows of all images come to: :func:`lightning_recon.audit.scores.aggregate`."""

    num_images: int
    num_reconstructions: int
    recovered: int
    recovered_convincing: int | None
    """Recovered images that no guess comes near, by ``convincing_rule``."""
    convincing_rule: str
    precision: float
    recall: float
    recall_ci_low: float | None
    recall_ci_high: float | None
    metrics: dict[str, MetricJson]
    null: dict[str, ControlJson]
    thresholds: dict[str, dict[str, float]]
    identification: IdentificationJson | None
    local_estimate: LocalEstimateJson | None
    """None where it was not asked for, or cannot be had."""


class ClaimJson(TypedDict):
    """What the configuration claims of one release."""

    epsilon: float
    delta: float
    rule: str
    level: str
    adjacency: Adjacency


class GuaranteeJson(TypedDict):
    """What really holds."""

    epsilon: float
    delta: float
    rule: str
    adjacency: str


class PrivacyStatement(TypedDict):
    """What :func:`~lightning_recon.audit.privacy_statement.privacy_statement` says."""

    clip_norm: float | None
    noise_std: float | None
    claimed: ClaimJson | None
    claim_holds: bool | None
    actual: GuaranteeJson | None
    record_level: GuaranteeJson | None
    zcdp_rho: float | None
    rero_1000: float
    rero_record_1000: NotRequired[float | None]
    """None where ``record_level`` is."""
    num_rounds: int
    statement: str


class PrivacyJson(PrivacyStatement):
    """The same, beside what the best attack without a prior would reach."""

    expected_psnr: float | None
    expected_psnr_clamped: float | None


class CommunicationJson(TypedDict):
    """What one client's update costs to send."""

    num_parameters: float
    num_bits: float
    bits_per_parameter: float


class BitsJson(TypedDict):
    """Bits of an image that were read, beside what the channel carries."""

    read: float
    """By the squared errors of all images together, at most ``capacity``."""
    capacity: float
    noise_only: float | None
    """Of the noise-only control; null where it was not run."""


class FailureJson(TypedDict):
    """A client on which the attack failed."""

    client: int
    reason: str


class CurveJson(TypedDict):
    """The attack's objective on one client."""

    client: int
    iteration: list[int]
    objective: list[float | None]
    """Null where it was not finite."""


class _RequiredDataJson(TypedDict):
    name: str
    fallback: str | None
    description: str


class DataJson(_RequiredDataJson, total=False):
    """What was attacked."""

    classes: list[str] | None
    """Names of the classes by label; null where they have none."""
    skipped: list[str]
    """Images that cannot be used, and were skipped: files, or names; of those that were tried."""


class AttackJson(TypedDict):
    """The attack, and all that the attacker was granted."""

    attack: str
    citation: str
    threat_model: str
    oracles: list[str]
    target: str
    defenses: list[str]
    unsimulated: list[str]
    privacy: PrivacyJson
    seed: int


class OutcomeJson(AttackJson, ScoresJson):
    """The attack and what came of it, on the clients of a run or of a sweep's cell."""

    communication: CommunicationJson | None
    bits: BitsJson | None
    """None where no noise bounds what comes through."""
    num_clients: int
    failures: list[FailureJson]
    clients_unrecovered: list[int]
    notes: list[dict[str, float | None]]
    curves: list[CurveJson]
    seconds_per_client: float


class IntegrityJson(TypedDict):
    """What tells that a run's files were changed: first 16 digits of SHA-256; empty: not known."""

    configuration: str
    """Of what figures depend on in ``config.yaml``."""
    data: str
    """Of the data's list of files and the clients' labels."""
    clients: str
    """Of the bytes of ``clients.csv``; empty without one."""
    results: str
    """Of this file without this key, as JSON with sorted keys."""


class ResultsJson(OutcomeJson):
    """All of ``results.json``."""

    schema_version: int
    experiment: str
    data: DataJson
    masks: MaskSummary
    recovered_psnr: float
    unavailable_metrics: dict[str, str]
    wall_seconds: float
    peak_memory_bytes: int
    import_memory_bytes: int
    device: str
    num_processes: int
    num_clients_planned: int
    """Clients of a whole run; ``num_clients`` is smaller where it was limited or stopped."""
    num_clients_resumed: int
    iterations: int
    """Most steps on one client."""
    iterations_planned: int
    """Steps of a whole run; ``iterations`` is smaller where it was limited."""
    trainer_precision: str
    versions: dict[str, str]
    command: str
    integrity: IntegrityJson
