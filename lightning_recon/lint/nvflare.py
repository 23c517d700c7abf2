"""NVIDIA FLARE's filters, as version 2.9 computes them."""

import math
import re
from collections.abc import Mapping
from typing import Any

from lightning_recon.errors import InputError
from lightning_recon.lint.facts import (
    DELTA,
    Channel,
    Claim,
    Facts,
    Figure,
    Finding,
    Level,
    Unprotected,
    number,
    own_claim,
)
from lightning_recon.privacy.reconstruction import rero_pure
from lightning_recon.privacy.sensitivity import Adjacency


def percentile(args: Mapping[str, Any], facts: Facts, where: str) -> Channel:
    """Return the channel of ``PercentilePrivacy``: small entries become 0, great ones are cut."""
    cut = number(args["percentile"], "percentile", where, most=100.0)
    gamma = number(args["gamma"], "gamma", where, above=0.0)
    text = (
        f"PercentilePrivacy leaves the greatest {100 - cut:g} % of the entries, cut at {gamma:g}, "
        "and adds no noise: that is compression, and no privacy"
    )
    return _open(facts, Finding("error", "compression-is-not-privacy", text), unclipped=True)


def exclude_vars(args: Mapping[str, Any], facts: Facts, where: str) -> Channel:
    """Return the channel of ``ExcludeVars``: tensors of some names are not sent."""
    given = args["exclude_vars"]
    if isinstance(given, str) and given:
        try:
            pattern = re.compile(given)
        except re.error as error:
            raise InputError(f"{where}: exclude_vars is no pattern: {error}") from error

        def excludes(name: str) -> bool:
            return pattern.search(name) is not None
    elif isinstance(given, list) and all(isinstance(name, str) for name in given):

        def excludes(name: str) -> bool:
            return name in given
    else:
        text = f"exclude_vars {given!r} excludes nothing, and FLARE says so in its log alone"
        return _open(facts, Finding("error", "excludes-nothing", text))
    text = "what ExcludeVars leaves is sent as it is, without noise: no privacy of what is sent"
    finding = Finding("error", "selection-is-not-privacy", text)
    return _open(facts, finding, names=excludes)


def _open(facts: Facts, finding: Finding, **unprotected: Any) -> Channel:
    """Return a channel that guarantees nothing."""
    delta = facts.delta or DELTA

    def figure(level: Level, adjacency: Adjacency, rounds: int) -> Figure:
        return Figure(level, adjacency, rounds, math.inf, delta, "exact", "there is no noise")

    return Channel(
        figure,
        "nobody",
        own_claim(facts, delta, "client", "replace"),
        0.0,
        facts.batch_size or 1,
        findings=(finding,),
        unprotected=Unprotected(**unprotected),
    )


def svt(args: Mapping[str, Any], facts: Facts, where: str) -> Channel:
    """Return the channel of ``SVTPrivacy``: the sparse vector technique, and Laplace noise.

    ``epsilon`` pays for choosing which c entries are sent, and their values cost
    ``epsilon_release`` beside it, or c times ``noise_var``.  Under replacement the values alone
    reach that: of two updates that are gamma and -gamma everywhere, the same entries are chosen
    with the same probability, and each value tells them apart by e^(epsilon_release / c).  The
    proof of the choice (Lyu, Su & Li, "Understanding the Sparse Vector Technique for Differential
    Privacy", VLDB 2017) stops at c entries; the filter goes on to the end of a pass, for which the
    bound is that of all entries.
    """
    fraction = number(args["fraction"], "fraction", where, above=0.0, most=1.0)
    epsilon = number(args["epsilon"], "epsilon", where, above=0.0)
    number(args["gamma"], "gamma", where, above=0.0)
    if facts.delta is not None:
        raise InputError(f"{where}: SVTPrivacy claims an epsilon at delta 0; leave out delta")
    if facts.num_parameters is None:
        raise InputError(
            f"{where}: SVTPrivacy spends by the number of entries; give num_parameters, or --model"
        )
    count = math.ceil(facts.num_parameters * fraction)
    if args["epsilon_release"] is None:
        release = count * number(args["noise_var"], "noise_var", where, above=0.0)
        claimed, whose = epsilon, "epsilon"
    else:
        release = number(args["epsilon_release"], "epsilon_release", where, above=0.0)
        claimed, whose = epsilon + release, "epsilon + epsilon_release"

    def figure(level: Level, adjacency: Adjacency, rounds: int) -> Figure:
        spent = release if adjacency == "replace" else release / 2
        rule = f"pure, for the values of {count:,} entries alone"
        return Figure(level, adjacency, rounds, rounds * spent, 0.0, "at least", rule)

    ratio = (2 * count) ** (2 / 3)
    query = epsilon * ratio / (1 + ratio)
    if args["epsilon_query"] is not None:
        query = number(args["epsilon_query"], "epsilon_query", where, above=0.0)
    elif args["epsilon_threshold"] is not None:
        query = epsilon - number(args["epsilon_threshold"], "epsilon_threshold", where, above=0.0)
    if not 0 < query < epsilon:
        raise InputError(f"{where}: threshold and query should be parts of epsilon, {epsilon:g}")
    most = release + epsilon - query + query * facts.num_parameters / count
    terms = (facts.level or "client", facts.adjacency or "replace")
    claim = own_claim(facts, 0.0, *terms) or Claim(claimed, 0.0, *terms, 1, whose)
    is_proven = most * claim.rounds <= claim.epsilon * (1 + 1e-9)
    findings = [
        Finding(
            "note" if is_proven else "error",
            "svt-budget",
            f"epsilon {epsilon:g} pays for the choice alone: the values of {count:,} entries cost "
            f"{release:.4g} a round beside it",
        )
    ]
    if count < facts.num_parameters:
        findings.append(
            Finding(
                "note" if is_proven else "error",
                "svt-acceptance",
                f"the filter accepts entries past the {count:,} that its proof counts; what is "
                f"proven is {most:.4g} a round",
            )
        )
    return Channel(
        figure,
        "the server, and all others, but for the choice of entries",
        claim,
        rero=lambda rounds: rero_pure(rounds * most),
        findings=tuple(findings),
        unprotected=Unprotected(unclipped=True, unnoised=True),
        draws_from="numpy",
    )
