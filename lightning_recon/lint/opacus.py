"""Opacus: DP-SGD of one client, as version 1.6 accounts for it.

Its accountants suppose Poisson sampling.  ``prv`` and ``rdp`` bound the truth; ``gdp`` is the
central limit of Bu, Dong, Long & Su, "Deep Learning with Gaussian Differential Privacy", HDSR 2020,
and bounds nothing.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from lightning_recon.errors import InputError, instead
from lightning_recon.lint.facts import (
    Channel,
    Claim,
    Facts,
    Figure,
    Finding,
    Level,
    agreed_delta,
    delta_of,
    number,
    own_claim,
    whole,
)
from lightning_recon.lint.figures import gaussian_figure
from lightning_recon.privacy.gaussian import gaussian_epsilon
from lightning_recon.privacy.reconstruction import rero_gaussian
from lightning_recon.privacy.sensitivity import Adjacency

_ACCOUNTANTS = ("prv", "rdp", "gdp")


def dp_sgd(args: Mapping[str, Any], facts: Facts, where: str) -> Channel:
    """Return the channel of ``PrivacyEngine.make_private``: one client that sends its weights.

    A round is ``steps`` of DP-SGD, or ``epochs`` of 1 / sample_rate steps.
    """
    multiplier = number(args["noise_multiplier"], "noise_multiplier", where)
    clip = number(args["max_grad_norm"], "max_grad_norm", where, above=0.0)
    if args["accountant"] not in _ACCOUNTANTS:
        hint = instead(args["accountant"], _ACCOUNTANTS)
        raise InputError(f"{where}: there is no accountant {args['accountant']}{hint}")
    rate = _rate(args, facts, where)
    epochs = args["epochs"]
    steps = _steps(args, facts, rate, where)
    own = None if args["delta"] is None else delta_of(args["delta"], where)
    delta = agreed_delta(facts, own, where)
    is_poisson = bool(args["poisson_sampling"])
    passes = math.ceil(steps * rate - 1e-9) if epochs is None else math.ceil(epochs)

    def of_steps(level: Level, adjacency: Adjacency, rounds: int) -> Figure | None:
        if level == "client":
            if facts.dataset_size is None:
                return None
            found = gaussian_figure(
                multiplier / facts.dataset_size, level, adjacency, steps * rounds, delta
            )
            return found._replace(bound="at most", rule=f"{found.rule}, all records at once")
        if is_poisson:
            return gaussian_figure(multiplier, level, adjacency, steps * rounds, delta, rate)
        found = gaussian_figure(multiplier, level, adjacency, passes * rounds, delta)
        rule = f"{found.rule}, {passes * rounds} passes, nothing from sampling"
        return found._replace(bound="at most", rule=rule)

    def figure(level: Level, adjacency: Adjacency, rounds: int) -> Figure | None:
        found = of_steps(level, adjacency, rounds)
        return None if found is None else found._replace(rounds=rounds)

    releases, drawn = (steps, rate) if is_poisson else (passes, 1.0)
    claim, findings = _claim(args, facts, multiplier, rate, steps, delta, where)
    if multiplier == 0:
        findings.insert(0, Finding("error", "no-noise", "noise_multiplier 0 adds no noise at all"))
    if not is_poisson:
        text = (
            "without Poisson sampling the accountants' amplification is not proven; the figures "
            "here take none"
        )
        findings.append(Finding("warning", "no-poisson-sampling", text))
    findings.append(
        Finding(
            "note",
            "record-level",
            "one record is protected, not the client: all of its records together are as good as "
            "open",
        )
    )
    return Channel(
        figure,
        "the server, and all others",
        claim,
        multiplier,
        1.0,
        clip,
        partial(_rero, multiplier, drawn, releases),
        tuple(findings),
        draws_from=None if args["secure_mode"] else "torch",
    )


def _rero(multiplier: float, rate: float, releases: int, rounds: int) -> float:
    """Return the ReRo bound of a record that is drawn with some probability for each release."""
    if multiplier == 0:
        return 1.0
    if rate == 1:
        return rero_gaussian(1.0, multiplier, num_rounds=releases * rounds)
    from lightning_recon.privacy.accounting import rero_sampled  # takes seconds

    return rero_sampled(multiplier, rate, releases * rounds)


def _rate(args: Mapping[str, Any], facts: Facts, where: str) -> float:
    given = args["sample_rate"]
    if given is None and facts.batch_size is not None and facts.dataset_size is not None:
        # Opacus takes one over the number of batches
        given = 1 / math.ceil(facts.dataset_size / facts.batch_size)
    if given is None:
        raise InputError(f"{where}: give sample_rate, or batch_size and dataset_size")
    return number(given, "sample_rate", where, above=0.0, most=1.0)


def _steps(args: Mapping[str, Any], facts: Facts, rate: float, where: str) -> int:
    """Return how many steps a round has."""
    if args["epochs"] is not None:
        return math.ceil(number(args["epochs"], "epochs", where, above=0.0) / rate - 1e-9)
    if args["steps"] is not None:
        return whole(args["steps"], "steps", where)
    if facts.steps is None:
        raise InputError(f"{where}: give the steps or the epochs of a round")
    return facts.steps


def _claim(
    args: Mapping[str, Any],
    facts: Facts,
    multiplier: float,
    rate: float,
    steps: int,
    delta: float,
    where: str,
) -> tuple[Claim | None, list[Finding]]:
    """Return what is claimed, and what is wrong about who claims it."""
    level, adjacency = facts.level or "record", facts.adjacency or "add_remove"
    if (claim := own_claim(facts, delta, level, adjacency)) is not None:
        return claim, []
    findings = []
    counted = 1 if args["new_engine_each_round"] else facts.rounds
    if counted < facts.rounds:
        text = f"an engine that is made anew each round tells of one of {facts.rounds} rounds"
        findings.append(Finding("warning", "engine-anew-each-round", text))
    if args["accountant"] == "gdp" and multiplier > 0:
        # the central limit for Poisson sampling, as the accountant has it
        spread = math.sqrt(math.expm1(min(multiplier**-2, 100.0)))
        mu = rate * math.sqrt(steps * counted) * spread
        epsilon = gaussian_epsilon(mu, 1.0, delta)
        text = "the accountant gdp is a limit for many steps and bounds nothing; take prv"
        findings.append(Finding("warning", "gdp-accountant", text))
        if args["target_epsilon"] is None:
            told = Claim(epsilon, delta, level, adjacency, facts.rounds, "accountant gdp")
            return told, findings
    if args["target_epsilon"] is None and counted < facts.rounds and multiplier > 0:
        epsilon = gaussian_figure(multiplier, "record", "add_remove", steps, delta, rate).epsilon
        rule = "what the engine of one round tells"
        return Claim(epsilon, delta, level, adjacency, facts.rounds, rule), findings
    if args["target_epsilon"] is None:
        return None, findings
    target = number(args["target_epsilon"], "target_epsilon", where, above=0.0)
    return Claim(target, delta, level, adjacency, facts.rounds, "target_epsilon"), findings
