"""The figure of a recommendation: accuracy against leakage, a panel a scope, for papers."""

import io
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_recon.audit.recommendation import Recommendation, Scope
from lightning_recon.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FRONT, _OTHER = "tab:blue", "0.6"


def points(found: Recommendation, scope: Scope) -> dict[str, tuple[float, float]]:
    """Return accuracy in % and worst gain in dB of the defenses that have both, by name."""
    there = {}
    for one in found.settings:
        worst = one.worst(scope.attacks)
        if one.accuracy.value is not None and worst is not None:
            there[one.name] = (100 * one.accuracy.value, worst.worst_gain or 0.0)
    return there


def write_front_figure(path: Path, found: Recommendation) -> Path | None:
    """Draw the Pareto front of every scope, as a PNG.

    Args:
        path: of the PNG to write.
        found: the recommendation.

    Returns:
        The path; None where no defense was trained and attacked, or matplotlib is not installed.
    """
    if find_spec("matplotlib") is None or not any(points(found, one) for one in found.scopes):
        return None
    buffer = io.BytesIO()
    front_figure(found).savefig(buffer, format="png", dpi=130)
    write_atomically(path, buffer.getvalue())
    return path


def front_figure(found: Recommendation) -> "Figure":
    """Draw the worst image over its controls against accuracy, by the numbers of the defenses.

    Blue: on the Pareto front; a ring: recommended; the broken line: what holds.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(found.scopes) + 2.4, 4), layout="constrained")
    plots = figure.subplots(1, len(found.scopes), squeeze=False)[0]
    for plot, scope in zip(plots, found.scopes, strict=True):
        _draw(plot, found, scope)
    plots[0].set_ylabel("worst image over its controls, dB")
    names = [f"{place} {one.name}" for place, one in enumerate(found.settings, 1)]
    plots[-1].annotate(
        "\n".join(names),
        (1.04, 1.0),
        xycoords="axes fraction",
        va="top",
        fontsize="small",
        parse_math=False,
    )
    return figure


def _draw(plot: "Axes", found: Recommendation, scope: Scope) -> None:
    there = points(found, scope)
    front = [there[name] for name in scope.front if name in there]
    plot.plot([x for x, _ in front], [y for _, y in front], "--", color=_FRONT, lw=1)
    for place, one in enumerate(found.settings, 1):
        if one.name not in there:
            continue
        at, is_front = there[one.name], one.name in scope.front
        plot.plot(*at, "o", color=_FRONT if is_front else _OTHER, ms=5)
        if one.name == scope.recommended:
            plot.plot(*at, "o", color="black", ms=11, fillstyle="none")
        plot.annotate(str(place), at, (4, 3), textcoords="offset points", fontsize="small")
    limit = found.criterion.worst_gain_db
    if limit is not None:
        plot.axhline(limit, color="0.3", lw=0.8, ls=":")
    plot.set_title(scope.name, fontsize="medium")
    plot.set_xlabel("accuracy, %")
    plot.grid(alpha=0.3)
