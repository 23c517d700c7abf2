"""Flower's mechanisms, as version 1.42 computes them.

``LocalDpMod`` clips what a client changed and adds noise by the classical formula.  The strategies
of central differential privacy add noise of z C / n to the mean of n clipped updates, so that it
hides a client from those who see the model, never from the server.  Their adaptive clipping spends
a part of z on a noisy count (Andrew, Thakkar, McMahan & Ramaswamy, "Differentially Private Learning
with Adaptive Clipping", NeurIPS 2021), whose bits Flower does not centre as the paper does.
"""

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
    agreed_delta,
    delta_of,
    number,
    own_claim,
    whole,
)
from lightning_recon.lint.figures import gaussian_figure
from lightning_recon.privacy.gaussian import classical_std, gaussian_epsilon, gaussian_std
from lightning_recon.privacy.reconstruction import rero_gaussian
from lightning_recon.privacy.sensitivity import Adjacency, client_sensitivity


def local_dp(args: Mapping[str, Any], facts: Facts, where: str) -> Channel:
    """Return the channel of ``LocalDpMod``.

    Its epsilon is that of one release.  Local differential privacy compares any two inputs, so the
    claim is judged under replacement unless another adjacency is named.
    """
    clip = number(args["clipping_norm"], "clipping_norm", where, above=0.0)
    sensitivity = number(args["sensitivity"], "sensitivity", where)
    epsilon = number(args["epsilon"], "epsilon", where, above=0.0)
    delta = agreed_delta(facts, delta_of(args["delta"], where), where)
    std = classical_std(epsilon, sensitivity, delta)
    adjacency = facts.adjacency or "replace"
    findings = [*_misfit(clip, sensitivity, epsilon, delta, adjacency)]

    def figure(level: Level, adjacency: Adjacency, rounds: int) -> Figure:
        # one clip for the whole update: a record may move it as far as all of them
        return gaussian_figure(std / clip, level, adjacency, rounds, delta)

    if facts.clients is not None:
        findings.append(
            Finding(
                "note",
                "no-amplification",
                "the server knows whom it asks, so drawing clients brings nothing against it",
            )
        )
    return Channel(
        figure,
        "the server, and all others",
        own_claim(facts, delta, "client", adjacency)
        or Claim(epsilon, delta, facts.level or "client", adjacency, 1, "LocalDpMod"),
        std / clip,
        facts.batch_size or 1,
        clip,
        lambda rounds: rero_gaussian(2 * clip, std, num_rounds=rounds) if std else 1.0,
        tuple(findings),
        Unprotected(unclipped=True, unnoised=True, fails_on_integers=True, counts_buffers=True),
        "numpy",
    )


def _misfit(
    clip: float, sensitivity: float, epsilon: float, delta: float, adjacency: Adjacency
) -> list[Finding]:
    """Return what is wrong about a sensitivity, and about the classical formula."""
    true = client_sensitivity(clip, adjacency)
    if sensitivity == 0:
        return [Finding("error", "no-noise", "sensitivity 0 adds no noise at all")]
    found = []
    if sensitivity < true:
        needed = gaussian_std(epsilon, true, delta) / classical_std(epsilon, 1.0, delta)
        found.append(
            Finding(
                "error" if needed > sensitivity else "note",
                "sensitivity-misfit",
                f"sensitivity {sensitivity:g} does not fit clipping_norm {clip:g}: two clients' "
                f"updates may lie {true:g} apart ({adjacency.replace('_', ' or ')}); epsilon "
                f"{epsilon:g} takes sensitivity {needed:.4g} here",
            )
        )
    elif sensitivity > true:
        found.append(
            Finding(
                "note",
                "sensitivity-too-large",
                f"sensitivity {sensitivity:g} is more than {true:g}, all that clipping_norm "
                f"{clip:g} leaves: more noise than is claimed",
            )
        )
    classical = gaussian_epsilon(1.0, classical_std(epsilon, 1.0, delta), delta)
    if classical > epsilon:
        found.append(
            Finding(
                "warning",
                "classical-formula",
                f"the classical formula sqrt(2 ln(1.25/delta))/epsilon gives too little noise at "
                f"epsilon {epsilon:g}: by itself it makes {classical:.4g}",
            )
        )
    return found


def central(args: Mapping[str, Any], facts: Facts, where: str, at: str) -> Channel:
    """Return the channel of fixed clipping, on the server or the client (``at``)."""
    multiplier = number(args["noise_multiplier"], "noise_multiplier", where)
    clip = number(args["clipping_norm"], "clipping_norm", where, above=0.0)
    sampled = whole(args["num_sampled_clients"], "num_sampled_clients", where)
    return _central(multiplier, multiplier, clip, sampled, facts, where, at, ())


