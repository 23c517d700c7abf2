"""Which defense holds by a criterion, and which of those costs the least accuracy.

"Holds" is what the criterion of the user says of some attacks on some clients, and never that an
update is safe: another attack, another client or another round may get more.  The only guarantee is
an (epsilon, delta).  What was not measured does not hold.

All are records for JSON (``recommendation.json``), read again by
:func:`~lightning_recon.schemas.conform`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from scipy import stats

from lightning_recon.audit.records import ClientRecord
from lightning_recon.audit.scores import best_control
from lightning_recon.audit.statistics import bootstrap_interval, share_interval
from lightning_recon.errors import InputError

SCHEMA_VERSION = 1
_NORMAL = 1.959964  # 97.5 % of the normal distribution


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


def check_criterion(criterion: Criterion, num_clients: int) -> None:
    """Make sure that a criterion asks for something, and can be met by so many clients.

    Raises:
        InputError: if it does not, or a number is out of its range.
    """
    if all(value is None for value in criterion):
        raise InputError(
            "holds asks for nothing; give worst_gain_db, right_share or epsilon: what a defense "
            "must keep"
        )
    for name, value in criterion._asdict().items():
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"holds.{name} must be a number above 0, not {value}")
    limit = criterion.right_share
    if limit is None:
        return
    least = _least_end(num_clients)
    if least > limit:
        enough = next((n for n in range(2, 100_000) if _least_end(n) <= limit), None)
        raise InputError(
            f"holds.right_share {limit:g} cannot be shown with {num_clients} clients: where not "
            f"one image is right, the interval still ends at {least:.3g}; take {enough} clients, "
            "or another limit"
        )


def _least_end(num_clients: int) -> float:
    """Return the upper end of the share's interval where no image of any client is right."""
    return 1.0 if num_clients < 2 else 1 - 0.025 ** (1 / num_clients)


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


def cost(setting: Assessed, baseline: Assessed) -> tuple[float, float, float] | None:
    """Return how much accuracy a setting costs, with the ends of the 95 % interval.

    The test images are taken for two independent samples, which they are not: they are the same,
    and the interval is wider than it need be.  That other seeds train otherwise is not in it.

    Returns:
        Points from 0 to 1, below 0 where the setting is better; None where there is no accuracy.
    """
    one, other = baseline.accuracy, setting.accuracy
    if one.value is None or other.value is None or not one.num_test or not other.num_test:
        return None
    difference = one.value - other.value
    if setting.name == baseline.name:
        return 0.0, 0.0, 0.0
    variance = one.value * (1 - one.value) / one.num_test
    variance += other.value * (1 - other.value) / other.num_test
    half = _NORMAL * math.sqrt(variance)
    return difference, difference - half, difference + half


def judge(setting: Assessed, attacks: Sequence[Attacked], criterion: Criterion) -> Judged:
    """Return whether a defense holds against some attacks.

    Of the honest and of the malicious ones among them one must fit, each.

    Args:
        setting: with its leaks.
        attacks: of the scope.
        criterion: that it must keep.
    """
    honest = {attack.name: attack.is_honest for attack in attacks}
    leaks = [leak for leak in setting.leaks if leak.attack in honest]
    if broken := _broken(setting, leaks, criterion):
        return Judged(False, broken)
    fitting = [leak for leak in leaks if leak.fits]
    for is_honest in sorted(set(honest.values())):
        if not any(honest[leak.attack] == is_honest for leak in fitting):
            kind = "an honest" if is_honest else "a malicious"
            return Judged(None, f"no attack of the list by {kind} server fits")
    for leak in fitting:
        if not leak.is_whole:
            done = leak.num_clients - leak.num_failed
            return Judged(None, f"{leak.attack}: {done} of {leak.num_planned} clients attacked")
    left = [leak.attack for leak in leaks if not leak.fits]
    return Judged(True, f"without {', '.join(left)}, which does not fit" if left else "")


def _broken(setting: Assessed, leaks: Sequence[Leak], criterion: Criterion) -> str:
    """Return what of a criterion is not kept; empty: all is."""
    for leak in leaks:
        gain, limit = leak.worst_gain, criterion.worst_gain_db
        if leak.fits and gain is not None and limit is not None and gain > limit:
            return f"{leak.attack}: {gain:.1f} dB above the controls, client {leak.worst_client}"
    for leak in leaks:
        share, limit = leak.right_high, criterion.right_share
        if leak.fits and share is not None and limit is not None and share > limit:
            return f"{leak.attack}: {leak.right} of {leak.num_images} right, up to {share:.0%}"
    limit, least = criterion.epsilon, setting.guaranteed.least
    if limit is not None and (least is None or least > limit):
        return "no epsilon" if least is None else f"epsilon {least:.3g}"
    return ""


def scopes_of(attacks: Sequence[Attacked]) -> list[Scope]:
    """Return the scopes of some attacks: servers that are honest, and any.

    Args:
        attacks: of the list.
    """
    honest = [attack.name for attack in attacks if attack.is_honest]
    everyone = [attack.name for attack in attacks]
    found = [Scope("an honest-but-curious server", honest)] if honest else []
    if len(honest) < len(everyone):
        found.append(Scope("any server, a malicious one included", everyone))
    return found


def recommended(
    settings: Sequence[Assessed], attacks: Sequence[Attacked], criterion: Criterion
) -> tuple[list[Assessed], list[Scope]]:
    """Return the settings, judged, and what is recommended in every scope.

    Recommended is the setting of the highest accuracy of those that hold; of several as high, the
    first.

    Args:
        settings: with their figures.
        attacks: of the list.
        criterion: that a defense must keep.
    """
    scopes = scopes_of(attacks)
    settings = [
        one._replace(
            judged={
                scope.name: judge(one, [a for a in attacks if a.name in scope.attacks], criterion)
                for scope in scopes
            }
        )
        for one in settings
    ]
    found = []
    for scope in scopes:
        held = [
            one
            for one in settings
            if one.judged[scope.name].holds and one.accuracy.value is not None
        ]
        best = max(held, key=lambda one: one.accuracy.value or 0.0, default=None)
        front = pareto(settings, scope.attacks)
        found.append(scope._replace(recommended=best and best.name, front=front))
    return settings, found


def pareto(settings: Sequence[Assessed], attacks: Sequence[str]) -> list[str]:
    """Return the names of the Pareto front, by falling accuracy.

    No other setting has at least the accuracy and at most the worst gain, and one of them better.

    Args:
        settings: those without accuracy or leak are left out.
        attacks: of which the worst leak counts.
    """
    points = []
    for one in settings:
        worst, accuracy = one.worst(attacks), one.accuracy.value
        if worst is not None and worst.worst_gain is not None and accuracy is not None:
            points.append((accuracy, worst.worst_gain, one.name))
    front = [
        (accuracy, name)
        for accuracy, gain, name in points
        if not any(
            other >= accuracy and leak <= gain and (other > accuracy or leak < gain)
            for other, leak, _ in points
        )
    ]
    return [name for _, name in sorted(front, key=lambda point: -point[0])]
