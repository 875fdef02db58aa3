"""Bounds of shares and of what is none."""

import tracemalloc

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from trainer import intervals


@pytest.mark.parametrize(("hits", "of"), [(0, 7), (7, 7), (3, 10), (95, 100)])
def test_the_interval_of_a_share_is_the_exact_binomial_one(hits: int, of: int) -> None:
    exact = binomtest(hits, of).proportion_ci(0.95, method="exact")
    assert intervals.share(hits, of) == pytest.approx((exact.low, exact.high))


def test_a_bound_is_where_what_was_seen_would_come_five_times_in_a_hundred() -> None:
    low, high = intervals.lower_bound(8, 10), intervals.upper_bound(2, 10)
    assert binom.sf(7, 10, low) == pytest.approx(0.05)
    assert binom.cdf(2, 10, high) == pytest.approx(0.05)


def test_nothing_counted_shows_nothing() -> None:
    assert intervals.share(0, 0) == (0.0, 1.0)


def test_the_bootstrap_of_a_mean_is_about_two_standard_errors_wide_each_way_and_repeatable() -> None:
    values = np.random.default_rng(1).normal(5, 1, 400)
    interval = intervals.bootstrapped(lambda drawn: float(values[drawn].mean()), 400)
    assert interval is not None
    assert interval == intervals.bootstrapped(lambda drawn: float(values[drawn].mean()), 400)
    assert interval[1] - interval[0] == pytest.approx(4 / 20, rel=0.15)
    assert interval[0] < values.mean() < interval[1]


def test_the_bootstrap_of_many_pictures_takes_little_memory_and_draws_the_same() -> None:
    """In parts, and the parts do not show."""
    values = np.random.default_rng(1).normal(5, 1, 50_000)
    tracemalloc.start()
    try:
        interval = intervals.bootstrapped(lambda drawn: float(values[drawn].mean()), len(values))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100e6
    drawn = np.random.default_rng(0)
    means = [values[drawn.integers(0, len(values), len(values))].mean() for _ in range(intervals.RESAMPLES)]
    assert interval == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))


def test_one_picture_has_no_bootstrap() -> None:
    assert intervals.bootstrapped(lambda drawn: 0.0, 1) is None
