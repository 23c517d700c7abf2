import doctest
import importlib
import json
import math

import numpy as np
import pytest
import torch
from scipy import integrate
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.stats import norm

from lightning_recon.audit.privacy_statement import privacy_statement
from lightning_recon.clients.dpsgd import DPSGD
from lightning_recon.defenses import (
    ClipL2,
    Defense,
    DPSGDNoise,
    GaussianNoise,
    Hybrid,
    Laplace,
    PrivUnitG,
    bind_chain,
)
from lightning_recon.errors import InputError
from lightning_recon.functional.image_quality import psnr
from lightning_recon.privacy.gaussian import gaussian_delta, gaussian_epsilon, gaussian_std
from lightning_recon.privacy.reconstruction import (
    clamped_psnr,
    expected_psnr,
    rero_gaussian,
    rero_pure,
    rero_zcdp,
)
from lightning_recon.privacy.sensitivity import client_sensitivity, record_sensitivity
from lightning_recon.privacy.zcdp import gaussian_rho, pure_rho, zcdp_epsilon

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


@pytest.mark.parametrize("name", ["gaussian", "sensitivity", "zcdp", "reconstruction"])
def test_docstrings(name):
    result = doctest.testmod(importlib.import_module(f"lightning_recon.privacy.{name}"))
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


# --- calibration, and several releases --------------------------------------------------------


