"""Laplace, Duchi, Piecewise, Hybrid, PrivUnit2, PrivUnitG against their formulas.

Seeds are fixed.  Where a draw decides, a true mechanism fails a check with a probability of about
1e-4 or less: four standard errors, or the quantile that stands there.
"""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.integrate import quad

from lightning_recon.audit.privacy_statement import privacy_statement
from lightning_recon.defenses import (
    Duchi,
    Hybrid,
    Laplace,
    Piecewise,
    PrivUnit2,
    PrivUnitG,
    apply_chain,
)
from lightning_recon.defenses.base import CHUNK
from lightning_recon.defenses.coordinate_sampling import sample_coordinates
from lightning_recon.defenses.duchi import duchi
from lightning_recon.defenses.hybrid import hybrid
from lightning_recon.defenses.piecewise import piecewise
from lightning_recon.defenses.privunit import privunit_cap
from lightning_recon.defenses.privunit_gaussian import privunitg_cap
from lightning_recon.errors import InputError
from lightning_recon.rowsparse import RowSparse

MECHANISMS = {
    "Laplace": lambda epsilon=2.0: Laplace(epsilon, clip_norm=3.0),
    "Duchi": lambda epsilon=2.0: Duchi(epsilon, clip_value=0.5),
    "Piecewise": lambda epsilon=2.0: Piecewise(epsilon, clip_value=0.5),
    "Hybrid": lambda epsilon=2.0: Hybrid(epsilon, clip_value=0.5),
    "PrivUnit2": lambda epsilon=2.0: PrivUnit2(epsilon, clip_norm=3.0),
    "PrivUnitG": lambda epsilon=2.0: PrivUnitG(epsilon, clip_norm=3.0),
}
ALL = pytest.mark.parametrize("make", MECHANISMS.values(), ids=MECHANISMS.keys())
CAPS = pytest.mark.parametrize("make", [PrivUnit2, PrivUnitG])
SCALARS = pytest.mark.parametrize("mechanism", [duchi, piecewise, hybrid])
VALUES = [-1.0, -0.7, 0.0, 0.25, 1.0]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def release(mechanism, update, seed=0):
    """What the mechanism makes of a copy of the update, a tensor or a dictionary."""
    if isinstance(update, torch.Tensor):
        return release(mechanism, {"weight": update}, seed)["weight"]
    update = {name: tensor.clone() for name, tensor in update.items()}
    return apply_chain([mechanism], update, generator=seeded(seed))


def releases(mechanism, update, count, seed=0):
    """The outputs of many clients with the same update, count x d, float64."""
    generator = seeded(seed)
    return torch.stack(
        [
            apply_chain([mechanism], {"w": update.clone()}, generator=generator)["w"]
            for _ in range(count)
        ]
    ).double()


def assert_mean(draws, expected):
    """The mean over dimension 0 within four standard errors (of what is estimated from them)."""
    error = draws.std(0) / math.sqrt(len(draws))
    assert ((draws.mean(0) - expected).abs() <= 4 * error + 1e-12).all()


# --- one number -------------------------------------------------------------------------------


def scalar_draws(mechanism, value, epsilon, count=200_000, seed=0):
    values = torch.full((count,), value, dtype=torch.float64)
    return mechanism(values, epsilon, seeded(seed)).numpy()


def duchi_variance(t, epsilon):
    return ((math.exp(epsilon) + 1) / (math.exp(epsilon) - 1)) ** 2 - t**2


def piecewise_variance(t, epsilon):
    root = math.exp(epsilon / 2)
    return t**2 / (root - 1) + (root + 3) / (3 * (root - 1) ** 2)


def hybrid_variance(t, epsilon):
    share = 1 - math.exp(-epsilon / 2) if epsilon > 0.61 else 0.0
    return share * piecewise_variance(t, epsilon) + (1 - share) * duchi_variance(t, epsilon)


VARIANCES = {duchi: duchi_variance, piecewise: piecewise_variance, hybrid: hybrid_variance}
BOUNDS = {
    duchi: lambda epsilon: (math.exp(epsilon) + 1) / (math.exp(epsilon) - 1),
    piecewise: lambda epsilon: (math.exp(epsilon / 2) + 1) / (math.exp(epsilon / 2) - 1),
    hybrid: lambda epsilon: (math.exp(epsilon / 2) + 1) / (math.exp(epsilon / 2) - 1),
}


