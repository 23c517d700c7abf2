"""A recommendation as a page: ``report.html``, made from ``recommendation.json``."""

from collections.abc import Iterator
from pathlib import Path

from lightning_recon.audit.judging import cost
from lightning_recon.audit.recommendation import (
    SCHEMA_VERSION,
    Assessed,
    Leak,
    Recommendation,
    Scope,
)
from lightning_recon.documents import read_json, refusal
from lightning_recon.report.charts import Chart, Dot, Panel, along, ladder
from lightning_recon.report.drawing import Mark, Series
from lightning_recon.report.figures import NO_INTERVAL, drawn_interval
from lightning_recon.report.findings import Finding, listed
from lightning_recon.report.front import points
from lightning_recon.report.page import DASH, INTERVALS, Table, count, number, share, write_page
from lightning_recon.schemas import MisfitError, conform

_AGAIN = "run recommend again with --resume and its folder"
_FRONT, _LIMIT = -1, -2  # looks of the front and of the criterion, in grey
_CAVEAT = (
    "Only (epsilon, delta) is a guarantee. A defense without one that holds here was not shown to "
    "leak by these attacks, on these clients, in the first round; it is not safe for that."
)
HOLDS_WORDS = {True: "holds", False: "leaks", None: "not shown"}


def write_recommendation_report(folder: Path) -> Path:
    """Write ``report.html`` into a folder of ``recommend``.

    Args:
        folder: that has ``recommendation.json``.

    Returns:
        The path of the page.

    Raises:
        InputError: if there is none, or it cannot be understood.
    """
    found = read_recommendation(folder / "recommendation.json")
    charts = [chart for scope in found.scopes for chart in _charts(found, scope)]
    widest = found.scopes[-1] if found.scopes else None
    best = found.setting(widest.recommended) if widest else None
    content = {
        "title": f"{found.name}: the weakest defense that holds",
        "kind": "Defenses of a federation: accuracy against leakage",
        "heading": "The weakest defense that holds",
        "about": f"{count(len(found.settings), 'defense')}, {count(len(found.attacks), 'attack')}",
        "is_leak": best is None,
        "status": best.name if best else f"None holds against {widest.name if widest else 'any'}",
        "verdict": " ".join(sentence(found, scope) for scope in found.scopes),
        "caveat": _CAVEAT,
        "warnings": recommendation_findings(found),
        "sections": {
            "front": "Accuracy against leakage",
            "defenses": "All defenses",
            "attacks": "What every attack got",
            "meaning": "What holds means",
            "reproduce": "Reproduce",
        },
        "source": "Made from recommendation.json; nothing here is fetched.",
        "charts": charts,
        "defenses": _defenses(found),
        "leaks": _leaks(found),
        "attacks": Table(
            "",
            ["Name", "Attack", "Threat model", "Granted beside the update"],
            [
                [one.name, one.attack, one.threat_model, ", ".join(one.oracles) or "nothing"]
                for one in found.attacks
            ],
        ),
        "meaning": {"A defense holds if": criterion_words(found), **found.federation},
        "command": found.command,
        "versions": ", ".join(f"{name} {version}" for name, version in found.versions.items()),
    }
    return write_page(folder / "report.html", "recommend.html", content)


def read_recommendation(path: Path) -> Recommendation:
    """Read ``recommendation.json``.

    Raises:
        InputError: if it cannot be read, or is of another schema.
    """
    content, text = read_json(path, _AGAIN)
    try:
        found: Recommendation = conform(Recommendation, content)
        if found.schema_version != SCHEMA_VERSION:
            raise MisfitError(("schema_version",), f"is {found.schema_version}")
    except MisfitError as misfit:
        raise refusal(path, text, misfit, _AGAIN) from misfit
    return found


def criterion_words(found: Recommendation) -> str:
    """Return what a defense must keep, as a sentence."""
    criterion, parts = found.criterion, []
    if criterion.worst_gain_db is not None:
        parts.append(
            "no image of any client comes out more than "
            f"{criterion.worst_gain_db:g} dB above the best of its own null controls"
        )
    if criterion.right_share is not None:
        parts.append(
            "the 95 % interval of the share of images recovered convincingly ends at "
            f"{share(criterion.right_share)} or below"
        )
    if criterion.epsilon is not None:
        parts.append(f"an epsilon of at most {criterion.epsilon:g} over all rounds is guaranteed")
    return f"{'; '.join(parts)}; for every attack of the list that fits, made on all clients"


