import doctest
import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

import lightning_recon.privacy.gaussian
from lightning_recon.privacy.gaussian import gaussian_delta, gaussian_epsilon

# noise multipliers s/D at delta = 1e-5, as published tables print them
MULTIPLIERS = {
    0.1: "30.75",
    0.5: "7.032",
    1: "3.731",
    2: "1.994",
    5: ".8919",
    8: ".6002",
    10: ".4999",
    20: ".2900",
    50: ".1498",
    100: ".0947",
    1000: ".0246",
}
STDS = [1e-4, 1e-3, 0.01, 0.03, 0.1, 0.5, 1, 5, 10, 50]


def integrated_delta(epsilon, ratio):
    """Delta as the mean of max(0, 1 - exp(epsilon - L)), L the privacy loss.

    L is N(ratio^2 / 2, ratio^2), ratio = D/s.  The variable is the distance from the point where
    the loss reaches epsilon, so that nothing cancels and nothing overflows.
    """
    start = (epsilon - ratio**2 / 2) / ratio

    def integrand(x):
        z = start + x
        return math.exp(-z * z / 2) / math.sqrt(2 * math.pi) * -math.expm1(-ratio * x)

    # up to 40 standard deviations; the bend of the integrand at 1 / ratio may be very sharp
    low, high = max(0, -40 - start), max(40, 40 - start)
    points = [point for point in (1 / ratio, 10 / ratio, 40 / ratio, -start) if low < point < high]
    value, _ = quad(integrand, low, high, points=points, limit=500, epsabs=0, epsrel=1e-12)
    return value


def test_docstrings():
    result = doctest.testmod(lightning_recon.privacy.gaussian)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize(("epsilon", "printed"), MULTIPLIERS.items())
def test_published_table_to_its_last_digit(epsilon, printed):
    half_a_digit = 0.5 * 10.0 ** -len(printed.partition(".")[2])
    low, high = float(printed) - half_a_digit, float(printed) + half_a_digit
    assert gaussian_epsilon(1, high, 1e-5) < epsilon < gaussian_epsilon(1, low, 1e-5)
    assert gaussian_delta(epsilon, 1, high) < 1e-5 < gaussian_delta(epsilon, 1, low)


@pytest.mark.parametrize("std", STDS)
@pytest.mark.parametrize("delta", [1e-2, 1e-5, 1e-9, 1e-12])
def test_epsilon_and_delta_are_each_others_inverse(std, delta):
    epsilon = gaussian_epsilon(1, std, delta)
    if gaussian_delta(0, 1, std) <= delta:
        assert epsilon == 0
    else:
        assert epsilon > 0
        assert gaussian_delta(epsilon, 1, std) == pytest.approx(delta, rel=1e-8, abs=0)


@pytest.mark.parametrize("std", STDS)
@pytest.mark.parametrize("delta", [1e-2, 1e-5, 1e-9])
def test_against_the_integral_of_the_privacy_loss(std, delta):
    epsilon = gaussian_epsilon(1, std, delta)
    for at in (epsilon, 0.5 * epsilon, 1.01 * epsilon):
        expected = integrated_delta(at, 1 / std)
        assert gaussian_delta(at, 1, std) == pytest.approx(expected, rel=1e-6, abs=1e-15)


@pytest.mark.parametrize("std", [0.3, 0.5, 1, 2, 5])
@pytest.mark.parametrize("epsilon", [0, 0.1, 1, 3])
def test_against_the_theorem_as_printed(std, epsilon):
    a, b = 1 / (2 * std), epsilon * std
    expected = norm.cdf(a - b) - math.exp(epsilon) * norm.cdf(-a - b)
    assert gaussian_delta(epsilon, 1, std) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("std", [0.01, 0.5, 1, 50])
def test_delta_at_epsilon_zero_is_the_total_variation(std):
    expected = math.erf(1 / (2 * std) / math.sqrt(2))
    assert gaussian_delta(0, 1, std) == pytest.approx(expected, rel=1e-12)


def test_simulated_privacy_loss():
    """The mean of max(0, 1 - exp(epsilon - L)) over draws of two neighbouring outputs."""
    sensitivity, std, epsilon = 3.0, 2.0, 1.0
    outputs = np.random.default_rng(0).normal(sensitivity, std, 1_000_000)
    losses = norm.logpdf(outputs, sensitivity, std) - norm.logpdf(outputs, 0, std)
    simulated = np.maximum(0, -np.expm1(epsilon - losses))
    error = simulated.std() / 1000
    assert gaussian_delta(epsilon, sensitivity, std) == pytest.approx(
        simulated.mean(), abs=5 * error
    )


def test_only_the_ratio_counts():
    for scale in (1e-3, 20, 1e6):
        assert gaussian_delta(1.5, scale, 2 * scale) == pytest.approx(gaussian_delta(1.5, 1, 2))
        assert gaussian_epsilon(scale, 2 * scale, 1e-5) == pytest.approx(
            gaussian_epsilon(1, 2, 1e-5)
        )


def test_more_noise_less_sensitivity_larger_delta_give_a_smaller_epsilon():
    stds = np.geomspace(1e-4, 50, 60)
    by_std = [gaussian_epsilon(1, std, 1e-5) for std in stds]
    assert np.all(np.diff(by_std) < 0)
    by_sensitivity = [gaussian_epsilon(sensitivity, 1, 1e-5) for sensitivity in 1 / stds]
    assert np.all(np.diff(by_sensitivity) < 0)
    for std in (1e-3, 0.5, 10):
        by_delta = [gaussian_epsilon(1, std, delta) for delta in np.geomspace(1e-12, 1e-2, 30)]
        assert np.all(np.diff(by_delta) < 0)


def test_delta_falls_with_epsilon_and_stays_a_probability():
    for std in (1e-4, 0.1, 1, 50):
        top = 2 * gaussian_epsilon(1, std, 1e-9)
        deltas = np.array([gaussian_delta(epsilon, 1, std) for epsilon in np.linspace(0, top, 200)])
        assert np.all(deltas <= 1)
        assert np.all(deltas >= -1e-15)
        assert np.all(np.diff(deltas) <= 1e-15)


def test_no_overflow_where_exp_of_epsilon_would():
    """The default of a published attack: C = 10, std = .002, where "epsilon" is called 10."""
    epsilon = gaussian_epsilon(20, 0.002, 1e-5)
    # Phi(5000 - epsilon / 10^4) = 1e-5 but for the second term, which moves it by ppm
    assert epsilon == pytest.approx(1e4 * (5000 - norm.ppf(1e-5)), rel=1e-7)
    assert 4.9e7 < epsilon < 5.1e7
    assert gaussian_delta(5e7, 20, 0.002) == pytest.approx(integrated_delta(5e7, 1e4), rel=1e-6)
    assert 0 <= gaussian_delta(1e300, 20, 0.002) <= 1e-15


def test_enough_noise_for_delta_needs_no_epsilon():
    assert gaussian_epsilon(1, 1e6, 1e-5) == 0
    assert gaussian_epsilon(1, 50, 1e-2) == 0
    assert gaussian_epsilon(1, 30, 1e-2) > 0