@SCALARS
@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("epsilon", [0.3, 1.0, 2.5, 6.0])
def test_mean_variance_and_range_of_one_number(mechanism, value, epsilon):
    draws = scalar_draws(mechanism, value, epsilon)
    variance = VARIANCES[mechanism](value, epsilon)
    assert abs(draws.mean() - value) < 4 * math.sqrt(variance / draws.size)
    squares = (draws - value) ** 2
    assert abs(squares.mean() - variance) < 4 * squares.std() / math.sqrt(draws.size) + 1e-9
    assert np.abs(draws).max() <= BOUNDS[mechanism](epsilon) * (1 + 1e-12)


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 5.0])
def test_duchi_takes_two_values_and_they_grow_with_privacy(epsilon):
    draws = scalar_draws(duchi, 0.4, epsilon, 1000)
    bound = BOUNDS[duchi](epsilon)
    assert set(np.round(draws / bound, 12)) == {-1.0, 1.0}


@pytest.mark.parametrize("value", [-1.0, 0.0, 0.6, 1.0])
@pytest.mark.parametrize("epsilon", [0.5, 2.0, 5.0])
def test_piecewise_has_the_stated_density(value, epsilon):
    bound = BOUNDS[piecewise](epsilon)
    near = math.exp(epsilon / 2) / (math.exp(epsilon / 2) + 1)
    low = (bound + 1) / 2 * value - (bound - 1) / 2
    inner, outer = near / (bound - 1), (1 - near) / (bound + 1)
    assert inner / outer == pytest.approx(math.exp(epsilon))

    def distribution(x):
        inside = np.clip(x - low, 0, bound - 1)
        return inner * inside + outer * (x + bound - inside)

    draws = scalar_draws(piecewise, value, epsilon)
    assert stats.kstest(draws, distribution).pvalue > 1e-4


@pytest.mark.parametrize("epsilon", [0.7, 2.0, 6.0])
def test_variance_of_the_hybrid_is_the_same_for_all_numbers(epsilon):
    variances = {hybrid_variance(value, epsilon) for value in VALUES}
    assert max(variances) == pytest.approx(min(variances))
    worst_of_others = max(duchi_variance(0, epsilon), piecewise_variance(1, epsilon))
    assert max(variances) < worst_of_others


def test_hybrid_with_a_small_budget_is_duchi():
    draws = scalar_draws(hybrid, 0.3, 0.6, 1000)
    assert set(np.round(np.abs(draws), 9)) == {round(BOUNDS[duchi](0.6), 9)}
    assert len(set(np.round(np.abs(scalar_draws(hybrid, 0.3, 0.62, 1000)), 9))) > 2


@SCALARS
@pytest.mark.parametrize("epsilon", [0.5, 1.5])
def test_no_output_is_more_than_exp_epsilon_times_likelier_from_another_input(mechanism, epsilon):
    """Histograms of the two inputs that differ most; the bound is reached and not passed."""
    bound = BOUNDS[mechanism](epsilon)
    edges = np.linspace(-bound, bound, 22) * (1 + 1e-9)
    first, second = (
        np.histogram(scalar_draws(mechanism, value, epsilon, 400_000, seed), edges)[0]
        for value, seed in ((1.0, 1), (-1.0, 2))
    )
    seen = (first > 500) & (second > 500)
    ratio, error = np.log(first[seen] / second[seen]), np.sqrt(1 / first[seen] + 1 / second[seen])
    assert (np.abs(ratio) < epsilon + 4.5 * error).all()
    assert np.abs(ratio).max() > epsilon - 0.1


@SCALARS
@pytest.mark.parametrize("epsilon", [1e-4, 50.0, 5000.0])
def test_extreme_budgets_give_finite_numbers(mechanism, epsilon):
    draws = scalar_draws(mechanism, 0.5, epsilon, 1000)
    assert np.isfinite(draws).all()
    if mechanism is piecewise and epsilon == 5000:
        assert np.abs(draws - 0.5).max() < 1e-9, "with a huge budget the number itself"