@pytest.mark.parametrize("epsilon", [0, 1e-3, 0.1, 1, 10, 1000, 5e7])
@pytest.mark.parametrize("delta", [1e-2, 1e-5, 1e-9, 0.7])
def test_calibration_is_the_inverse(epsilon, delta):
    std = gaussian_std(epsilon, 3.0, delta)
    assert gaussian_delta(epsilon, 3.0, std) == pytest.approx(delta, rel=1e-6)
    assert gaussian_delta(epsilon, 3.0, 0.999 * std) > delta
    if gaussian_delta(0.0, 3.0, std) > delta * (1 + 1e-6):
        assert gaussian_epsilon(3.0, std, delta) == pytest.approx(epsilon, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(("epsilon", "printed"), MULTIPLIERS.items())
def test_calibration_gives_the_published_table(epsilon, printed):
    half_a_digit = 0.5 * 10.0 ** -len(printed.partition(".")[2])
    assert gaussian_std(epsilon, 1.0, 1e-5) == pytest.approx(float(printed), abs=half_a_digit)


def test_classical_formula_gives_too_little_noise_for_large_epsilon():
    def classical(epsilon):
        return math.sqrt(2 * math.log(1.25 / 1e-5)) / epsilon

    assert classical(8) > gaussian_std(8, 1, 1e-5)
    assert classical(9) < gaussian_std(9, 1, 1e-5)


@pytest.mark.parametrize("num_rounds", [1, 2, 7, 1000])
@pytest.mark.parametrize("std", [0.3, 5.0])
def test_rounds_are_one_release_at_std_over_their_root(num_rounds, std):
    expected = gaussian_epsilon(1, std / math.sqrt(num_rounds), 1e-5)
    epsilon = gaussian_epsilon(1, std, 1e-5, num_rounds)
    assert epsilon == pytest.approx(expected, rel=1e-9)
    assert gaussian_std(epsilon, 1, 1e-5, num_rounds) == pytest.approx(std, rel=1e-6)


def test_rounds_by_simulation():
    """The privacy losses of three releases, added up draw by draw."""
    std, epsilon, rounds = 2.0, 1.0, 3
    outputs = np.random.default_rng(0).normal(1.0, std, (1_000_000, rounds))
    losses = (norm.logpdf(outputs, 1, std) - norm.logpdf(outputs, 0, std)).sum(1)
    simulated = np.maximum(0, -np.expm1(epsilon - losses))
    error = simulated.std() / 1000
    found = gaussian_delta(epsilon, 1, std, rounds)
    assert found == pytest.approx(simulated.mean(), abs=5 * error)


@pytest.mark.parametrize(
    "call",
    [
        lambda: gaussian_epsilon(0, 1, 1e-5),
        lambda: gaussian_epsilon(1, 0, 1e-5),
        lambda: gaussian_epsilon(1, math.nan, 1e-5),
        lambda: gaussian_epsilon(1, 1, 0),
        lambda: gaussian_epsilon(1, 1, 1e-5, 0),
        lambda: gaussian_std(-1, 1, 1e-5),
        lambda: gaussian_std(math.inf, 1, 1e-5),
        lambda: gaussian_std(1, 1, 1),
        lambda: client_sensitivity(-1.0),
        lambda: client_sensitivity(1.0, "swap"),
        lambda: record_sensitivity(1.0, 0),
        lambda: rero_gaussian(1, 1, kappa=0),
        lambda: rero_zcdp(1, kappa=1.0),
        lambda: rero_pure(1, kappa=math.nan),
        lambda: expected_psnr(-1, 1, 10),
        lambda: expected_psnr(1, 0, 10),
        lambda: privacy_statement([], delta=0),
        lambda: privacy_statement([], num_rounds=0),
    ],
)
def test_out_of_range_is_one_line(call):
    with pytest.raises(InputError) as error:
        call()
    assert "\n" not in str(error.value)


# --- sensitivity ------------------------------------------------------------------------------


def test_sensitivity_by_brute_force():
    """The largest distance of two means of clipped vectors that differ in one place."""
    generator = torch.Generator().manual_seed(0)
    clip, count = 1.5, 4
    corners = torch.eye(3) * clip
    corners = torch.cat([corners, -corners, torch.zeros(1, 3)])  # zero: the record is not there
    rest = torch.randn(count - 1, 3, generator=generator)
    means = (rest.sum(0) + corners) / count
    apart = torch.cdist(means, means)
    assert apart[:-1, :-1].max() == pytest.approx(record_sensitivity(clip, count), rel=1e-6)
    missing = record_sensitivity(clip, count, "add_remove")
    assert apart[-1].max() == pytest.approx(missing, rel=1e-6)
    assert torch.cdist(corners, corners).max() == pytest.approx(client_sensitivity(clip))
    assert record_sensitivity(clip, 1) == client_sensitivity(clip)


# --- zCDP -------------------------------------------------------------------------------------


def renyi_of_randomised_response(epsilon, order):
    """By its definition, over the two outputs."""
    p = np.array([epsilon, 0.0]) - np.logaddexp(epsilon, 0)
    return np.logaddexp.reduce(order * p + (1 - order) * p[::-1]) / (order - 1)


@pytest.mark.parametrize("epsilon", [0.01, 0.5, 2, 10, 100])
def test_pure_rho_is_the_smallest_that_covers_randomised_response(epsilon):
    rho = pure_rho(epsilon)
    orders = 1 + np.geomspace(1e-6, 1e6, 400)
    slopes = [renyi_of_randomised_response(epsilon, order) / order for order in orders]
    assert max(slopes) <= rho * (1 + 1e-6)
    assert max(slopes) > rho * 0.999
    assert rho <= epsilon**2 / 2
    assert pure_rho(epsilon, 9) == pytest.approx(9 * rho)


def test_gaussian_rho_is_the_slope_of_the_renyi_divergence():
    sensitivity, std = 1.3, 0.7
    for order in (1.5, 2.0, 5.0):
        integral, _ = quad(
            lambda x, order=order: math.exp(
                order * norm.logpdf(x, sensitivity, std) + (1 - order) * norm.logpdf(x, 0, std)
            ),
            -20,
            30,
            points=[order * sensitivity],
        )
        divergence = math.log(integral) / (order - 1)
        assert divergence / order == pytest.approx(gaussian_rho(sensitivity, std), rel=1e-6)


@pytest.mark.parametrize("std", [0.1, 1, 10])
def test_epsilon_from_rho_is_an_upper_bound(std):
    exact = gaussian_epsilon(1, std, 1e-5)
    assert exact < zcdp_epsilon(gaussian_rho(1, std), 1e-5) < 1.6 * exact + 0.1


# --- accounting -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def accounting():
    pytest.importorskip("dp_accounting", reason="the package's requirements are not all there")
    return importlib.import_module("lightning_recon.privacy.accounting")


@pytest.mark.parametrize("num_rounds", [1, 100])
@pytest.mark.parametrize("multiplier", [0.01, 0.0947, 0.4999, 3.731, 30])
def test_closed_form_against_the_accountants(accounting, multiplier, num_rounds):
    exact = gaussian_epsilon(1, multiplier, 1e-5, num_rounds)
    assert accounting.pld_epsilon(multiplier, 1e-5, num_rounds) == pytest.approx(exact, rel=1e-3)
    bound = accounting.rdp_epsilon(multiplier, 1e-5, num_rounds)
    assert exact < bound < 1.15 * exact


@pytest.mark.parametrize(("multiplier", "bound"), [(0.4999, 10.73), (0.0947, 104.7)])
def test_rdp_only_bounds(accounting, multiplier, bound):
    """Figures of standard orders, for a true epsilon of 10 and 100."""
    assert accounting.rdp_epsilon(multiplier, 1e-5) == pytest.approx(bound, rel=3e-3)


def test_sampled_rounds(accounting):
    """PRV (Gopi, Lee & Wutschitz 2021, as in Opacus) gives 1.838 with an error of .01."""
    exact = accounting.pld_epsilon(1.0, 1e-5, 1000, sampling_rate=0.01)
    bound = accounting.rdp_epsilon(1.0, 1e-5, 1000, sampling_rate=0.01)
    assert exact == pytest.approx(1.838, abs=0.01)
    assert exact < bound < 1.3 * exact


def test_too_little_noise_for_an_accountant_is_one_line(accounting):
    with pytest.raises(InputError, match="gaussian_epsilon") as error:
        accounting.pld_epsilon(1e-5, 1e-5)
    assert "\n" not in str(error.value)
    for arguments in ((0.0, 1e-5), (1.0, 1e-5, 0), (1.0, 1e-5, 1, 0.0)):
        with pytest.raises(InputError):
            accounting.rdp_epsilon(*arguments)


def optimal_composition(epsilon, num_rounds, at):
    """Delta of T randomised responses, by the binomial sum over their outputs."""
    p = math.exp(epsilon) / (1 + math.exp(epsilon))
    total = 0.0
    for k in range(num_rounds + 1):
        count = math.comb(num_rounds, k)
        first = count * p**k * (1 - p) ** (num_rounds - k)
        second = count * p ** (num_rounds - k) * (1 - p) ** k
        total += max(0.0, first - math.exp(at) * second)
    return total


@pytest.mark.parametrize(("epsilon", "num_rounds"), [(0.1, 50), (1.0, 10), (0.3, 100), (3.0, 4)])
def test_rounds_of_a_pure_mechanism(accounting, epsilon, num_rounds):
    composed = accounting.pure_epsilon(epsilon, 1e-5, num_rounds)
    assert composed <= num_rounds * epsilon
    assert optimal_composition(epsilon, num_rounds, composed) <= 1e-5 * (1 + 1e-6)
    if composed < num_rounds * epsilon:
        assert optimal_composition(epsilon, num_rounds, composed - 1e-3) > 1e-5


# --- limits of reconstruction -----------------------------------------------------------------


def identification(separation, candidates=1000):
    """Success of the likelihood on orthogonal candidates of equal norm: the largest of normals."""
    value, _ = quad(
        lambda x: norm.pdf(x) * norm.cdf(x + separation) ** (candidates - 1),
        -12,
        12,
        epsabs=1e-13,
        limit=400,
    )
    return value


@pytest.mark.parametrize("ratio", [0.1, 0.5, 1, 2, 4, 6])
def test_no_identification_beats_the_bound(ratio):
    """Candidates on the sphere of radius C; the bound for sensitivity C is nearly reached."""
    attack = identification(ratio)
    bound = rero_gaussian(ratio, 1.0)
    assert attack <= bound
    assert attack > 0.3 * bound
    assert bound <= rero_zcdp(gaussian_rho(ratio, 1.0)) + 1e-12
    assert bound <= rero_gaussian(2 * ratio, 1.0), "replacement: twice the sensitivity"


def test_gaussian_bound_is_the_power_of_the_best_test():
    """A test of size kappa between two normal laws, its power counted."""
    draws = np.random.default_rng(0).normal(1.7, 1.0, 1_000_000)
    power = (draws > norm.isf(0.01)).mean()
    assert rero_gaussian(1.7, 1.0, 0.01) == pytest.approx(power, abs=5e-3 * power)
    assert rero_gaussian(0.0, 1.0, 0.01) == pytest.approx(0.01)
    expected = rero_gaussian(3.4, 1.0, 0.01)
    assert rero_gaussian(1.7, 1.0, 0.01, num_rounds=4) == pytest.approx(expected)


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 5.0, 7.5, 12.0])
def test_no_identification_beats_the_pure_bound(epsilon):
    """Randomised response among 1000: right with probability e^eps / (e^eps + 999)."""
    attack = math.exp(epsilon) / (math.exp(epsilon) + 999)
    assert attack <= rero_pure(epsilon) <= 1
    assert rero_pure(epsilon) <= math.exp(epsilon) / 1000 * (1 + 1e-12)
    assert rero_pure(0) == pytest.approx(1e-3)


