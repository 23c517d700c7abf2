import numpy as np
import pytest
from scipy import stats

from lightning_recon.audit.statistics import (
    bootstrap_interval,
    paired_difference,
    share_at,
    share_interval,
    worst_case,
)


def _audit(num_clients, seed=0, batch=8, spread=2.0):
    """Scores of images whose clients differ from one another, and the client of each."""
    random = np.random.default_rng(seed)
    clients = np.repeat(np.arange(num_clients), batch)
    return 25 + spread * random.normal(size=num_clients)[clients] + random.normal(
        size=len(clients)
    ), clients


def _stretched(interval, estimate, count):
    """The percentile interval, moved away from the estimate as the module's docstring says."""
    factor = stats.t.ppf(0.975, count - 1) / stats.norm.ppf(0.975) * np.sqrt(count / (count - 1))
    return [estimate + factor * (end - estimate) for end in interval]


def test_interval_of_the_mean_agrees_with_scipy():
    values, clients = _audit(12)
    keep = np.random.default_rng(1).random(len(values)) < 0.7  # clients of unequal size
    values, clients = values[keep], clients[keep]
    sums = np.array([values[clients == c].sum() for c in range(12)])
    sizes = np.array([(clients == c).sum() for c in range(12)])
    independent = stats.bootstrap(
        (sums, sizes),
        lambda s, n, axis: s.sum(axis=axis) / n.sum(axis=axis),
        paired=True,
        method="percentile",
        n_resamples=20_000,
        random_state=np.random.default_rng(5),
    ).confidence_interval
    found = bootstrap_interval(values, clients, num_resamples=20_000)
    assert found == pytest.approx(_stretched(independent, values.mean(), 12), abs=0.04)


def test_interval_of_the_median_agrees_with_pooling_the_images():
    values, clients = _audit(9, batch=5)
    values, clients = values[:-2], clients[:-2]
    groups = [values[clients == c] for c in range(9)]
    independent = stats.bootstrap(
        (np.arange(9),),
        lambda drawn: np.median(np.concatenate([groups[c] for c in drawn])),
        vectorized=False,
        method="percentile",
        n_resamples=8000,
        random_state=np.random.default_rng(5),
    ).confidence_interval
    found = bootstrap_interval(values, clients, "median", num_resamples=8000)
    assert found == pytest.approx(_stretched(independent, np.median(values), 9), abs=0.12)


def test_the_median_of_an_even_count_lies_between_the_two_in_the_middle():
    values, clients = [0.0, 0.0, 10.0, 10.0], [0, 0, 1, 1]  # resampled: 0, 5 or 10, as the mean
    for confidence in (0.4, 0.95):
        mean = bootstrap_interval(values, clients, confidence=confidence)
        assert bootstrap_interval(values, clients, "median", confidence=confidence) == mean


@pytest.mark.parametrize("count", [3, 6, 20])
def test_the_interval_covers_the_truth_as_often_as_it_says(count):
    random = np.random.default_rng(0)
    hits = narrow_hits = 0
    for _ in range(400):
        values = random.normal(size=count)
        low, high = bootstrap_interval(values, np.arange(count), num_resamples=300)
        hits += low <= 0 <= high
        means = values[random.integers(count, size=(300, count))].mean(axis=1)
        low, high = np.quantile(means, [0.025, 0.975])
        narrow_hits += low <= 0 <= high
    assert 0.915 <= hits / 400 <= 0.985
    assert narrow_hits < hits


def test_copies_of_an_image_add_no_certainty():
    values, clients = _audit(10, batch=1)
    once = bootstrap_interval(values, clients)
    copied = bootstrap_interval(np.repeat(values, 50), np.repeat(clients, 50))
    assert copied == pytest.approx(once)
    as_if_independent = bootstrap_interval(np.repeat(values, 50), np.arange(500))
    assert np.diff(as_if_independent) < 0.3 * np.diff(copied)