# --- sampling of coordinates ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epsilon", "dimension", "count"),
    [(0.1, 100, 1), (2.4, 100, 1), (4.9, 100, 1), (5.0, 100, 2), (26, 100, 10), (999, 7, 7)],
)
def test_number_of_released_coordinates(epsilon, dimension, count):
    for make in (Duchi, Piecewise, Hybrid):
        mechanism = make(epsilon, clip_value=1.0)
        assert mechanism.num_coordinates(dimension) == count
        released = release(mechanism, torch.full((dimension,), 0.5))
        assert int((released != 0).sum()) == count


@pytest.mark.parametrize("make", [Duchi, Piecewise, Hybrid])
@pytest.mark.parametrize("epsilon", [1.0, 8.0])
def test_mean_variance_and_range_of_an_update(make, epsilon):
    """Coordinate j is d/k times the estimate with probability k/d, else 0."""
    clip, dimension = 0.5, 6
    update = torch.tensor([-0.5, -0.2, 0.0, 0.1, 0.4, 7.0], dtype=torch.float64)
    mechanism = make(epsilon, clip_value=clip)
    count = mechanism.num_coordinates(dimension)
    draws = releases(mechanism, update, 3000)
    assert_mean(draws, update.clamp(-clip, clip))
    function = {Duchi: duchi, Piecewise: piecewise, Hybrid: hybrid}[make]
    for j, number in enumerate(update.clamp(-clip, clip) / clip):
        t = float(number)
        second = dimension / count * (VARIANCES[function](t, epsilon / count) + t**2)
        variance = clip**2 * (second - t**2)
        squares = (draws[:, j] - clip * t) ** 2
        assert abs(float(squares.mean()) - variance) < 4 * float(squares.std()) / math.sqrt(3000)
    limit = clip * dimension / count * BOUNDS[function](epsilon / count)
    assert draws.abs().max() <= limit * (1 + 1e-12)


def test_coordinates_are_spread_over_all_parameters():
    update = {"a": torch.full((3, 4), 0.5), "b": torch.tensor(0.5), "c": torch.full((7,), 0.5)}
    mechanism = Duchi(10.0, clip_value=1.0)
    hits = torch.zeros(20)
    for seed in range(1500):
        released = release(mechanism, update, seed)
        hits += torch.cat([released[name].reshape(-1) for name in "abc"]) != 0
    assert hits.sum() == 4 * 1500
    assert stats.chisquare(hits.numpy()).pvalue > 1e-4


@pytest.mark.parametrize(("dimension", "count"), [(5, 2), (5, 3), (9, 1), (4, 4)])
def test_all_subsets_of_coordinates_are_alike(dimension, count):
    generator = seeded()
    seen = {}
    for _ in range(3000):
        subset = tuple(sample_coordinates(dimension, count, generator).tolist())
        assert len(set(subset)) == count
        assert list(subset) == sorted(subset)
        seen[subset] = seen.get(subset, 0) + 1
    assert len(seen) == math.comb(dimension, count)
    if len(seen) > 1:
        assert stats.chisquare(list(seen.values())).pvalue > 1e-4


# --- Laplace ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("epsilon", "clip_norm"), [(0.5, 1.0), (4.0, 10.0)])
def test_laplace_noise_has_the_stated_distribution(epsilon, clip_norm):
    mechanism = Laplace(epsilon, clip_norm)
    noise = release(mechanism, torch.zeros(200_000)).double().numpy()
    scale = 2 * clip_norm / epsilon
    assert mechanism.scale == pytest.approx(scale)
    assert stats.kstest(noise, "laplace", args=(0, scale)).pvalue > 1e-4
    assert abs(noise.mean()) < 4 * scale * math.sqrt(2 / noise.size)
    error = 4 * scale**2 * math.sqrt(20 / noise.size)  # the variance of x^2 is 20 b^4
    assert abs((noise**2).mean() - 2 * scale**2) < error
    assert 9 < np.abs(noise).max() / scale < 22, "the tails of 200,000 draws reach ln(200,000)"


