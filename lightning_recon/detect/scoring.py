"""From statistics to a score: what is strange is what honest models do not have.

Thresholds are chosen on honest models alone, so that every attack is left out of the choosing: a
statistic is strange from :data:`MARGIN` times the largest value among them on, and never below a
floor, which is what its definition calls strange, where honest models show nothing of it.
"""

from collections.abc import Iterable, Mapping

MARGIN = 1.25
FLOORS: Mapping[str, float] = {
    "not-finite": 1.0,
    "dead-rows": 1.0,  # all of a weight that belongs to no layer, or of a flat one among tensors
    "repeated-rows": 0.5,
    "one-direction": 0.7,
    "ordered-biases": 6.0,  # in standard deviations of biases in random order
    "trap-weights": 0.5,
    "leaning-rows": 10.0,
    "even-rows": 2.5,
    "large-biases": 0.6,
    "centring-biases": 6.0,  # likewise
    "gain-out-of-range": 2.0,  # a factor of 100
    "copying-kernels": 0.5,
    "confident-head": 7.0,  # odds of 1,100
    "lone-class": 0.5,  # a factor of 3.2
    "large-numbers": 2.5,  # 316
    "undeclared-layers": 1.0,
    "beyond-training": 2.0,
    "beyond-training-biases": 0.3,
    "owned-rows": 0.5,
    "equal-gradients": 5.0,
    "isolated-sample": 10.0,
}
"""The least thresholds."""


def chosen(honest: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return thresholds for statistics.

    Args:
        honest: statistics by code, of models of which none is malicious.
    """
    thresholds = dict(FLOORS)
    for statistics in honest:
        for code, value in statistics.items():
            thresholds[code] = max(thresholds[code], MARGIN * value)
    return thresholds


def strength(statistics: Mapping[str, float], thresholds: Mapping[str, float]) -> float:
    """Return the strength of the strongest statistic, from 1 on suspicious; 0 for none.

    Args:
        statistics: by code.
        thresholds: by code.
    """
    return max((value / thresholds[code] for code, value in statistics.items()), default=0.0)


def score_of(strongest: float) -> float:
    """Return a strength as a score in [0, 1), from .5 on suspicious."""
    strongest = max(strongest, 0.0)
    return strongest / (1 + strongest)
