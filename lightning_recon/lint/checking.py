"""A configuration, checked: its figures, and what makes its claim fail."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from lightning_recon.errors import InputError, instead
from lightning_recon.lint import chains, flower, nvflare, opacus
from lightning_recon.lint.facts import Channel, Claim, Facts, Figure, Finding, Report, read_facts
from lightning_recon.lint.figures import best_psnr
from lightning_recon.lint.reading import Entry, Variable
from lightning_recon.lint.seeds import seed_finding
from lightning_recon.privacy.reconstruction import channel_bits

KAPPA = 1e-3
"""Success without the release that ReRo bounds are given for: one of 1000 candidates."""
_NEEDED = object()


class Mechanism(NamedTuple):
    """What a configuration may name."""

    parameters: Mapping[str, Any]
    """In their order, with defaults."""
    channel: Callable[[Mapping[str, Any], Facts, str], Channel]
    passed_over: tuple[str, ...] = ()
    """Arguments that change no figure; the first of them may stand first."""


_FIXED = {
    "noise_multiplier": _NEEDED,
    "clipping_norm": _NEEDED,
    "num_sampled_clients": _NEEDED,
}
_ADAPTIVE = {
    "noise_multiplier": _NEEDED,
    "num_sampled_clients": _NEEDED,
    "initial_clipping_norm": 0.1,
    "target_clipped_quantile": 0.5,
    "clip_norm_lr": 0.2,
    "clipped_count_stddev": None,
}
MECHANISMS = {
    "LocalDpMod": Mechanism(
        dict.fromkeys(("clipping_norm", "sensitivity", "epsilon", "delta"), _NEEDED),
        flower.local_dp,
    ),
    **{
        f"DifferentialPrivacy{at.capitalize()}SideFixedClipping": Mechanism(
            _FIXED, partial(flower.central, at=at), ("strategy", "accountant")
        )
        for at in ("server", "client")
    },
    **{
        f"DifferentialPrivacy{at.capitalize()}SideAdaptiveClipping": Mechanism(
            _ADAPTIVE, partial(flower.adaptive, at=at), ("strategy",)
        )
        for at in ("server", "client")
    },
    "Opacus": Mechanism(
        {
            "noise_multiplier": _NEEDED,
            "max_grad_norm": _NEEDED,
            "sample_rate": None,
            "steps": None,
            "epochs": None,
            "delta": None,
            "accountant": "prv",
            "target_epsilon": None,
            "poisson_sampling": True,
            "secure_mode": False,
            "new_engine_each_round": False,
        },
        opacus.dp_sgd,
    ),
    "PercentilePrivacy": Mechanism(
        {"percentile": 10, "gamma": 0.01}, nvflare.percentile, ("data_kinds",)
    ),
    "SVTPrivacy": Mechanism(
        {
            "fraction": 0.1,
            "epsilon": 0.1,
            "noise_var": 0.1,
            "gamma": 1e-5,
            "tau": 1e-6,
            "data_kinds": None,
            "replace": True,
            "epsilon_threshold": None,
            "epsilon_query": None,
            "epsilon_release": None,
        },
        nvflare.svt,
    ),
    "ExcludeVars": Mechanism({"exclude_vars": None}, nvflare.exclude_vars, ("data_kinds",)),
    "Chain": Mechanism({"defenses": None, "client": None}, chains.chain),
}
"""By name, as their libraries have it; a chain is this project's."""


def check(entry: Entry) -> Report:
    """Return what a configuration claims and what holds.

    Args:
        entry: as it was read.

    Raises:
        InputError: if it cannot be judged: a mechanism, argument or fact that does not exist, is
            missing or lies out of its range.
    """
    where = entry.where
    if entry.mechanism not in MECHANISMS:
        known = instead(entry.mechanism, MECHANISMS) or f"; there are {', '.join(MECHANISMS)}"
        raise InputError(
            f"{where}: there is no mechanism {entry.mechanism or 'without a name'}{known}"
        )
    mechanism = MECHANISMS[entry.mechanism]
    args = _arguments(entry, mechanism)
    facts = read_facts(entry.facts, where)
    model = None
    if entry.model is not None:
        from lightning_recon.lint.models import made_model, model_findings, num_numbers

        model = made_model(entry.model, entry.model_args)
        facts = facts._replace(num_parameters=num_numbers(model, facts))
    channel = mechanism.channel(args, facts, where)
    findings = [*channel.findings]
    if model is not None:
        findings += model_findings(model, channel, facts)
    if channel.draws_from is not None:
        source = None if entry.source is None else Path(entry.source)
        findings.append(seed_finding(source, channel.draws_from))
    claim = channel.claim
    figures = _figures(channel, facts)
    if claim is not None:
        findings = [*_claim_findings(claim, facts, channel, where), *findings]
    broken = any(one.severity == "error" for one in findings)
    return Report(
        entry.title,
        entry.mechanism,
        channel.protects_from,
        claim,
        None if claim is None else not broken,
        figures,
        _rero(channel, facts),
        _bits(channel, facts),
        best_psnr(None if channel.ratio is None else channel.ratio * math.sqrt(channel.sharing)),
        sorted(findings, key=lambda one: ("error", "warning", "note").index(one.severity)),
    )