def sentence(found: Recommendation, scope: Scope) -> str:
    """Return what is recommended in a scope, what it costs, and what stands behind it."""
    best = found.setting(scope.recommended)
    against = f"Against {scope.name}"
    if best is None:
        unknown = sum(one.judged[scope.name].holds is None for one in found.settings)
        left = f"; of {unknown} that was not shown either way" if unknown else ""
        return f"{against}, no defense of the list was shown to hold{left}."
    text = f"{against}: {best.name}, {_percent(best.accuracy.value)}"
    price = cost(best, found.settings[0])
    if best.name == found.settings[0].name:
        text += ", the setting that the others are compared with"
    elif price is not None:
        points, low, high = (100 * value for value in price)
        what = "costs" if points >= 0 else "gains"
        ends = f"{low:.1f} to {high:.1f}" if points >= 0 else f"{-high:.1f} to {-low:.1f}"
        text += f", which {what} {abs(points):.1f} points ({ends}) of {found.settings[0].name}"
    worst, end = best.worst(scope.attacks), best.highest_share(scope.attacks)
    if worst is not None:
        text += f"; the worst image stands {worst.worst_gain:+.1f} dB to its controls"
    if end is not None:
        text += f", and the interval of the share of right images ends at {share(end)}"
    if why := best.judged[scope.name].why:
        text += f" ({why})"
    epsilon = best.guaranteed.least
    behind = (
        "It has no (epsilon, delta): not shown to leak is not safe."
        if epsilon is None
        else f"It guarantees epsilon {epsilon:.3g} over all rounds."
    )
    return f"{text}. {behind}"


def recommendation_findings(found: Recommendation) -> list[Finding]:
    """Return what keeps the figures from meaning what they seem to mean, alarms first."""
    alarms, notes = [], []
    if found.num_done < found.num_planned:
        alarms.append(f"Partial run: {found.num_done:,} of {count(found.num_planned, 'item')}.")
    untrained: dict[str, list[str]] = {}
    for one in found.settings:
        if one.accuracy.value is None:
            untrained.setdefault(str(one.accuracy.reason), []).append(one.name)
    alarms += [f"No accuracy: {listed(names, '; ')}: {why}." for why, names in untrained.items()]
    chosen = dict.fromkeys(scope.recommended for scope in found.scopes if scope.recommended)
    for best in filter(None, map(found.setting, chosen)):
        alarms += _doubts(best, found.criterion.worst_gain_db)
        epsilon = best.guaranteed.least
        if epsilon is not None and epsilon > 10:
            notes.append(
                f"{best.name} guarantees epsilon {epsilon:.3g} over all rounds: that promises "
                "next to nothing."
            )
    for leak, names in _misfits(found).items():
        notes.append(f"{leak.attack} does not fit {listed(names, '; ')}: {leak.reason}.")
    if all(attack.is_honest for attack in found.attacks):
        notes.append("No malicious server was tried; one gets more than an honest one.")
    notes.append(
        "One training each: other seeds train otherwise, and settings within each other's "
        "interval cannot be told apart. Clients attacked are few, and the worst of them is no "
        "bound for others."
    )
    return [*(Finding("alarm", text) for text in alarms), *(Finding("note", t) for t in notes)]


def _doubts(best: Assessed, limit: float | None) -> Iterator[str]:
    """Yield what speaks against a defense that holds."""
    accuracy, estimate = best.accuracy, best.estimate
    if accuracy.curve and accuracy.low is not None and accuracy.low <= accuracy.curve[0][1]:
        yield (
            f"{best.name} holds, but its model is no better than the untrained one, as far as "
            "the test images tell."
        )
    if estimate is None or estimate.psnr is None or estimate.mean_image_psnr is None:
        return
    gain = estimate.psnr - estimate.mean_image_psnr
    if limit is not None and gain > limit:
        yield (
            f"{best.name}: a linearised attacker who knows all but the images would have "
            f"{gain:.1f} dB over the mean image. The attacks of the list may be too weak."
        )


def _misfits(found: Recommendation) -> dict[Leak, list[str]]:
    """Return the attacks that do not fit, by attack and reason, and the defenses."""
    groups: dict[Leak, list[str]] = {}
    for one in found.settings:
        for leak in one.leaks:
            if not leak.fits:
                same = Leak(leak.attack, reason=leak.reason)
                groups.setdefault(same, []).append(one.name)
    return groups


# --- charts ------------------------------------------------------------------------------------


def _charts(found: Recommendation, scope: Scope) -> list[Chart]:
    """Return the front of a scope, and its defenses by the share of right images."""
    there = points(found, scope)
    if not there:
        return []
    series = []
    for place, one in enumerate(found.settings):
        if one.name in there:
            x, y = there[one.name]
            label = one.name + (" (recommended)" if one.name == scope.recommended else "")
            series.append(Series(label, [x], [y], number=place))
    front = [there[name] for name in scope.front if name in there]
    if len(front) > 1:
        ends = [place[0] for place in front], [place[1] for place in front]
        series.append(Series("Pareto front", *ends, number=_FRONT, is_path=True))
    limit = found.criterion.worst_gain_db
    marks = [] if limit is None else [Mark("holds up to, dB", limit, _LIMIT)]
    chart = along(
        f"Accuracy against the worst leak: {scope.name}",
        [Panel("", series, marks)],
        "accuracy, %",
        "worst image over its controls, dB",
        note="Right and below is better. A point for every defense.",
        has_points=True,
        is_joined=False,
    )
    return [chart, _shares(found, scope)]