@pytest.mark.parametrize("factor", [0.5, 1.0, 8.0])
def test_laplace_clips_to_the_l1_norm(factor):
    update = {"a": torch.tensor([1.0, -2.0]), "b": torch.tensor([[3.0]])}
    update = {name: factor * tensor.double() for name, tensor in update.items()}
    zeros = {name: torch.zeros_like(tensor) for name, tensor in update.items()}
    mechanism = Laplace(1.0, clip_norm=6.0)
    noise, released = release(mechanism, zeros), release(mechanism, update)
    for name, tensor in update.items():
        expected = tensor / max(factor, 1.0)
        torch.testing.assert_close(released[name] - noise[name], expected)


def test_laplace_noise_is_independent_across_chunks_and_parameters():
    update = {"a": torch.zeros(CHUNK + 50_000), "b": torch.zeros(50_000)}
    noise = release(Laplace(2.0, 1.0), update)
    pieces = torch.stack([noise["a"][:50_000], noise["a"][-50_000:], noise["b"]]).double()
    correlation = torch.corrcoef(pieces)
    assert correlation[torch.triu(torch.ones(3, 3), 1) > 0].abs().max() < 4.5 / math.sqrt(50_000)


# --- PrivUnit ---------------------------------------------------------------------------------

SIGMAS = {1: 2.516, 2: 1.272, 5: 0.540, 8: 0.365, 10: 0.307, 20: 0.189, 50: 0.109, 100: 0.074}


@pytest.mark.parametrize(("epsilon", "sigma"), SIGMAS.items())
def test_privunitg_sigma_of_the_table(epsilon, sigma):
    assert PrivUnitG(epsilon, 1.0).sigma == pytest.approx(sigma, abs=1e-3)


def privunit_gain(epsilon, tail, dimension):
    """Gain of a cap by numerical integration of the density of the component along an axis."""
    half = (dimension - 1) / 2
    axis = stats.beta(half, half, loc=-1, scale=2)
    gamma = axis.isf(tail)
    above, _ = quad(lambda t: t * axis.pdf(t), gamma, 1, epsabs=0, epsrel=1e-10, limit=200)
    probability = math.exp(epsilon) * tail / (1 - tail + math.exp(epsilon) * tail)
    return above * (probability / tail - (1 - probability) / (1 - tail))


def privunitg_gain(epsilon, tail):
    edge = stats.norm.isf(tail)
    above, _ = quad(lambda t: t * stats.norm.pdf(t), edge, edge + 30, epsabs=0, epsrel=1e-10)
    probability = math.exp(epsilon) * tail / (1 - tail + math.exp(epsilon) * tail)
    return above * (probability / tail - (1 - probability) / (1 - tail))


@pytest.mark.parametrize("epsilon", [0.2, 1, 5, 12])
@pytest.mark.parametrize("dimension", [4, 10, 200])
def test_privunit_cap_is_the_best_that_the_budget_allows(epsilon, dimension):
    cap = privunit_cap(float(epsilon), dimension)
    assert cap.gain == pytest.approx(privunit_gain(epsilon, cap.tail, dimension), rel=1e-6)
    others = [privunit_gain(epsilon, tail, dimension) for tail in np.geomspace(1e-7, 0.5, 60)]
    assert cap.gain >= max(others) * (1 - 1e-9)


@pytest.mark.parametrize("epsilon", [0.2, 1, 5, 12])
def test_privunitg_cap_is_the_best_that_the_budget_allows(epsilon):
    cap = privunitg_cap(float(epsilon))
    assert cap.gain == pytest.approx(privunitg_gain(epsilon, cap.tail), rel=1e-6)
    others = [privunitg_gain(epsilon, tail) for tail in np.geomspace(1e-7, 0.5, 60)]
    assert cap.gain >= max(others) * (1 - 1e-9)


@pytest.mark.parametrize("epsilon", [0.01, 1.0, 30.0, 190.0])
@pytest.mark.parametrize("dimension", [2, 3, 10, 10_000, 100_000_001])
def test_caps_use_the_budget_to_the_full(epsilon, dimension):
    for cap in (privunit_cap(epsilon, dimension), privunitg_cap(epsilon)):
        assert 0 < cap.tail <= 0.5
        expected = 1 / (1 + (1 - cap.tail) / cap.tail * math.exp(-epsilon))
        assert cap.probability == pytest.approx(expected, rel=1e-9)


