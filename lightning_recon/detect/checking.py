"""Is this payload honest?  The client's question before it trains."""

import math
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

from torch import Tensor, nn

from lightning_recon.detect.canary import canary_evidence
from lightning_recon.detect.layers import floats_of, layers_of
from lightning_recon.detect.rounds import changes, undeclared
from lightning_recon.detect.rows import Evidence, evidence_of
from lightning_recon.detect.scoring import FLOORS, score_of, strength
from lightning_recon.errors import InputError

Payload = nn.Module | Mapping[str, Tensor]
THRESHOLDS: Mapping[str, float] = {**FLOORS, "gain-out-of-range": 2.32}
"""Chosen on all honest models of ``benchmarks/detect_table.py``, which prints them."""
_TOLD = 0.8  # of its threshold, from which a statistic is told


class Finding(NamedTuple):
    """One thing that is strange about a payload."""

    code: str
    """The same for the same thing, for programs."""
    where: str
    """The tensor, by the name that the payload gives it."""
    strength: float
    """In units of what is suspicious: from 1 on it is."""
    text: str


class Detection(NamedTuple):
    """What is said of one payload."""

    score: float
    """In [0, 1), from .5 on suspicious: s / (1 + s) of the strongest finding's strength s.  It is
    no probability: how often servers are malicious, nobody knows."""
    verdict: Literal["honest", "suspicious"]
    findings: list[Finding]
    """The strongest first, one a code; those near their threshold, too."""
    statistics: dict[str, float]
    """The largest value of each, whatever it is."""


def detect(
    model: Payload,
    reference: Payload | None = None,
    sample: tuple[Tensor, Tensor] | None = None,
) -> Detection:
    """Tell whether a model that a server sent looks like one that is there to be trained.

    Tensors and modules are looked at, names are not.

    Args:
        model: the payload; tensors alone, such as a ``state_dict`` in the model's order, tell
            less than the module that computes.
        reference: what the server sent in the round before, or the declared model with those
            weights; null: neither.
        sample: images, B C H W, B at least 4, and labels, B, as the client trains on them: their
            own gradients tell whether a sample owns a row.  The model runs on them.

    Raises:
        InputError: if there is nothing to look at, or the sample does not fit.

    Examples:
        >>> detect(nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))).verdict
        'honest'
    """
    if sample is not None and not isinstance(model, nn.Module):
        raise InputError("a sample needs the module that computes; tensors alone run on nothing")
    strongest: dict[str, tuple[str, Evidence]] = {}
    for where, evidence in _all(model, reference, sample):
        known = strongest.get(evidence.code)
        if known is None or evidence.value > known[1].value:
            strongest[evidence.code] = where, evidence
    return _judged(strongest)


def _judged(strongest: Mapping[str, tuple[str, Evidence]]) -> Detection:
    """Return what the strongest evidence, by code, comes to."""
    found = [
        Finding(code, where, evidence.value / THRESHOLDS[code], evidence.text)
        for code, (where, evidence) in strongest.items()
    ]
    found.sort(key=lambda one: -one.strength)
    statistics = {code: evidence.value for code, (_, evidence) in strongest.items()}
    most = strength(statistics, THRESHOLDS)
    return Detection(
        score_of(most),
        "suspicious" if most >= 1 else "honest",
        [one for one in found if one.strength >= _TOLD],
        statistics,
    )


def _all(
    model: Payload, reference: Payload | None, sample: tuple[Tensor, Tensor] | None
) -> Iterator[tuple[str, Evidence]]:
    """Yield all evidence, and where it stands."""
    sizes = _sizes(model)
    if not sizes:
        raise InputError(
            "the payload holds no weights of two dimensions or more; nothing can be looked at"
        )
    layers = layers_of(model)
    for layer in layers:
        yield from ((layer.name, evidence) for evidence in evidence_of(layer))
    if isinstance(model, nn.Module):
        for name, value in floats_of(model):
            if value and math.isfinite(value):
                text = f"a plain attribute is {value:.3g}"
                yield name, Evidence("large-numbers", math.log10(abs(value)), text)
    if reference is not None:
        yield from undeclared(sizes, _sizes(reference))
        yield from changes(layers, layers_of(reference))
    if sample is not None:
        assert isinstance(model, nn.Module)
        yield from canary_evidence(model, *sample)


def _sizes(payload: Payload) -> list[tuple[str, tuple[int, ...]]]:
    """Return names and shapes of what has two dimensions and more, in order.

    Vectors are left out: some send the buffers of norms, and some do not.
    """
    tensors = payload.state_dict() if isinstance(payload, nn.Module) else payload
    return [
        (name, tuple(part.shape))
        for name, part in tensors.items()
        if part.is_floating_point() and part.ndim > 1
    ]
