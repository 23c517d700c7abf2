"""How sure an attacker may be of a reconstruction: a calibrated probability.

A logistic regression on :data:`~lightning_recon.verdict.evidence.NAMES`, fitted by
``python -m benchmarks.verdict fit`` on clients whose truth is known; docs/real_federations.md has
its reliability on networks and images that had no part in the fit.
"""

import json
import math
from functools import lru_cache
from pathlib import Path
from typing import TypedDict

from lightning_recon.verdict.evidence import NAMES, Features

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
    """By the feature's name."""
    num_images: int
    """That it was fitted on."""


@lru_cache(maxsize=1)
def calibration() -> Calibration:
    """Return the fit that ships with the project."""
    content: Calibration = json.loads(_FILE.read_text(encoding="utf-8"))
    return content


def confidence(features: Features) -> float:
    """Return the probability that a reconstruction is right, in (0, 1).

    Right is what :data:`~lightning_recon.verdict.evidence.RIGHT_PSNR` and ``RIGHT_GAIN`` say.

    Args:
        features: of the reconstruction.
    """
    fit = calibration()
    logit = fit["offset"] + sum(fit["weights"][name] * features[name] for name in NAMES)
    return 1 / (1 + math.exp(-max(-30.0, min(30.0, logit))))
