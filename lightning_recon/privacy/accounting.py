"""Privacy over rounds where no closed form is exact, by the library dp-accounting.

Rounds that all release the same Gaussian need none of this: see
:func:`~lightning_recon.privacy.gaussian.gaussian_epsilon`.  Subsampled ones do.
"""

import math
from typing import Any

from dp_accounting import (
    DpEvent,
    GaussianDpEvent,
    NeighboringRelation,
    PoissonSampledDpEvent,
    PrivacyAccountant,
    SampledWithoutReplacementDpEvent,
)
from dp_accounting.pld import PLDAccountant, common, privacy_loss_distribution
from dp_accounting.rdp import RdpAccountant
from scipy.optimize import minimize_scalar

from lightning_recon.errors import InputError
from lightning_recon.privacy.gaussian import gaussian_epsilon
from lightning_recon.privacy.reconstruction import rero_gaussian
from lightning_recon.privacy.sensitivity import Adjacency, client_sensitivity

_GRID = 10_000  # points of the discretised loss up to the unsampled epsilon
_FINEST = 1e-5  # of the loss: finer ones take long, and change an epsilon by some 1e-5 of itself
_MAX_INTERVAL = 500.0  # the library takes exp of it
# Rényi orders: optimal is 1 + sqrt(2 ln(1/delta)) s/D, which is near 1 where noise is small
_ORDERS = [1 + 10 ** (k / 8) for k in range(-48, 0)] + [2 + k / 8 for k in range(80)]
_ORDERS += [12 * 1.05**k for k in range(100)]


def rdp_epsilon(
    noise_multiplier: float, delta: float, num_rounds: int = 1, sampling_rate: float = 1.0
) -> float:
    """Return an UPPER BOUND on the epsilon of Gaussian noise over rounds, by Rényi DP.

    Mironov, "Rényi Differential Privacy", CSF 2017; Mironov, Talwar & Zhang, arXiv 1908.10530 for
    the sampled mechanism.  The bound is never exact, not even for one release (10.7 where 10 is
    true at delta = 1e-5, 105 where 100 is).

    Args:
        noise_multiplier: standard deviation of the noise over the sensitivity, above 0.
        delta: of all rounds together, in (0, 1).
        num_rounds: how many rounds, at least 1.
        sampling_rate: probability with which a record takes part in a round (Poisson sampling,
            adjacency ``add_remove``), in (0, 1].
    """
    _check(noise_multiplier, num_rounds, sampling_rate)
    accountant = RdpAccountant(_ORDERS)
    return _account(accountant, noise_multiplier, delta, num_rounds, sampling_rate)


def pld_epsilon(
    noise_multiplier: float,
    delta: float,
    num_rounds: int = 1,
    sampling_rate: float = 1.0,
    adjacency: Adjacency = "add_remove",
) -> float:
    """Return the epsilon of Gaussian noise over rounds from the discretised privacy loss.

    Koskela, Jälkö & Honkela, AISTATS 2020; Doroshenko et al., "Connect the Dots", PETS 2022.  The
    losses are rounded to the pessimistic side, so that the figure is a bound too, one that lies
    within about .1 % of the truth.

    Args:
        noise_multiplier: standard deviation of the noise over the norm of one contribution, which
            is the sensitivity under ``add_remove``, above 0.
        delta: of all rounds together, in (0, 1).
        num_rounds: how many rounds, at least 1.
        sampling_rate: probability with which a record takes part in a round (Poisson sampling),
            in (0, 1].
        adjacency: what happens to one record.

    Raises:
        InputError: if there is so little noise that the losses cannot be discretised.
    """
    _check(noise_multiplier, num_rounds, sampling_rate)
    sensitivity = client_sensitivity(1.0, adjacency)
    unsampled = gaussian_epsilon(sensitivity, noise_multiplier, delta, num_rounds)
    interval = _interval(unsampled, num_rounds, sampling_rate)
    if interval > _MAX_INTERVAL:
        raise InputError(
            f"an epsilon of about {unsampled:.1g} is too large for a privacy-loss distribution; "
            "use gaussian_epsilon, which is exact, or add noise"
        )
    relation = NeighboringRelation.ADD_OR_REMOVE_ONE
    if adjacency == "replace":
        relation = NeighboringRelation.REPLACE_ONE
    accountant = PLDAccountant(relation, value_discretization_interval=interval)
    return _account(accountant, noise_multiplier, delta, num_rounds, sampling_rate)