@pytest.mark.parametrize("rho", [0, 0.1, 2, 5, 100])
def test_zcdp_bound(rho):
    expected = 1.0
    if rho < math.log(1000):
        expected = math.exp(-((math.sqrt(math.log(1000)) - math.sqrt(rho)) ** 2))
    assert rero_zcdp(rho) == pytest.approx(expected)


# --- the best attack without a prior ----------------------------------------------------------


def photographs(count=3, size=24, low=0.0, high=1.0):
    generator = torch.Generator().manual_seed(1)
    return low + (high - low) * torch.rand(count, 3, size, size, generator=generator)


@pytest.mark.parametrize(("num_pixels", "multiplier"), [(8, 0.3), (1728, 0.01), (150_528, 2e-4)])
def test_expected_psnr_by_simulation(num_pixels, multiplier):
    energy = 0.3 * num_pixels
    draws = 200_000 if num_pixels == 8 else 200
    squares = np.random.default_rng(0).chisquare(num_pixels, draws)
    values = -10 * np.log10(multiplier**2 * energy * squares / num_pixels)
    error = 4 * values.std() / math.sqrt(draws)
    assert expected_psnr(multiplier, energy, num_pixels) == pytest.approx(values.mean(), abs=error)


def test_expected_psnr_of_a_real_attack_on_a_linear_layer():
    """One row and bias a sample, equal gains, one clip of the batch, noise, and division."""
    images, clip, std = photographs(), 4.0, 2e-3
    flat = images.flatten(1).double()
    gradient = torch.cat([flat, torch.full((3, 1), 1e3)], dim=1)  # the bias: known almost exactly
    gradient[:, -1] = 0  # ... and outside the budget
    gradient *= clip / gradient.norm()
    gain = clip / float(flat.norm())
    generator = torch.Generator().manual_seed(0)
    values = []
    for _ in range(40):
        noise = torch.randn(gradient.shape, generator=generator, dtype=torch.float64)
        reconstruction = ((gradient + std * noise)[:, :-1] / gain).view_as(images)
        values.append(-10 * ((reconstruction - images).square().mean((1, 2, 3))).log10())
    values = torch.stack(values)
    energy = float(flat.square().sum())
    expected = expected_psnr(std / clip, energy, flat.shape[1])
    assert abs(float(values.mean()) - expected) < 4 * float(values.std()) / math.sqrt(120)