def adaptive(args: Mapping[str, Any], facts: Facts, where: str, at: str) -> Channel:
    """Return the channel of adaptive clipping, on the server or the client (``at``)."""
    claimed = number(args["noise_multiplier"], "noise_multiplier", where)
    clip = number(args["initial_clipping_norm"], "initial_clipping_norm", where, above=0.0)
    sampled = whole(args["num_sampled_clients"], "num_sampled_clients", where)
    given = args["clipped_count_stddev"]
    count_std = sampled / 20 if given is None else number(given, "clipped_count_stddev", where)
    if claimed == 0:
        return _central(0.0, 0.0, clip, sampled, facts, where, at, ())
    if claimed >= 2 * count_std:
        raise InputError(
            f"{where}: Flower refuses noise_multiplier {claimed:g}, which must lie under twice "
            f"clipped_count_stddev, {count_std:g}; sample more clients, or give that"
        )
    on_updates = (claimed**-2 - (2 * count_std) ** -2) ** -0.5
    # a bit of 0 or 1 that comes or goes moves the count by 1, a centred one by 1/2
    together = (on_updates**-2 + count_std**-2) ** -0.5
    finding = Finding(
        "warning",
        "uncentred-count",
        f"the count of clipped updates is noised as if its bits were centred, and they are not: "
        f"for a client that is left out the noise is worth {together:.4g}, not {claimed:g}",
    )
    return _central(together, claimed, clip, sampled, facts, where, at, (finding,))


def _central(
    present: float,
    replaced: float,
    clip: float,
    sampled: int,
    facts: Facts,
    where: str,
    at: str,
    findings: tuple[Finding, ...],
) -> Channel:
    """Return the channel of noise on a mean.

    Args:
        present: noise multiplier against a client's presence.
        replaced: that against its replacement, of which 2 is the sensitivity.
        clip: norm of an update.
        sampled: clients of a round.
        facts: of the federation.
        where: messages say this stands.
        at: ``server`` or ``client``, where updates are clipped.
        findings: so far.
    """
    if facts.clients is not None and facts.clients < sampled:
        raise InputError(
            f"{where}: num_sampled_clients is {sampled}, of only {facts.clients} clients"
        )
    share = 1.0 if facts.largest_share is None else facts.largest_share * sampled
    if share < 1 - 1e-9:
        raise InputError(f"{where}: of {sampled} weights the largest_share is at least 1/{sampled}")
    delta = facts.delta or DELTA

    def figure(level: Level, adjacency: Adjacency, rounds: int) -> Figure:
        multiplier = (present if adjacency == "add_remove" else replaced) / share
        return gaussian_figure(multiplier, level, adjacency, rounds, delta)

    if facts.secure_sum and at == "server":
        raise InputError(f"{where}: a server that sees the sum alone cannot clip single updates")
    found = [*findings, *_weights(facts, sampled), _server(at, clip, facts.secure_sum)]
    if replaced == 0:
        found.insert(0, Finding("error", "no-noise", "noise_multiplier 0 adds no noise at all"))
    elif facts.clients is not None and facts.clients > sampled:
        found.append(_amplified(replaced / share, sampled, facts.clients, facts.rounds, delta))
    return Channel(
        figure,
        "those who see the model, and not the server",
        own_claim(facts, delta, "client", "add_remove"),
        0.0,
        facts.batch_size or 1,
        clip,
        lambda rounds: rero_gaussian(2 * share, replaced, num_rounds=rounds) if replaced else 1.0,
        tuple(found),
        Unprotected(unclipped=True, fails_on_integers=True, counts_buffers=True),
    )


def _weights(facts: Facts, sampled: int) -> list[Finding]:
    """Return what unequal weights do to noise that is made for equal ones."""
    if facts.largest_share is None:
        text = (
            f"the noise is made for {sampled} equal weights, and FedAvg weighs by num-examples: "
            "give largest_share, or let all clients report the same number"
        )
        return [Finding("warning", "unequal-weights", text)]
    if facts.largest_share * sampled <= 1 + 1e-9:
        return []
    text = (
        f"a client of weight {facts.largest_share:g} moves the mean "
        f"{facts.largest_share * sampled:.3g} times as far as the noise is made for, 1/{sampled}"
    )
    return [Finding("warning", "unequal-weights", text)]


def _server(at: str, clip: float, sees_sum: bool) -> Finding:
    text = "the server sees every update as it is, before clipping and noise"
    if sees_sum:
        text = "the server sees the sum of the updates without noise"
    elif at == "client":
        text = f"the server sees every update clipped to {clip:g} and without noise"
    return Finding("warning", "server-sees-all", f"{text}: against it nothing is guaranteed")


def _amplified(multiplier: float, sampled: int, clients: int, rounds: int, delta: float) -> Finding:
    """Return what drawing clients in secret would bring."""
    from lightning_recon.privacy.accounting import fixed_sample_epsilon

    rate = sampled / clients
    coin = gaussian_figure(multiplier, "client", "add_remove", rounds, delta, rate)
    fixed = fixed_sample_epsilon(multiplier, delta, rounds, sampled, clients)
    unsampled = gaussian_epsilon(2.0, multiplier, delta, rounds)
    times = f"{rounds} round{'s' if rounds > 1 else ''}"
    return Finding(
        "note",
        "amplification",
        f"against those who never learn who took part, {sampled} of {clients} drawn: epsilon "
        f"{min(fixed, unsampled):.4g} at most for replacement over {times}; {coin.epsilon:.4g} for "
        "presence had each been drawn by a coin, which Flower's sampling is not",
    )