def rero_sampled(
    noise_multiplier: float, sampling_rate: float, num_rounds: int = 1, kappa: float = 1e-3
) -> float:
    """Return the ReRo bound of DP-SGD, whose rounds each draw a record with some probability.

    Hayes, Mahloujifar & Balle, "Bounding Training Data Reconstruction in DP-SGD", NeurIPS 2023: an
    attacker who sees all rounds, and knows all other records, but not in which rounds this one was
    drawn, is right with probability at most gamma = sup P(A) over the events A with Q(A) <= kappa,
    P the releases with the record and Q without.  They estimate it by Monte Carlo.  Here it is
    bounded: gamma <= e^eps kappa + delta(eps) for every eps, delta(eps) the hockey-stick divergence
    of the discretised privacy loss, rounded to the pessimistic side (as in :func:`pld_epsilon`),
    with the best eps, where the two are equal (Kaissis et al. 2023 say the same by way of the
    trade-off function).

    Args:
        noise_multiplier: standard deviation of the noise over the norm to which a record's gradient
            is clipped, above 0.
        sampling_rate: probability with which a record takes part in a round, in (0, 1].
        num_rounds: that are seen, at least 1.
        kappa: success without the releases, in (0, 1).

    >>> round(rero_sampled(2.0, 0.5, 20, 0.1), 2), round(rero_gaussian(1.0, 2.0, 0.1, 20), 2)
    (0.44, 0.83)
    """
    _check(noise_multiplier, num_rounds, sampling_rate)
    always = rero_gaussian(1.0, noise_multiplier, kappa, num_rounds)
    drawn = 1 - (1 - sampling_rate) ** num_rounds  # at least once; else there is nothing to learn
    best = min(always, drawn + (1 - drawn) * kappa)
    unsampled = gaussian_epsilon(1.0, noise_multiplier, kappa, num_rounds)
    interval = _interval(unsampled, num_rounds, sampling_rate)
    if sampling_rate == 1 or interval > _MAX_INTERVAL:
        return best
    accountant = PLDAccountant(value_discretization_interval=interval)
    accountant.compose(_event(noise_multiplier, sampling_rate), num_rounds)

    def bound(epsilon: float) -> float:
        return math.exp(epsilon) * kappa + float(accountant.get_delta(epsilon))

    highest = math.log(1 / kappa)  # from where on the bound is above 1
    found = minimize_scalar(bound, bounds=(0.0, highest), method="bounded")
    return min(best, bound(float(found.x)))


def _interval(epsilon: float, num_rounds: int, sampling_rate: float) -> float:
    """Return the grid of the losses of a round, by the epsilon of all rounds without sampling."""
    interval = max(epsilon, 1e-3) * sampling_rate / (_GRID * math.sqrt(num_rounds))
    return max(interval, _FINEST * min(1.0, epsilon))


def fixed_sample_epsilon(
    noise_multiplier: float, delta: float, num_rounds: int, sample_size: int, population: int
) -> float:
    """Return an UPPER BOUND on epsilon where each round draws a fixed number without replacement.

    Wang, Balle & Kasiviswanathan, "Subsampled Rényi Differential Privacy and Analytical Moments
    Accountant", AISTATS 2019, for replacement of one contribution, which moves the sum by twice
    its norm.

    Args:
        noise_multiplier: standard deviation of the noise over the norm of one contribution.
        delta: of all rounds together, in (0, 1).
        num_rounds: how many rounds, at least 1.
        sample_size: how many are drawn each round, at least 1.
        population: of how many, at least ``sample_size``.
    """
    _check(noise_multiplier, num_rounds, sample_size / population)
    accountant = RdpAccountant(_ORDERS, NeighboringRelation.REPLACE_ONE)
    event = SampledWithoutReplacementDpEvent(
        population, sample_size, GaussianDpEvent(noise_multiplier / 2)
    )
    accountant.compose(event, num_rounds)
    return float(accountant.get_epsilon(delta))


_SURE = 30.0
"""The epsilon from which the less likely answer of one round has a probability below 1e-13."""


def pure_epsilon(epsilon: float, delta: float, num_rounds: int) -> float:
    """Return the epsilon at ``delta`` of rounds that are epsilon-DP each.

    The optimal composition of Kairouz, Oh & Viswanath, ICML 2015: the smallest figure that holds
    for all epsilon-DP mechanisms, exact for randomised response.  At most T epsilon, which holds
    at delta = 0.

    Args:
        epsilon: of one round, above 0.
        delta: of all rounds together, in (0, 1).
        num_rounds: how many rounds, at least 1.
    """
    _check(1.0, num_rounds, 1.0)
    if epsilon > _SURE + math.log(num_rounds):  # no round's loss is ever -epsilon
        return num_rounds * epsilon
    # the losses are epsilon and -epsilon: on a grid of that interval nothing is rounded
    distribution = privacy_loss_distribution.from_privacy_parameters(
        common.DifferentialPrivacyParameters(epsilon, 0.0), value_discretization_interval=epsilon
    )
    composed: Any = distribution.self_compose(num_rounds)
    return min(num_rounds * epsilon, float(composed.get_epsilon_for_delta(delta)))


def _account(
    accountant: PrivacyAccountant,
    noise_multiplier: float,
    delta: float,
    num_rounds: int,
    sampling_rate: float,
) -> float:
    accountant.compose(_event(noise_multiplier, sampling_rate), num_rounds)
    return float(accountant.get_epsilon(delta))


def _event(noise_multiplier: float, sampling_rate: float) -> DpEvent:
    """Return one round."""
    event: DpEvent = GaussianDpEvent(noise_multiplier)
    return event if sampling_rate == 1 else PoissonSampledDpEvent(sampling_rate, event)


def _check(noise_multiplier: float, num_rounds: int, sampling_rate: float) -> None:
    if not 0 < noise_multiplier < math.inf:
        raise InputError(f"noise_multiplier must be a number above 0, not {noise_multiplier}")
    if not num_rounds >= 1:
        raise InputError(f"num_rounds must be at least 1, not {num_rounds}")
    if not 0 < sampling_rate <= 1:
        raise InputError(f"sampling_rate must lie in (0, 1], not {sampling_rate}")