def test_expected_psnr_of_the_published_setting():
    """16 images of 224x224 of mean square .27, C = 10, std .002: about 16 dB."""
    energy = 16 * 150_528 * 0.27
    assert expected_psnr(2e-4, energy, 150_528) == pytest.approx(15.9, abs=0.1)
    doubled = expected_psnr(2e-4 * math.sqrt(2), energy, 150_528)
    assert expected_psnr(2e-4, energy, 150_528) - doubled == pytest.approx(3.01, abs=0.01)


def test_expected_psnr_without_noise_is_the_cap():
    assert expected_psnr(0.0, 1.0, 10) == 100
    assert expected_psnr(1e-9, 1.0, 10) == 100


def test_clamping_changes_nothing_far_from_black_and_white():
    images = photographs(low=0.4, high=0.6)
    energy = float(images.double().square().sum())
    multiplier = 0.01 / math.sqrt(energy)
    values = clamped_psnr(images, multiplier, generator=torch.Generator().manual_seed(0))
    expected = expected_psnr(multiplier, energy, 1728)
    assert values.shape == (3,)
    torch.testing.assert_close(values, torch.full((3,), expected).double(), atol=0.2, rtol=0)


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_clamped_psnr_of_a_flat_image_by_integration(level):
    std = 0.4
    error, _ = integrate.quad(
        lambda x: (min(max(level + x, 0), 1) - level) ** 2 * norm.pdf(x, 0, std), -4, 4, limit=200
    )
    images = torch.full((2, 3, 40, 40), level)
    energy = 16.0
    values = clamped_psnr(
        images, std / 4, generator=torch.Generator().manual_seed(0), energy=energy
    )
    assert float(values.mean()) == pytest.approx(-10 * math.log10(error), abs=0.1)
    assert float(values.mean()) > expected_psnr(std / 4, energy, 4800)