def test_privunit_becomes_privunitg_in_high_dimension():
    for epsilon in (0.5, 5.0, 50.0):
        limit = privunitg_cap(epsilon).gain
        gains = [privunit_cap(epsilon, d).gain * math.sqrt(d) for d in (10**4, 10**6, 10**8)]
        errors = [abs(gain / limit - 1) for gain in gains]
        assert errors[2] < errors[1] < errors[0] < 0.01
        assert errors[2] < 1e-6


@pytest.mark.parametrize("epsilon", [300.0, 1e3, 1e5])
@pytest.mark.parametrize("dimension", [2, 3, 7, 10, 59, 60, 1000, 10**8])
def test_privunit_with_a_budget_beyond_reason(epsilon, dimension):
    """The cap is no longer the smallest that the budget allows; it stays a cap."""
    cap = privunit_cap(epsilon, dimension)
    assert 0 < cap.gain <= 1 + 1e-9
    assert cap.gain >= privunit_cap(200.0, dimension).gain * (1 - 1e-6)
    generator = seeded()
    components = [PrivUnit2(epsilon, 1.0).draw(dimension, generator)[0] for _ in range(50)]
    assert all(0 < component <= 1 for component in components)


@pytest.mark.parametrize("dimension", [2, 3, 20, 10**6])
def test_component_of_privunit2_has_the_stated_distribution(dimension):
    epsilon = 2.0
    cap, half = privunit_cap(epsilon, dimension), (dimension - 1) / 2
    axis = stats.beta(half, half, loc=-1, scale=2)
    gamma = axis.isf(cap.tail)
    generator, mechanism = seeded(), PrivUnit2(epsilon, 1.0)
    draws = np.array([mechanism.draw(dimension, generator)[0] for _ in range(10_000)])

    def distribution(t):
        below = np.minimum(axis.cdf(t), 1 - cap.tail) / (1 - cap.tail)
        above = np.maximum(cap.tail - axis.sf(t), 0) / cap.tail
        return (1 - cap.probability) * below + cap.probability * above

    assert stats.kstest(draws, distribution).pvalue > 1e-4
    inside = int((draws >= gamma).sum())
    assert stats.binomtest(inside, draws.size, cap.probability).pvalue > 1e-4
    assert abs(draws.mean() - cap.gain) < 4 * draws.std() / math.sqrt(draws.size)


def test_component_of_privunitg_has_the_stated_distribution():
    epsilon = 2.0
    cap = privunitg_cap(epsilon)
    generator, mechanism = seeded(), PrivUnitG(epsilon, 1.0)
    draws = np.array([mechanism.draw(5, generator)[0] for _ in range(10_000)])

    def distribution(t):
        below = np.minimum(stats.norm.cdf(t), 1 - cap.tail) / (1 - cap.tail)
        above = np.maximum(cap.tail - stats.norm.sf(t), 0) / cap.tail
        return (1 - cap.probability) * below + cap.probability * above

    assert stats.kstest(draws, distribution).pvalue > 1e-4
    assert abs(draws.mean() - cap.gain) < 4 * draws.std() / math.sqrt(draws.size)


@CAPS
@pytest.mark.parametrize("norm", [0.0, 0.6, 2.0, 50.0])
def test_privunit_is_unbiased_for_the_clipped_update(make, norm):
    direction = torch.tensor([3.0, -2.0, 0.0, 1.0, 0.5], dtype=torch.float64)
    direction /= direction.norm()
    draws = releases(make(3.0, clip_norm=2.0), norm * direction, 2000)
    assert_mean(draws, min(norm, 2.0) * direction)


