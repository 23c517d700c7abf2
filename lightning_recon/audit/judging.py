"""Which defense holds by a criterion, and which of those costs the least accuracy.

"Holds" is what the criterion of the user says of some attacks on some clients, and never that an
update is safe: another attack, another client or another round may get more.  The only guarantee is
an (epsilon, delta).  What was not measured does not hold.
"""

import math
from collections.abc import Sequence

from lightning_recon.audit.recommendation import (
    Assessed,
    Attacked,
    Criterion,
    Judged,
    Leak,
    Scope,
)
from lightning_recon.errors import InputError

_NORMAL = 1.959964  # 97.5 % of the normal distribution


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