def test_clamped_psnr_is_of_the_whole_batch_and_repeatable():
    images = photographs()
    first, again = (
        clamped_psnr(images, 0.01, generator=torch.Generator().manual_seed(0)) for _ in range(2)
    )
    alone = clamped_psnr(images[:1], 0.01, generator=torch.Generator().manual_seed(0))
    assert torch.equal(first, again)
    assert alone[0] > first[0] + 3, "alone it has the budget to itself"
    assert float(psnr(images, images).mean()) == 100


# --- the statement ----------------------------------------------------------------------------


class Opaque(Defense):
    """Post-processing without any guarantee or bound."""

    def forward(self, update, *, generator):
        return update


class Shrink(Opaque):
    """Post-processing that lets no norm grow."""

    def bind(self, norm_bound):
        return norm_bound


def record_mean(epsilon=10.0):
    return GaussianNoise(calibration="record_mean", epsilon=epsilon, num_records=1000)


def told(*defenses, **arguments):
    bind_chain(defenses)
    statement = privacy_statement(defenses, **arguments)
    assert json.loads(json.dumps(statement, allow_nan=False)) == statement
    assert "\n" not in statement["statement"]
    return statement


def test_statement_of_the_published_setting():
    statement = told(ClipL2(10.0), record_mean())
    assert statement["clip_norm"] == 10
    assert statement["noise_std"] == pytest.approx(0.002)
    assert statement["claimed"]["epsilon"] == 10
    assert "record_mean" in statement["claimed"]["rule"]
    assert statement["claim_holds"] is False
    assert statement["actual"]["epsilon"] == pytest.approx(50_042_648, rel=1e-6)
    assert statement["actual"]["delta"] == 1e-5
    assert "replacement" in statement["actual"]["adjacency"]
    assert "sensitivity 20" in statement["actual"]["rule"]
    assert statement["zcdp_rho"] == pytest.approx(5e7)
    assert statement["rero_1000"] == 1
    assert statement["record_level"] is None
    assert "5e+07" in statement["statement"]
    assert "does not hold" in statement["statement"]


@pytest.mark.parametrize("num_rounds", [1, 30])
def test_statement_of_noise_worth_the_name(num_rounds):
    statement = told(ClipL2(2.0), GaussianNoise(8.0), num_rounds=num_rounds, delta=1e-6)
    expected = gaussian_epsilon(4, 8 / math.sqrt(num_rounds), 1e-6)
    assert statement["actual"]["epsilon"] == pytest.approx(expected)
    assert statement["actual"]["delta"] == 1e-6
    assert statement["zcdp_rho"] == pytest.approx(num_rounds / 8)
    expected = norm.cdf(norm.ppf(1e-3) + math.sqrt(num_rounds) / 2)
    assert statement["rero_1000"] == pytest.approx(expected)
    assert statement["claimed"] is None
    assert statement["claim_holds"] is None
    assert statement["num_rounds"] == num_rounds
    assert ("over 30 rounds" in statement["statement"]) == (num_rounds == 30)