@pytest.mark.parametrize("norm", [0.0, 0.6, 1.0, 9.0])
def test_privunit2_lies_in_a_ball_and_has_the_stated_second_moment(norm):
    """Of the sphere of radius C/m in one dimension more: the extra coordinate is left out."""
    dimension, clip, epsilon = 5, 1.0, 3.0
    update = torch.zeros(dimension, dtype=torch.float64)
    update[2] = norm
    radius = clip / privunit_cap(epsilon, dimension + 1).gain
    squares = releases(PrivUnit2(epsilon, clip), update, 2000).square().sum(1)
    assert squares.max() <= radius**2 * (1 + 1e-9)
    assert squares.max() > 0.99 * radius**2
    # E of the extra coordinate's square: t^2 h^2 + (1 - t^2)(1 - h^2)/(n - 1), h^2 = 1 - norm^2
    generator, mechanism = seeded(7), PrivUnit2(epsilon, clip)
    along = np.array([mechanism.draw(dimension + 1, generator)[0] for _ in range(20_000)])
    height = 1 - min(norm, 1.0) ** 2
    left_out = along**2 * height + (1 - along**2) * (1 - height) / dimension
    expected = radius**2 * (1 - left_out.mean())
    error = float(squares.std()) / math.sqrt(2000)
    error = math.hypot(error, radius**2 * left_out.std() / math.sqrt(20_000))
    assert abs(float(squares.mean()) - expected) < 4 * error


@pytest.mark.parametrize("norm", [0.3, 5.0])
def test_noise_of_privunitg_is_normal_across_the_direction(norm):
    mechanism = PrivUnitG(4.0, clip_norm=2.0)
    update = torch.randn(300_000, generator=seeded(3), dtype=torch.float64)
    direction = update / update.norm()
    released = release(mechanism, norm * direction)
    component = released @ direction
    noise = (released - component * direction).numpy()
    assert stats.kstest(noise, "norm", args=(0, 2.0 * mechanism.sigma)).pvalue > 1e-4
    # along the direction (and the extra coordinate, of height h) the truncated component
    assert abs(float(component)) < 2.0 * mechanism.sigma * 8


def test_rest_of_privunit2_is_uniform_on_the_sphere_around_the_direction():
    """Each coordinate orthogonal to a direction of full norm has the law of an axis there."""
    dimension, epsilon = 4, 3.0
    update = torch.tensor([0.0, 5.0, 0.0, 0.0], dtype=torch.float64)
    draws = releases(PrivUnit2(epsilon, 1.0), update, 5000)
    unit = draws * privunit_cap(epsilon, dimension + 1).gain
    rest = unit[:, [0, 2, 3]] / (1 - unit[:, [1]] ** 2).sqrt()
    axis = stats.beta((dimension - 1) / 2, (dimension - 1) / 2, loc=-1, scale=2)
    for coordinate in rest.T:
        assert stats.kstest(coordinate.numpy(), axis.cdf).pvalue > 1e-4
    correlation = torch.corrcoef(torch.cat([rest, unit[:, [1]]], dim=1).T)
    assert correlation[torch.triu(torch.ones(4, 4), 1) > 0].abs().max() < 4.5 / math.sqrt(5000)


@CAPS
@pytest.mark.parametrize("epsilon", [0.5, 1.5])
def test_cap_is_exp_epsilon_times_likelier_from_its_own_centre(make, epsilon):
    """The two most different inputs, and the set of outputs that tells them apart best."""
    update = torch.tensor([0.0, 2.0, 0.0])
    mechanism = make(epsilon, clip_norm=1.0)
    cap = privunit_cap(epsilon, 4) if make is PrivUnit2 else privunitg_cap(epsilon)
    edge = (
        stats.beta(1.5, 1.5, loc=-1, scale=2).isf(cap.tail)
        if make is PrivUnit2
        else stats.norm.isf(cap.tail)
    )
    counts = []
    for sign, seed in ((1.0, 1), (-1.0, 2)):
        draws = releases(mechanism, sign * update, 3000, seed)
        counts.append(int((draws[:, 1] * cap.gain >= edge).sum()))
    ratio = math.log(counts[0] / counts[1])
    assert abs(ratio - epsilon) < 4 * math.sqrt(1 / counts[0] + 1 / counts[1])


