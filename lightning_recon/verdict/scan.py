"""How a client trained, where nobody says it: what fits its update best."""

import itertools
import math
from typing import NamedTuple

from lightning_recon.targets import Target
from lightning_recon.verdict.evidence import look
from lightning_recon.verdict.plan import Setting, Training, matching
from lightning_recon.verdict.sent import Sent

RATES = (0.001, 0.01, 0.1)
"""Learning rates that are tried."""
STEPS = (1, 5, 20)
"""Numbers of local steps that are tried."""
_CLEARLY = 0.9  # of the objective of one step: else the update does not tell


class Scanned(NamedTuple):
    """What a scan came to."""

    training: Training
    """With the learning rate and the steps that fit best, or as it was where none is clearly so."""
    text: str
    """What is to be said of it."""


def scan(target: Target, sent: Sent, training: Training, setting: Setting) -> Scanned:
    """Return how a client trained, as the fit of its update tells.

    Every combination of what is not known is simulated by the attack that matches updates; the
    least objective wins if it is clearly below that of a single step, for which the learning rate
    is of no matter.

    Args:
        target: with the payload's weights.
        sent: by the client, a change of weights.
        training: what is known.
        setting: of the audit.
    """
    rates = RATES if training.learning_rate is None else (training.learning_rate,)
    numbers = STEPS if training.steps is None else (training.steps,)
    short = setting._replace(effort="quick")
    fits: dict[tuple[float, int], float] = {}
    for rate, steps in itertools.product(rates, numbers):
        if steps == 1 and any(steps == other for _, other in fits):
            continue  # the objective is of directions, which the rate of one step leaves
        trial = training._replace(learning_rate=rate, steps=steps)
        attack = matching(target, sent, trial, short, setting.seed)
        found = look(attack, sent.update, trial, setting)
        fits[rate, steps] = float(found.score.mean()) if len(found.score) else math.nan
    finite = {key: value for key, value in fits.items() if math.isfinite(value)}
    unknown = "how the client trained is not known"
    if not finite:
        return Scanned(training, f"{unknown}, and no simulation came to anything")
    rate, steps = best = min(finite, key=lambda key: finite[key])
    one = min((value for (_, steps), value in finite.items() if steps == 1), default=math.inf)
    tried = f"{unknown}; of {len(fits)} that were simulated"
    if steps == 1 or finite[best] > _CLEARLY * one:
        return Scanned(training, f"{tried}, none fits clearly better than a single step")
    text = (
        f"{tried}, {steps} steps at learning rate {rate:g} fit best (objective {finite[best]:.3g}, "
        f"of a single step {one:.3g}), and are assumed"
    )
    return Scanned(training._replace(learning_rate=rate, steps=steps), text)