@pytest.mark.parametrize(
    ("chain", "words"),
    [
        ([], "no defense"),
        ([ClipL2(1.0)], "hides nothing"),
        ([GaussianNoise(0.1)], "unbounded norm"),
        ([GaussianNoise(0.1), ClipL2(1.0)], "unbounded norm"),
        ([ClipL2(1.0), GaussianNoise(0.0)], "hides nothing"),
        ([Opaque()], "Opaque"),
        ([ClipL2(1.0), Opaque(), GaussianNoise(0.1)], "unbounded norm"),
    ],
)
def test_statement_of_no_guarantee(chain, words):
    statement = told(*chain)
    assert statement["actual"] is None
    assert statement["zcdp_rho"] is None
    assert statement["rero_1000"] == 1
    assert statement["statement"].startswith("no formal guarantee: ")
    assert words in statement["statement"]
    assert "-DP" not in statement["statement"]


@pytest.mark.parametrize(
    ("chain", "clip_norm", "std"),
    [
        ([ClipL2(1), GaussianNoise(3), GaussianNoise(4)], 1, 5),
        ([ClipL2(1), GaussianNoise(3), ClipL2(0.1)], 1, 3),
        ([ClipL2(1), GaussianNoise(3), Opaque(), GaussianNoise(4)], 1, 3),
        ([ClipL2(1), GaussianNoise(3), ClipL2(2), GaussianNoise(40)], 2, 40),
        ([ClipL2(1), GaussianNoise(3), ClipL2(2), GaussianNoise(4)], 1, 3),
        ([GaussianNoise(9), ClipL2(2), GaussianNoise(4)], 2, 4),
        ([ClipL2(5), ClipL2(2), GaussianNoise(4)], 2, 4),
        ([ClipL2(2), ClipL2(5), GaussianNoise(4)], 2, 4),
        ([ClipL2(2), Shrink(), GaussianNoise(4)], 2, 4),
        ([ClipL2(2), GaussianNoise(0), GaussianNoise(4)], 2, 4),
        ([ClipL2(2), GaussianNoise(4), GaussianNoise(0)], 2, 4),
    ],
)
def test_statement_of_longer_chains(chain, clip_norm, std):
    statement = told(*chain)
    assert statement["clip_norm"] == clip_norm
    assert statement["noise_std"] == pytest.approx(std)
    expected = gaussian_epsilon(2 * clip_norm, std, 1e-5)
    assert statement["actual"]["epsilon"] == pytest.approx(expected)
    assert statement["zcdp_rho"] == pytest.approx(gaussian_rho(2 * clip_norm, std))


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_local_randomizer_holds_wherever_it_stands(place):
    chain = [GaussianNoise(0.1), ClipL2(1.0)]
    chain.insert(place, Laplace(2.0, 1.0))
    statement = told(*chain)
    assert statement["actual"]["epsilon"] == 2
    assert statement["actual"]["delta"] == 0
    assert statement["claim_holds"] is True
    assert statement["zcdp_rho"] == pytest.approx(2 * math.tanh(1))
    assert statement["rero_1000"] == pytest.approx(math.exp(2) / 1000)
    assert "2-LDP" in statement["statement"]


def test_noise_behind_a_local_randomizer_has_no_bound():
    alone = told(ClipL2(1.0), Laplace(2000.0, 1.0), GaussianNoise(3.0))
    assert alone["actual"]["epsilon"] == 2000
    chain = [ClipL2(1.0), GaussianNoise(3.0), Laplace(2000.0, 1.0), GaussianNoise(4.0)]
    assert told(*chain)["actual"]["epsilon"] == pytest.approx(gaussian_epsilon(2, 3, 1e-5))


