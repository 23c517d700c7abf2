"""How sure an attacker may be of a reconstruction: a calibrated probability.

A logistic regression on :func:`terms` of the evidence, fitted by
``python -m benchmarks.verdict fit`` on clients whose truth is known; docs/real_federations.md has
its reliability on networks and images that had no part in the fit.
"""

import json
import math
from functools import lru_cache
from pathlib import Path
from typing import TypedDict

from lightning_recon.verdict.evidence import Features

SURE = 0.9
"""From which probability a reconstruction counts as a leak."""
LIKELY = 0.5
"""Below which nothing is shown."""
_FILE = Path(__file__).with_name("calibration.json")


class Calibration(TypedDict):
    """``calibration.json``."""

    command: str
    """That fitted it."""
    offset: float
    weights: dict[str, float]
    """By the term's name."""
    num_images: int
    """That it was fitted on."""


@lru_cache(maxsize=1)
def calibration() -> Calibration:
    """Return the fit that ships with the project."""
    content: Calibration = json.loads(_FILE.read_text(encoding="utf-8"))
    return content


def terms(features: Features) -> dict[str, float]:
    """Return what the regression adds up, by name.

    On a network that nobody saw everything has another scale: so shares are taken as odds, and what
    can be large is cut off.  The other features told nothing more on networks that a fit had not
    seen, and are shown only.

    Args:
        features: of the reconstruction.
    """
    share, agreement = features["rehearsed"], features["agreement"]
    return {
        "rehearsed": math.log(share / (1 - share)) / 3,
        "floor": _clipped(features["floor"], -0.8, 0.8),
        "fit": features["fit"],
        "agreement": _clipped(agreement, 1.5, 3.5) - 2.5 if agreement else 0.0,  # 0: one look alone
        "natural": features["natural"],
    }


def confidence(features: Features) -> float:
    """Return the probability that a reconstruction is right, in (0, 1).

    Right is what :data:`~lightning_recon.verdict.evidence.RIGHT_PSNR` and ``RIGHT_GAIN`` say.

    Args:
        features: of the reconstruction.
    """
    fit = calibration()
    logit = fit["offset"] + sum(
        fit["weights"][name] * value for name, value in terms(features).items()
    )
    return 1 / (1 + math.exp(-_clipped(logit, -30, 30)))


def _clipped(value: float, low: float, high: float) -> float:
    return max(low, min(high, value))