@CAPS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_privunit_of_an_update_larger_than_a_chunk(make, dtype):
    """The second pass draws the same noise as the first: the direction stays clean."""
    update = {
        "a": torch.randn(CHUNK + 7, generator=seeded(1)).to(dtype),
        "b": torch.randn(300, 1001, generator=seeded(2)).to(dtype),
    }
    mechanism = make(8.0, clip_norm=1.0)
    released = release(mechanism, update)
    flat, before = (
        torch.cat([item[name].reshape(-1) for name in "ab"]).double() for item in (released, update)
    )
    sigma = PrivUnitG(8.0, 1.0).sigma
    component = float(flat @ before / before.norm())
    # noise along the direction would be 1 +- .36 as well; across, 2 sigma tell nothing: compare
    # with what the same generator gives as component
    generator = seeded()
    along, gain, _ = mechanism.draw(1 + len(flat), generator)
    assert component == pytest.approx(along / gain, rel=1e-4)
    rest = flat - component * before / before.norm()
    assert float(rest.square().mean().sqrt()) == pytest.approx(sigma, rel=0.01)
    assert released["a"].dtype == dtype


# --- all of them ------------------------------------------------------------------------------


@ALL
def test_states_pure_ldp_for_replacement(make):
    mechanism = make(1.5)
    assert mechanism.claimed["epsilon"] == 1.5
    assert mechanism.claimed["delta"] == 0
    statement = privacy_statement([mechanism])["statement"]
    assert statement.startswith("1.5-LDP")
    assert type(mechanism).__name__ in statement
    assert "replacement" in statement
    assert mechanism.bind(3.0) is None, "noise has no bound"


@ALL
def test_more_budget_less_error(make):
    update = torch.tensor([0.1, -0.2, 0.3, 0.05], dtype=torch.float64)
    errors = [
        float((releases(make(epsilon), update, 400) - update).square().sum(1).mean())
        for epsilon in (0.5, 2.0, 8.0)
    ]
    assert errors[0] > errors[1] > errors[2]


@ALL
def test_same_seed_same_bits_and_no_global_state(make):
    update = {"a": torch.linspace(-1, 1, 60).view(3, 20), "b": torch.tensor(0.3)}
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = release(make(), update, seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = release(make(), update, seed=4), release(make(), update, seed=5)
    assert all(torch.equal(first[name], again[name]) for name in update)
    assert any(not torch.equal(first[name], other[name]) for name in update)


@ALL
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_type_and_shape_stay_and_both_types_see_the_same_noise(make, dtype):
    update = {"a": torch.linspace(-1, 1, 60).view(3, 20), "b": torch.tensor(0.3)}
    reference = release(make(), {name: tensor.double() for name, tensor in update.items()})
    released = release(make(), {name: tensor.to(dtype) for name, tensor in update.items()})
    for name, tensor in update.items():
        assert released[name].dtype == dtype
        assert released[name].shape == tensor.shape
        torch.testing.assert_close(
            released[name].double(), reference[name], rtol=1e-4, atol=1e-5 * float(dtype.itemsize)
        )


@ALL
@pytest.mark.parametrize(
    "view",
    [lambda x: x.permute(2, 0, 1), lambda x: x[::2, 1:], lambda x: x[:1, :1, :1].expand(4, 3, 2)],
    ids=["permuted", "strided", "expanded"],
)
def test_layout_changes_nothing(make, view):
    base = torch.rand(6, 5, 4, generator=seeded(), dtype=torch.float64)
    plain = view(base).clone(memory_format=torch.contiguous_format)
    update = {"w": view(base.clone())}
    odd = apply_chain([make(20.0)], update, generator=seeded())["w"]
    torch.testing.assert_close(odd, release(make(20.0), plain), rtol=0, atol=0)


@ALL
def test_zero_and_empty_updates(make):
    released = release(make(), {"a": torch.zeros(50), "b": torch.zeros(0)})
    assert released["a"].isfinite().all()
    assert released["a"].any(), "noise on nothing is noise"
    assert released["b"].shape == (0,)
    assert release(make(), {}) == {}


@ALL
@pytest.mark.parametrize("place", [0, 49])
def test_nan_is_refused(make, place):
    update = torch.zeros(50)
    update[place] = math.nan
    with pytest.raises(InputError, match="update has") as error:
        release(make(), update)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("make", [Laplace, PrivUnit2, PrivUnitG])
def test_infinite_norm_is_refused(make):
    with pytest.raises(InputError, match="cannot be clipped"):
        release(make(1.0, 1.0), torch.tensor([1.0, math.inf]))


@pytest.mark.parametrize("make", [Laplace, Duchi, Piecewise, Hybrid, PrivUnit2, PrivUnitG])
@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan])
@pytest.mark.parametrize("place", [0, 1])
def test_refuses_what_is_no_budget_or_bound(make, value, place):
    arguments = [1.0, 1.0]
    arguments[place] = value
    name = "epsilon" if place == 0 else "clip_"
    with pytest.raises(InputError, match=f"^{make.__name__}: {name}") as error:
        make(*arguments)
    assert "\n" not in str(error.value)