def test_best_single_guarantee_counts():
    chain = [PrivUnitG(5.0, 1.0), ClipL2(1.0), GaussianNoise(3.0)]
    statement = told(*chain)
    assert statement["actual"]["epsilon"] == pytest.approx(gaussian_epsilon(2, 3, 1e-5))
    weaker = told(PrivUnitG(2.0, 1.0), ClipL2(1.0), GaussianNoise(3.0))
    assert weaker["actual"]["epsilon"] == 2
    assert weaker["claimed"]["epsilon"] == 2
    assert told(Hybrid(3.0, 1.0), Laplace(2.0, 1.0))["actual"]["epsilon"] == 2


@pytest.mark.usefixtures("accounting")
def test_rounds_of_a_local_randomizer():
    statement = told(Laplace(0.1, 1.0), num_rounds=1000)
    assert statement["actual"]["epsilon"] == pytest.approx(17.787, abs=1e-3)
    assert statement["actual"]["delta"] == 1e-5
    assert "optimal composition" in statement["actual"]["rule"]
    few = told(Laplace(5.0, 1.0), num_rounds=2)
    assert few["actual"]["epsilon"] == pytest.approx(10, abs=1e-3)
    assert few["rero_1000"] <= 1
    assert few["claim_holds"] is True, "the claim is of one release"


def test_statement_of_clipping_per_sample():
    """A clip behind the client moves no two updates apart; anything else may."""
    client = DPSGD(1.0)
    noise = DPSGDNoise(1.0, 16, epsilon=8.0)
    plain = told(noise, client=client, num_samples=16)
    clipped = told(ClipL2(3.0), noise, client=client, num_samples=16)
    assert plain["record_level"]["epsilon"] == pytest.approx(8)
    assert clipped["record_level"]["epsilon"] == pytest.approx(8)
    assert plain["clip_norm"] == 1
    smaller = told(ClipL2(0.5), noise, client=client, num_samples=16)
    assert smaller["actual"]["epsilon"] < plain["actual"]["epsilon"]
    assert smaller["record_level"]["epsilon"] == pytest.approx(8)
    other = told(Shrink(), noise, client=client, num_samples=16)
    assert other["record_level"]["epsilon"] > 100, "no more than what holds for the client"
    between = told(
        GaussianNoise(1e-3), ClipL2(3.0), GaussianNoise(5.0), client=client, num_samples=16
    )
    assert between["record_level"]["epsilon"] == pytest.approx(gaussian_epsilon(6, 5, 1e-5))
    many = told(noise, client=client, num_samples=16, num_rounds=100)
    expected = gaussian_epsilon(2 / 16, noise.std, 1e-5, 100)
    assert many["record_level"]["epsilon"] == pytest.approx(expected)
    assert many["claim_holds"] is True
    assert told(client=client, num_samples=16)["actual"] is None


# --- edges ------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 3.0, 9.0])
@pytest.mark.parametrize("kappa", [1e-3, 0.1, 0.45, 0.9])
def test_pure_bound_is_the_power_of_the_best_test(epsilon, kappa):
    """Randomised response by Neyman & Pearson: likelier outcomes first, the last one in part."""
    first = math.exp(epsilon) / (1 + math.exp(epsilon))
    other = 1 - first
    rest = (kappa - other) / first * other
    power = kappa / other * first if kappa <= other else first + rest
    assert rero_pure(epsilon, kappa) == pytest.approx(power, rel=1e-9)


def test_expected_psnr_of_one_pixel():
    """The mean of a logarithm of chi-square of one degree: psi(1/2) = -gamma - 2 ln 2."""
    log_mse = -np.euler_gamma - 2 * math.log(2) + math.log(2 * 0.1**2 * 0.3)
    assert expected_psnr(0.1, 0.3, 1) == pytest.approx(-10 / math.log(10) * log_mse)
    with pytest.raises(InputError):
        expected_psnr(0.1, 0.3, 0)