def test_the_interval_depends_on_the_seed_alone():
    values, clients = _audit(7)
    order = np.random.default_rng(3).permutation(len(values))
    first = bootstrap_interval(values, clients, seed=1)
    assert bootstrap_interval(values, clients, seed=1) == first
    assert bootstrap_interval(values, clients, seed=2) != first
    assert bootstrap_interval(values[order], clients[order], seed=1) == pytest.approx(first)
    assert bootstrap_interval(values, clients * 10 + 3, seed=1) == first


def test_a_higher_confidence_is_wider_and_holds_the_estimate():
    values, clients = _audit(15)
    narrow = bootstrap_interval(values, clients, confidence=0.8)
    wide = bootstrap_interval(values, clients, confidence=0.99)
    assert wide.low < narrow.low < values.mean() < narrow.high < wide.high


def test_many_clients_take_bounded_memory():
    values = np.random.default_rng(0).normal(size=30_000)
    low, high = bootstrap_interval(values, np.arange(30_000), num_resamples=200)
    assert high - low == pytest.approx(2 * 1.96 / np.sqrt(30_000), rel=0.2)


@pytest.mark.parametrize("statistic", ["mean", "median"])
def test_one_client_gives_no_interval(statistic):
    assert bootstrap_interval([1.0, 2.0, 3.0], [4, 4, 4], statistic) is None
    assert share_interval([1, 0], [2, 2]) is None
    assert paired_difference([1.0, 2.0], [2.0, 2.0], [0, 0]).interval is None


@pytest.mark.parametrize("num_clients", [2, 20])
def test_no_hit_is_no_certainty(num_clients):
    clients = np.repeat(np.arange(num_clients), 4)
    none = share_interval(np.zeros(len(clients)), clients)
    assert none.low == 0
    assert none.high == pytest.approx(1 - 0.025 ** (1 / num_clients))  # P(no client hit) = 2.5 %
    everything = share_interval(np.ones(len(clients)), clients)
    assert everything == pytest.approx((1 - none.high, 1.0))


def test_a_share_stays_between_0_and_1():
    clients = np.repeat(np.arange(4), 4)
    hits = np.ones(16)
    hits[0] = 0
    low, high = share_interval(hits, clients)
    assert bootstrap_interval(hits, clients).high > 1
    assert high == 1
    assert 0 < low < 15 / 16


def test_paired_difference():
    random = np.random.default_rng(0)
    first, clients = _audit(10, spread=4.0)
    second = first + 1.5 + 0.1 * random.normal(size=len(first))
    found = paired_difference(first, second, clients)
    assert found.mean == pytest.approx((second - first).mean())
    assert found.interval == bootstrap_interval(second - first, clients)
    assert (found.num_images, found.num_clients) == (80, 10)
    assert found.interval.low > 1.2
    assert np.diff(found.interval) < 0.1 * np.diff(bootstrap_interval(second, clients))
    back = paired_difference(second, first, clients)
    assert back.mean == -found.mean
    assert back.interval == pytest.approx((-found.interval.high, -found.interval.low), abs=0.02)


def test_share_at_counts_from_the_threshold_on():
    values = [10.0, 15.0, 15.0, 30.0]
    assert share_at(values, [15, 15.1, 30, 40]) == [0.75, 0.25, 0.25, 0.0]
    assert share_at(values, [15, 14.9], lower_is_more_alike=True) == [0.75, 0.25]


def test_worst_case_is_worst_for_privacy():
    assert worst_case([1.0, 3.0, 2.0]) == 3.0
    assert worst_case([1.0, 3.0, 2.0], lower_is_more_alike=True) == 1.0


def test_bad_values_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        bootstrap_interval([1.0, 2.0], [0])
    with pytest.raises(ValueError, match="one shape"):
        bootstrap_interval([], [])
    with pytest.raises(ValueError, match="finite"):
        bootstrap_interval([1.0, np.nan], [0, 1])
    with pytest.raises(ValueError, match="0 or 1"):
        share_interval([0.0, 0.5], [0, 1])
    with pytest.raises(ValueError, match="differ in shape"):
        paired_difference([1.0], [1.0, 2.0], [0])
    with pytest.raises(ValueError, match="finite"):
        share_at([np.inf], [1.0])
    with pytest.raises(ValueError, match="one shape"):
        worst_case([])