@ALL
def test_matrices_of_few_rows_get_what_dense_ones_get(make):
    def update():
        rows = RowSparse(torch.tensor([1, 5]), torch.linspace(-1, 1, 14).view(2, 7), 9)
        return {"before": torch.linspace(0, 1, 5), "rows": rows, "after": torch.tensor(0.3)}

    dense = update()
    dense["rows"] = dense["rows"].to_dense().clone()
    sparse = apply_chain([make(20.0)], update(), generator=seeded())
    for name, expected in apply_chain([make(20.0)], dense, generator=seeded()).items():
        found = sparse[name]
        found = found.to_dense() if isinstance(found, RowSparse) else found
        assert torch.equal(found, expected)


@ALL
def test_update_is_changed_in_place(make):
    """An update of a ResNet behind a payload has 10^8 numbers: no second one beside it."""
    update = {"a": torch.linspace(-1, 1, 60), "b": torch.rand(3, 4)}
    places = {name: tensor.data_ptr() for name, tensor in update.items()}
    released = apply_chain([make()], update, generator=seeded())
    assert {name: tensor.data_ptr() for name, tensor in released.items()} == places


@pytest.mark.parametrize("count", [1, 3, 7, 10])
def test_sampled_coordinates_come_from_the_generator_alone(count):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = [sample_coordinates(10, count, seeded(seed)).tolist() for seed in range(20)]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert [sample_coordinates(10, count, seeded(seed)).tolist() for seed in range(20)] == first


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_mechanism_for_one_number_gets_float64_in_its_domain(dtype):
    seen = []

    class Recorded(Duchi):
        def perturb(self, values, epsilon, generator):
            seen.append((values.clone(), epsilon))
            return super().perturb(values, epsilon, generator)

    update = {"a": torch.tensor([3.0, -0.25, 0.1], dtype=dtype), "b": torch.tensor(-9.0).to(dtype)}
    release(Recorded(100.0, clip_value=0.5), update)
    values = torch.cat([values.reshape(-1) for values, _ in seen])
    assert values.dtype == torch.float64
    assert values.tolist() == [1.0, -0.5, float(update["a"][2]) / 0.5, -1.0]
    assert {epsilon for _, epsilon in seen} == {25.0}


@pytest.mark.parametrize("dimension", [1, 2, 6])
@pytest.mark.parametrize(("clip", "share"), [(1.0, 0.0), (2.0, 0.6), (0.3, 0.6), (2.0, 1.0)])
def test_second_moment_of_privunit2_in_any_ball(dimension, clip, share):
    """By integration: with the extra coordinate it is on the sphere of radius C/m."""
    epsilon = 3.0
    cap = privunit_cap(epsilon, dimension + 1)
    axis = stats.beta(dimension / 2, dimension / 2, loc=-1, scale=2)
    inside, _ = quad(lambda t: t**2 * axis.pdf(t), axis.isf(cap.tail), 1)
    outside = axis.var() - inside
    along = cap.probability / cap.tail * inside
    along += (1 - cap.probability) / (1 - cap.tail) * outside
    height = 1 - share**2
    left_out = along * height + (1 - along) * (1 - height) / dimension
    update = torch.zeros(dimension, dtype=torch.float64)
    update[0] = share * clip
    squares = releases(PrivUnit2(epsilon, clip), update, 4000).square().sum(1)
    expected = (clip / cap.gain) ** 2 * (1 - left_out)
    assert abs(float(squares.mean()) - expected) < 4 * float(squares.std()) / math.sqrt(4000)


def test_laplace_noise_is_drawn_to_the_precision_of_float64():
    """Of an update in float64; in float32 its tails would end at 17 b."""
    noise = release(Laplace(1.0, 1.0), torch.zeros(1000, dtype=torch.float64))
    assert (noise != noise.float().double()).double().mean() > 0.99