def _arguments(entry: Entry, mechanism: Mechanism) -> dict[str, Any]:
    """Return all arguments of a mechanism by name."""
    names = [*mechanism.parameters]
    given = list(entry.positional)
    if given and isinstance(given[0], Variable) and "strategy" in mechanism.passed_over:
        given.pop(0)
    if len(given) > len(names):
        raise InputError(f"{entry.where}: {entry.mechanism} takes {len(names)} arguments")
    args = dict(zip(names, given, strict=False))
    for name, value in entry.args.items():
        if name in mechanism.passed_over:
            continue
        if name not in names:
            raise InputError(
                f"{entry.where}: {entry.mechanism} takes no argument {name}{instead(name, names)}"
            )
        args[name] = value
    for name, value in args.items():
        if isinstance(value, Variable):
            raise InputError(f"{entry.where}: {name} is {value!r}, and no number; write its value")
    missing = [n for n, default in mechanism.parameters.items() if default is _NEEDED]
    missing = [name for name in missing if name not in args]
    if missing:
        raise InputError(f"{entry.where}: {entry.mechanism} needs {', '.join(missing)}")
    return {**mechanism.parameters, **args}


def _figures(channel: Channel, facts: Facts) -> list[Figure]:
    """Return the figures of both levels and adjacencies, of one round and of all."""
    found = [
        channel.figure(level, adjacency, rounds)
        for level in ("client", "record")
        for rounds in sorted({1, facts.rounds})
        for adjacency in ("add_remove", "replace")
    ]
    return [figure for figure in found if figure is not None]


def _claim_findings(claim: Claim, facts: Facts, channel: Channel, where: str) -> list[Finding]:
    """Return whether a claim holds, and whether it is one of fewer rounds than are played."""
    held = channel.figure(claim.level, claim.adjacency, claim.rounds)
    if held is None:
        raise InputError(f"{where}: a claim for a whole client needs dataset_size")
    found = []
    if held.epsilon > claim.epsilon * (1 + 1e-6):
        text = (
            f"epsilon {claim.epsilon:.4g} is claimed ({claim.rule}); {words_of(held)} in the same "
            "terms"
        )
        found.append(Finding("error", "claim-does-not-hold", text))
    if claim.rounds < facts.rounds:
        total = channel.figure(claim.level, claim.adjacency, facts.rounds)
        if total is not None:
            text = (
                f"the claim is of {claim.rounds} of {facts.rounds} rounds; all: {words_of(total)}"
            )
            found.append(Finding("warning", "rounds-add-up", text))
    return found


def words_of(figure: Figure) -> str:
    """Return an epsilon in words."""
    if math.isinf(figure.epsilon):
        return f"there is no guarantee ({figure.rule})"
    bound = "" if figure.bound == "exact" else f"{figure.bound} "
    return f"{bound}epsilon {figure.epsilon:.4g}"


def _rero(channel: Channel, facts: Facts) -> float:
    """Return the smaller of a mechanism's own ReRo bound and that of its (epsilon, delta)."""
    own = channel.rero(facts.rounds)
    held = channel.figure("record", "replace", facts.rounds)
    if held is None or held.bound == "at least" or held.epsilon > math.log(1 / KAPPA):
        return own
    return min(own, math.exp(held.epsilon) * KAPPA + held.delta)


def _bits(channel: Channel, facts: Facts) -> float:
    """Return the bits an image that one round lets through."""
    if channel.ratio:
        return channel_bits(channel.ratio, channel.sharing, facts.num_parameters)
    if channel.ratio is None or facts.num_parameters is None:
        return math.inf if channel.ratio == 0 else math.nan
    return 32 * facts.num_parameters / channel.sharing
