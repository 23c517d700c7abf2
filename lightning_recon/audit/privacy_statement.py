"""What holds for what a client released: the figures that every run prints and stores.

A chain of defenses is judged as one mechanism from the client's data to what is sent.  A step that
guarantees something does so whatever came before it (a local randomizer) or for what was bounded
before it (noise behind clipping), and no later step can undo it (post-processing).  Only what
leaves the last step is seen, so that the best single guarantee counts and nothing adds up within
a round; but Gaussian noise on Gaussian noise is Gaussian again, and their variances add.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from lightning_recon.audit.schema import ClaimJson, GuaranteeJson, PrivacyStatement
from lightning_recon.clients import Client
from lightning_recon.defenses import (
    ClipL2,
    Defense,
    DPSGDNoise,
    GaussianNoise,
    LocalRandomizer,
)
from lightning_recon.errors import InputError
from lightning_recon.privacy.gaussian import gaussian_epsilon
from lightning_recon.privacy.reconstruction import rero_gaussian, rero_pure, rero_zcdp
from lightning_recon.privacy.sensitivity import Adjacency, client_sensitivity
from lightning_recon.privacy.zcdp import gaussian_rho, pure_rho

_BUFFERS = "the buffers that are sent beside the update pass no defense"
_WHOSE = {"client": "all of one client's data", "record": "one record of the batch"}


class _Gaussian(NamedTuple):
    """Gaussian noise on a bounded update."""

    bounds: dict[str, float]
    """By level, client or record: how far adding or removing its data can move the update."""
    std: float

    def sensitivity(self, level: str, adjacency: Adjacency = "replace") -> float:
        return client_sensitivity(self.bounds[level], adjacency)


class _Chain(NamedTuple):
    """What a walk along the defenses found."""

    gaussians: list[_Gaussian]
    randomizers: list[LocalRandomizer]
    norm_bound: float | None
    """The L2 bound that came last."""
    std: float | None
    """Standard deviation of the Gaussian noise that came last."""


def privacy_statement(
    defenses: Sequence[Defense],
    client: Client | None = None,
    num_samples: int | None = None,
    num_rounds: int = 1,
    delta: float = 1e-5,
    sends_buffers: bool = False,
    sampling_rate: float = 1.0,
) -> PrivacyStatement:
    """Return what is claimed, and what really holds, for what one client releases.

    Args:
        defenses: the chain, in the order in which an update passes it; bound.
        client: the protocol; :class:`~lightning_recon.clients.DPSGD` bounds the update itself.
        num_samples: the client's batch size, for the record level of DP-SGD.
        num_rounds: in how many rounds the client takes part with the same data.
        delta: at which epsilon is given, in (0, 1).
        sends_buffers: whether batch norm's buffers are sent beside the update.  They pass no
            defense, so that nothing is guaranteed, whatever is done to the update.
        sampling_rate: probability with which a record takes part in a round (Poisson sampling), in
            (0, 1]; it counts in ``rero_record_1000`` alone.

    Returns:
        A dictionary for JSON:

        ``clip_norm``, ``noise_std``
            L2 bound and standard deviation of the Gaussian noise per coordinate, of the pair that
            guarantees most; where nothing is guaranteed, the last of each.  Or None.  Of several
            clients that are clipped each, the bound of one's part of the mean.
        ``claimed``
            ``epsilon``, ``rule``, ``level`` ("client" or "record"), ``adjacency`` and ``delta`` of
            the smallest epsilon that the configuration claims, for one release.  Or None.
        ``claim_holds``
            Whether one release is as private as that, in those terms.  None without a claim.
        ``actual``
            ``epsilon``, ``delta``, ``adjacency``, ``rule`` of all rounds together, for replacement
            of all of the client's data.  None: no formal guarantee.
        ``record_level``
            The same for replacement of one record of the batch, where the client clips per sample
            and its batch size is given.  Or None.
        ``zcdp_rho``
            Of all rounds together, terms of ``actual``.  Or None.
        ``rero_1000``
            Bound on the probability with which an attack finds the right one of 1000 equally
            likely candidates for the client's data, from all rounds together, terms of
            ``actual``; 1 without a guarantee.
        ``rero_record_1000``
            The same for one record, by :func:`~lightning_recon.privacy.accounting.rero_sampled`:
            the attacker knows all others, and whether this one was drawn only where it always is.
            None where ``record_level`` is.
        ``num_rounds``
            As given.
        ``statement``
            One sentence for people.

    Raises:
        InputError: if delta or num_rounds is out of its range, or the noise of DP-SGD does not fit
            the client's clipping norm or batch size.
    """
    if not 0 < delta < 1 or not num_rounds >= 1:
        raise InputError(
            "privacy_statement: delta must lie between 0 and 1 and num_rounds be at least 1, "
            f"not {delta} and {num_rounds}"
        )
    chain = _walk(defenses, client, num_samples)
    if sends_buffers:
        chain = chain._replace(gaussians=[], randomizers=[])
    actual = _guarantee(chain, "client", num_rounds, delta)
    has_records = client is not None and client.clip_norm is not None and num_samples is not None
    record_level = _guarantee(chain, "record", num_rounds, delta) if has_records else None
    best = min(chain.gaussians, key=lambda found: found.bounds["client"] / found.std, default=None)
    claimed, claim_holds = _claim(defenses, chain, delta)
    results: PrivacyStatement = {
        "clip_norm": best.bounds["client"] if best else chain.norm_bound,
        "noise_std": best.std if best else chain.std,
        "claimed": claimed,
        "claim_holds": claim_holds,
        "actual": actual,
        "record_level": record_level,
        "zcdp_rho": _rho(chain, num_rounds),
        "rero_1000": _rero(chain, num_rounds),
        "rero_record_1000": None
        if record_level is None
        else _record_rero(chain, num_rounds, sampling_rate),
        "num_rounds": num_rounds,
        "statement": "",
    }
    why = _BUFFERS if sends_buffers else _reason(results, defenses)
    results["statement"] = _sentence(results, why)
    return results


def _walk(defenses: Sequence[Defense], client: Client | None, num_samples: int | None) -> _Chain:
    """Follow the bounds of the update along the chain, and the noise on it."""
    gaussians: list[_Gaussian] = []
    randomizers: list[LocalRandomizer] = []
    bounds: dict[str, float] = {}  # of the update below the noise; empty: none
    variance = 0.0  # of the noise on it
    last_bound = last_std = None
    if client is not None and client.clip_norm is not None:
        last_bound = client.clip_norm
        bounds = {"client": last_bound, "record": last_bound / (num_samples or 1)}
    elif client is not None and client.update_clip_norm is not None:
        # replacing one client's update moves the mean by so much less
        last_bound = client.update_clip_norm / client.num_clients
        bounds = {"client": last_bound, "record": last_bound}
    for defense in defenses:
        if isinstance(defense, GaussianNoise):
            _check_fit(defense, client, num_samples)
            variance += defense.std**2
            last_std = math.sqrt(variance)
            if bounds and variance:
                gaussians.append(_Gaussian(bounds, last_std))
        elif isinstance(defense, LocalRandomizer):
            randomizers.append(defense)
            bounds, variance = {}, 0.0
        else:
            norm_bound = defense.bind(None if variance else bounds.get("client"))
            record = norm_bound
            if norm_bound is not None and isinstance(defense, ClipL2) and not variance:
                # a projection onto a ball: it moves no two updates apart
                record = min(norm_bound, bounds.get("record", norm_bound))
            bounds = {"client": norm_bound, "record": record} if norm_bound and record else {}
            variance = 0.0
            last_bound = norm_bound if norm_bound is not None else last_bound
    return _Chain(gaussians, randomizers, last_bound, last_std)


def chain_guarantee(
    defenses: Sequence[Defense],
    client: Client | None,
    num_samples: int | None,
    level: Literal["client", "record"],
    adjacency: Adjacency,
    num_rounds: int = 1,
    delta: float = 1e-5,
) -> GuaranteeJson | None:
    """Return the smallest epsilon that holds for a chain, in any terms; None: there is none.

    Args:
        defenses: as in :func:`privacy_statement`.
        client: the protocol; null: any.
        num_samples: the client's batch size; null: not known.
        level: whose data change, ``client`` or ``record``.
        adjacency: how they change.
        num_rounds: in how many rounds the client takes part.
        delta: of all rounds together.
    """
    chain = _walk(defenses, client, num_samples)
    return _guarantee(chain, level, num_rounds, delta, adjacency)


def _check_fit(noise: GaussianNoise, client: Client | None, num_samples: int | None) -> None:
    """Make sure that the noise of DP-SGD was made for this client."""
    if not isinstance(noise, DPSGDNoise) or client is None or client.clip_norm is None:
        return
    for name, made_for, actual in (
        ("clip_norm", noise.clip_norm, client.clip_norm),
        ("num_samples", noise.num_samples, num_samples),
    ):
        if actual is not None and made_for != actual:
            raise InputError(
                f"DPSGDNoise: {name} is {made_for:g}, but the client's is {actual:g}; "
                "give both the same"
            )


def _guarantee(
    chain: _Chain, level: str, num_rounds: int, delta: float, adjacency: Adjacency = "replace"
) -> GuaranteeJson | None:
    """Return the smallest epsilon that holds, or None."""
    rounds = f" in each of {num_rounds} rounds" if num_rounds > 1 else ""
    change = "replacement of" if adjacency == "replace" else "presence or absence of"
    terms = f"{level} level: {change} {_WHOSE[level]}"
    found: list[GuaranteeJson] = []
    for gaussian in chain.gaussians:
        sensitivity = gaussian.sensitivity(level, adjacency)
        epsilon = gaussian_epsilon(sensitivity, gaussian.std, delta, num_rounds)
        rule = (
            f"analytic Gaussian mechanism, exact for sensitivity {sensitivity:g} and "
            f"standard deviation {gaussian.std:g}{rounds}"
        )
        found.append({"epsilon": epsilon, "delta": delta, "rule": rule, "adjacency": terms})
    for randomizer in chain.randomizers:
        name, epsilon = type(randomizer).__name__, randomizer.epsilon
        rule = f"{name}, {epsilon:g}-LDP{rounds}"
        total = num_rounds * epsilon
        found.append({"epsilon": total, "delta": 0.0, "rule": rule, "adjacency": terms})
        if num_rounds > 1:
            from lightning_recon.privacy.accounting import pure_epsilon

            composed = pure_epsilon(epsilon, delta, num_rounds)
            rule += ", optimal composition"
            found.append({"epsilon": composed, "delta": delta, "rule": rule, "adjacency": terms})
    return min(found, key=lambda guarantee: guarantee["epsilon"], default=None)


def _claim(
    defenses: Sequence[Defense], chain: _Chain, delta: float
) -> tuple[ClaimJson | None, bool | None]:
    """Return the smallest epsilon that is claimed, and whether it holds."""
    claims = [defense.claimed for defense in defenses]
    made = [claim for claim in claims if claim is not None]
    if not made:
        return None, None
    boldest = min(made, key=lambda claim: claim["epsilon"])
    claimed: ClaimJson = {
        "level": boldest.get("level", "client"),
        "adjacency": boldest.get("adjacency", "replace"),
        "delta": boldest.get("delta", delta),
        "epsilon": boldest["epsilon"],
        "rule": boldest["rule"],
    }
    held = _guarantee(
        chain,
        claimed["level"],
        num_rounds=1,
        delta=claimed["delta"] or delta,  # a claim of delta = 0 is made for any
        adjacency=claimed["adjacency"],
    )
    holds = held is not None and held["epsilon"] <= claimed["epsilon"] * (1 + 1e-9)
    return claimed, holds


def _rho(chain: _Chain, num_rounds: int) -> float | None:
    rhos = [
        gaussian_rho(gaussian.sensitivity("client"), gaussian.std, num_rounds)
        for gaussian in chain.gaussians
    ]
    rhos += [pure_rho(randomizer.epsilon, num_rounds) for randomizer in chain.randomizers]
    return min(rhos, default=None)


def _rero(chain: _Chain, num_rounds: int) -> float:
    bounds = [
        rero_gaussian(gaussian.sensitivity("client"), gaussian.std, num_rounds=num_rounds)
        for gaussian in chain.gaussians
    ]
    for randomizer in chain.randomizers:
        bounds.append(rero_pure(num_rounds * randomizer.epsilon))
        bounds.append(rero_zcdp(pure_rho(randomizer.epsilon, num_rounds)))
    return min(bounds, default=1.0)


def _record_rero(chain: _Chain, num_rounds: int, sampling_rate: float) -> float:
    bounds = [_rero(chain, num_rounds)]
    for gaussian in chain.gaussians:
        bound = gaussian.bounds["record"]
        if sampling_rate == 1:
            bounds.append(rero_gaussian(bound, gaussian.std, num_rounds=num_rounds))
        else:
            from lightning_recon.privacy.accounting import rero_sampled  # takes seconds

            bounds.append(rero_sampled(gaussian.std / bound, sampling_rate, num_rounds))
    return min(bounds)


def _sentence(results: PrivacyStatement, why: str) -> str:
    """Return the statement for people, and why nothing is guaranteed if that is so."""
    rounds = f" over {results['num_rounds']} rounds" if results["num_rounds"] > 1 else ""
    actual, record, claimed = results["actual"], results["record_level"], results["claimed"]
    if actual is None:
        text = f"no formal guarantee: {why}"
    else:
        text = f"{_figure(actual)} for {_WHOSE['client']}{rounds} (replacement; {actual['rule']})"
    if record is not None:
        text += f"; {_figure(record)} for {_WHOSE['record']}{rounds} ({record['rule']})"
    if claimed is not None:
        verdict = "holds" if results["claim_holds"] else "is a label and does not hold"
        text += (
            f"; the claimed epsilon {claimed['epsilon']:.3g} of one release "
            f"({claimed['rule']}) {verdict}"
        )
    return text


def _figure(guarantee: GuaranteeJson) -> str:
    if guarantee["delta"] == 0:
        return f"{guarantee['epsilon']:.3g}-LDP"
    return f"({guarantee['epsilon']:.3g}, {guarantee['delta']:g})-DP"


def _reason(results: PrivacyStatement, defenses: Sequence[Defense]) -> str:
    """Return why a chain guarantees nothing."""
    std, bound = results["noise_std"], results["clip_norm"]
    if std:
        return f"noise of standard deviation {std:g} is added to an update of unbounded norm"
    if bound is not None:
        return f"an L2 norm of at most {bound:g} hides nothing without noise"
    names = ", ".join(type(defense).__name__ for defense in defenses)
    return f"none is known of {names}" if names else "no defense"