def _shares(found: Recommendation, scope: Scope) -> Chart:
    """Return for every defense the share of right images that its strongest attack has."""
    dots = []
    for place, one in enumerate(found.settings):
        leaks = [leak for leak in one.leaks if leak.attack in scope.attacks and leak.num_images]
        if not leaks:
            continue
        worst = max(leaks, key=lambda leak: (leak.right / leak.num_images, leak.right_high or 0))
        ends = drawn_interval(worst.num_clients, worst.right_low, worst.right_high)
        low, high = (None if end is None else 100 * end for end in ends)
        rate = 100 * worst.right / worst.num_images
        dots.append(Dot(f"{one.name}, {worst.attack}", rate, low, high, number=place))
    title = f"Images recovered convincingly, %: {scope.name}"
    limit = found.criterion.right_share
    marks = [] if limit is None else [Mark("holds up to", 100 * limit, _LIMIT)]
    note = f"By the attack that recovers most. Bar: 95 % interval over clients. {NO_INTERVAL}"
    return Chart(title, [("", ladder(title, dots, "images, %", marks))], note)


# --- tables ------------------------------------------------------------------------------------


def _defenses(found: Recommendation) -> Table:
    """Return a line for every defense."""
    heads = ["Defense", "Accuracy", "95 % interval", "Cost, points"]
    for scope in found.scopes:
        server = "honest server" if found.is_honest(scope) else "any server"
        heads += [f"Worst gain, dB: {server}", "By", "Right, up to", "Holds"]
    heads += ["ε, client", "ε, record", "Estimate / mean image, dB", "MB sent", "Server's rate"]
    rows = []
    for one in found.settings:
        accuracy, price, epsilon = one.accuracy, cost(one, found.settings[0]), one.guaranteed
        row = [one.name, _percent(accuracy.value)]
        row.append(
            DASH
            if accuracy.low is None or accuracy.high is None
            else f"{100 * accuracy.low:.1f} to {100 * accuracy.high:.1f}"
        )
        row.append(DASH if price is None else number(100 * price[0], 1))
        for scope in found.scopes:
            worst, judged = one.worst(scope.attacks), one.judged[scope.name]
            row += [
                DASH if worst is None else number(worst.worst_gain, 1),
                DASH if worst is None else worst.attack,
                share(one.highest_share(scope.attacks)),
                f"{HOLDS_WORDS[judged.holds]}{f' ({judged.why})' if judged.why else ''}",
            ]
        estimate = one.estimate
        told = DASH
        if estimate is not None and estimate.psnr is not None:
            told = f"{number(estimate.psnr, 1)} / {number(estimate.mean_image_psnr, 1)}"
        bits = None if one.num_bits is None else one.num_bits / 8e6
        rates = number(accuracy.learning_rate)
        rows.append(
            [
                *row,
                number(epsilon.epsilon),
                number(epsilon.record_epsilon),
                told,
                number(bits),
                rates,
            ]
        )
    caption = (
        "Accuracy on the test images after the last round. ε over all rounds, for replacement. "
        "Estimate: of a linearised attacker, no bound. settings.csv holds the same figures."
    )
    return Table(caption, heads, rows, is_sortable=True)


def _leaks(found: Recommendation) -> Table:
    """Return a line for every defense and attack."""
    heads = ["Defense", "Attack", "Clients", "Right", "95 % interval", "PSNR, dB"]
    heads += ["Mean gain, dB", "95 % interval of it", "Worst gain, dB", "Of client"]
    rows = []
    for one in found.settings:
        for leak in one.leaks:
            if not leak.fits:
                rows.append([one.name, leak.attack, "does not fit", *[DASH] * 7])
                continue
            done = leak.num_clients - leak.num_failed
            ends = leak.right_low, leak.right_high
            gains = leak.mean_gain_low, leak.mean_gain_high
            rows.append(
                [
                    one.name,
                    leak.attack,
                    f"{done} of {leak.num_planned}",
                    f"{leak.right} of {leak.num_images}",
                    DASH if None in ends else f"{share(ends[0])} to {share(ends[1])}",
                    number(leak.psnr, 1),
                    number(leak.mean_gain, 1),
                    DASH if None in gains else f"{number(gains[0], 1)} to {number(gains[1], 1)}",
                    number(leak.worst_gain, 1),
                    number(leak.worst_client),
                ]
            )
    caption = f"Gain: over the best of an image's own null controls. {INTERVALS}"
    facets = {
        "Defense": [one.name for one in found.settings],
        "Attack": [one.name for one in found.attacks],
    }
    return Table(caption, heads, rows, is_sortable=True, facets=facets)


def _percent(value: float | None) -> str:
    return "no accuracy" if value is None else f"{100 * value:.1f} %"
