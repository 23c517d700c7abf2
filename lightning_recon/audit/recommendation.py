"""What a recommendation holds: records for JSON (``recommendation.json``).

They are read again by :func:`~lightning_recon.schemas.conform`; which defense holds, and which of
those is recommended, :mod:`lightning_recon.audit.judging` says.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from scipy import stats

from lightning_recon.audit.records import ClientRecord
from lightning_recon.audit.scores import best_control
from lightning_recon.audit.statistics import bootstrap_interval, share_interval

SCHEMA_VERSION = 1


class Criterion(NamedTuple):
    """What a defense must keep to hold; None: it is not asked for."""

    worst_gain_db: float | None = None
    right_share: float | None = None
    epsilon: float | None = None


class Attacked(NamedTuple):
    """One attack of the list."""

    name: str
    attack: str
    threat_model: str
    oracles: Sequence[str] = ()

    @property
    def is_honest(self) -> bool:
        """Whether the server sends the model as it is."""
        return self.threat_model.startswith("an honest")


class Leak(NamedTuple):
    """What one attack made of the clients under one defense."""

    attack: str
    num_clients: int = 0
    """That were attacked."""
    num_planned: int = 0
    num_failed: int = 0
    """On which the attack failed."""
    reason: str | None = None
    """Why it failed, of the first."""
    num_images: int = 0
    right: int = 0
    """Images that are recovered convincingly."""
    right_low: float | None = None
    right_high: float | None = None
    """Ends of the 95 % interval of their share, over clients."""
    worst_gain: float | None = None
    """By which the worst image is above the best of its own null controls, dB."""
    worst_psnr: float | None = None
    """PSNR of that image, dB."""
    worst_client: int | None = None
    mean_gain: float | None = None
    mean_gain_low: float | None = None
    mean_gain_high: float | None = None
    """Ends of its 95 % interval, over clients."""
    psnr: float | None = None
    """Mean over all images, dB."""

    @property
    def fits(self) -> bool:
        """Whether the attack could be made on any client."""
        return self.num_failed < self.num_clients or not self.num_clients

    @property
    def is_whole(self) -> bool:
        """Whether it was made on all clients."""
        return not self.num_failed and self.num_clients == self.num_planned > 0


class Accuracy(NamedTuple):
    """What the federation's model is worth after the training."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    """Ends of its 95 % interval, Wilson's, over the test images of one training."""
    num_test: int = 0
    rounds: int = 0
    learning_rate: float | None = None
    curve: Sequence[tuple[int, float]] = ()
    reason: str | None = None
    """Why there is none."""


class Estimated(NamedTuple):
    """What a linearised attacker would get: no bound."""

    psnr: float | None = None
    mean_image_psnr: float | None = None
    num_images: int = 0
    reason: str | None = None
    """Why there is none."""


class Guaranteed(NamedTuple):
    """What is guaranteed over all rounds of the training; None: nothing."""

    epsilon: float | None = None
    """Of all of a client's data."""
    record_epsilon: float | None = None
    """Of one record of the batch."""
    delta: float | None = None
    round_epsilon: float | None = None
    """As ``epsilon``, of one round."""
    statement: str = ""

    @property
    def least(self) -> float | None:
        """The smaller epsilon."""
        there = [one for one in (self.epsilon, self.record_epsilon) if one is not None]
        return min(there, default=None)


class Judged(NamedTuple):
    """Whether a defense holds in one scope."""

    holds: bool | None = None
    """None: it was not shown, since something was not measured."""
    why: str = ""


class Assessed(NamedTuple):
    """One defense with all its figures."""

    name: str
    accuracy: Accuracy = Accuracy()
    leaks: Sequence[Leak] = ()
    """By attack."""
    estimate: Estimated | None = None
    guaranteed: Guaranteed = Guaranteed()
    num_bits: float | None = None
    """Of one client's message."""
    judged: Mapping[str, Judged] = {}
    """By scope."""

    def worst(self, attacks: Sequence[str]) -> Leak | None:
        """Return the leak of the worst image that any of some attacks got; None: there is none."""
        there = [
            leak
            for leak in self.leaks
            if leak.attack in attacks and leak.fits and leak.worst_gain is not None
        ]
        return max(there, key=lambda leak: leak.worst_gain or 0.0, default=None)

    def highest_share(self, attacks: Sequence[str]) -> float | None:
        """Return the highest upper end of the share of right images, over some attacks."""
        ends = [leak.right_high for leak in self.leaks if leak.attack in attacks and leak.fits]
        return max((end for end in ends if end is not None), default=None)


class Scope(NamedTuple):
    """Some attacks, and what is recommended against them."""

    name: str
    attacks: Sequence[str]
    recommended: str | None = None
    """None: no defense holds that was trained."""
    front: Sequence[str] = ()
    """Defenses of which no other has both more accuracy and a smaller worst leak."""


class Recommendation(NamedTuple):
    """All that ``recommendation.json`` holds."""

    schema_version: int = SCHEMA_VERSION
    name: str = ""
    federation: Mapping[str, str] = {}
    """In words."""
    criterion: Criterion = Criterion()
    attacks: Sequence[Attacked] = ()
    settings: Sequence[Assessed] = ()
    """The first is what the others are compared with."""
    scopes: Sequence[Scope] = ()
    num_done: int = 0
    num_planned: int = 0
    command: str = ""
    versions: Mapping[str, str] = {}

    def setting(self, name: str | None) -> Assessed | None:
        """Return a setting by its name."""
        return next((one for one in self.settings if one.name == name), None)

    def is_honest(self, scope: Scope) -> bool:
        """Return whether no attack of a scope needs a malicious server."""
        return all(one.is_honest for one in self.attacks if one.name in scope.attacks)


def leak_of(attack: str, records: Sequence[ClientRecord], num_planned: int) -> Leak:
    """Return what one attack made of its clients.

    Args:
        attack: its name.
        records: of its clients.
        num_planned: clients that it was to attack.
    """
    failed = [record for record in records if record.failure]
    leak = Leak(
        attack,
        num_clients=len(records),
        num_planned=num_planned,
        num_failed=len(failed),
        reason=failed[0].failure if failed else None,
    )
    rows = [(record.client, row) for record in records for row in record.rows]
    if not rows or not leak.fits:
        return leak
    clients = [client for client, _ in rows]
    gains = [row["psnr"] - best_control(row) for _, row in rows]
    right = [row["recovered_convincing"] for _, row in rows]
    place = max(range(len(gains)), key=gains.__getitem__)
    share, gain = share_interval(right, clients), bootstrap_interval(gains, clients)
    return leak._replace(
        num_images=len(rows),
        right=int(sum(right)),
        right_low=share.low if share else None,
        right_high=share.high if share else None,
        worst_gain=gains[place],
        worst_psnr=rows[place][1]["psnr"],
        worst_client=int(rows[place][1]["client"]),
        mean_gain=math.fsum(gains) / len(gains),
        mean_gain_low=gain.low if gain else None,
        mean_gain_high=gain.high if gain else None,
        psnr=math.fsum(row["psnr"] for _, row in rows) / len(rows),
    )


def wilson(hits: int, number: int) -> tuple[float, float]:
    """Return the ends of Wilson's 95 % interval of a share (JASA 22, 1927).

    Args:
        hits: how many.
        number: of how many, at least 1.
    """
    ends = stats.binomtest(hits, number).proportion_ci(method="wilson")
    return float(ends.low), float(ends.high)