@pytest.mark.parametrize("epsilon", [1e-14, 1e-13, 1e-12])
def test_tiny_budget_gets_enough_noise_and_not_absurdly_much(epsilon):
    """At a small ratio r, delta is r (phi(x) - x Phi(-x)) with x = epsilon / r."""
    log_delta = -100 * math.log(10)

    def excess(x):  # phi(x) - x Phi(-x) is the integral of Phi(-t) from x on
        tail, _ = quad(lambda t: math.exp(norm.logsf(x + t) - norm.logsf(x)), 0, 5)
        return math.log(epsilon / x) + norm.logsf(x) + math.log(tail) - log_delta

    needed = brentq(excess, 5, 35) / epsilon
    assert 0.999 * needed < gaussian_std(epsilon, 1.0, 1e-100) < 1.2 * needed


def simulated_rero(multiplier, rate, num_rounds, kappa, draws=200_000):
    """The power at size kappa of the likelihood ratio, as Hayes et al. 2023 estimate the bound."""
    rng = np.random.default_rng(0)
    without, given = np.zeros(draws), np.zeros(draws)
    for _ in range(num_rounds):
        for ratio, shift in ((without, 0), (given, rng.random(draws) < rate)):
            seen = rng.normal(0, multiplier, draws) + shift
            ratio += np.log1p(rate * np.expm1((2 * seen - 1) / (2 * multiplier**2)))
    return (given > np.quantile(without, 1 - kappa)).mean()


@pytest.mark.parametrize(
    ("multiplier", "rate", "num_rounds", "kappa"),
    [(2.0, 0.5, 20, 0.1), (1.0, 0.3, 1, 0.1), (3.0, 0.99, 10, 0.02)],
)
def test_sampled_rero_is_the_power_of_the_best_test(
    accounting, multiplier, rate, num_rounds, kappa
):
    bound = accounting.rero_sampled(multiplier, rate, num_rounds, kappa)
    power = simulated_rero(multiplier, rate, num_rounds, kappa)
    assert bound == pytest.approx(power, abs=0.005)
    assert bound < rero_gaussian(1.0, multiplier, kappa, num_rounds)


def test_sampled_rero_of_hardly_any_noise_is_having_been_drawn(accounting):
    bound = accounting.rero_sampled(1e-4, 0.1, 3, 0.01)
    assert bound == pytest.approx(1 - 0.9**3 + 0.9**3 * 0.01)
    assert accounting.rero_sampled(1.0, 1.0, 5, 0.1) == rero_gaussian(1.0, 1.0, 0.1, 5)


@pytest.mark.parametrize("name", ["rdp_epsilon", "pld_epsilon"])
def test_accountants_refuse_what_is_out_of_range(accounting, name):
    account = getattr(accounting, name)
    for arguments in (
        (0.0, 1e-5),
        (math.inf, 1e-5),
        (math.nan, 1e-5),
        (1.0, 1e-5, 0),
        (1.0, 1e-5, 1, 0.0),
        (1.0, 1e-5, 1, 1.1),
    ):
        with pytest.raises(InputError) as error:
            account(*arguments)
        assert "\n" not in str(error.value)


def test_rounds_of_a_pure_mechanism_are_at_least_one(accounting):
    with pytest.raises(InputError, match="num_rounds"):
        accounting.pure_epsilon(1.0, 1e-5, 0)
    assert accounting.pure_epsilon(1.0, 1e-5, 1) == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("epsilon", [25.0, 40.0, 1e3, 1e6])
def test_composition_of_rounds_that_hide_nothing(accounting, epsilon):
    """Where exp(epsilon) is beyond any number, too: all rounds add up."""
    assert accounting.pure_epsilon(epsilon, 1e-5, 130) == pytest.approx(130 * epsilon, rel=1e-5)


@pytest.mark.parametrize("value", [math.inf, math.nan, 0.0, -1.0])
def test_sensitivity_and_noise_are_numbers_above_zero(value):
    for call in (
        lambda: gaussian_epsilon(value, 1.0, 1e-5),
        lambda: gaussian_epsilon(1.0, value, 1e-5),
        lambda: gaussian_std(1.0, value, 1e-5),
        lambda: client_sensitivity(value),
    ):
        with pytest.raises(InputError, match="must be a number above 0"):
            call()
