"""The interval of a mean against theory and against a loop."""

import numpy as np
import pytest

from svll.evaluation.bootstrap import interval


def test_of_independent_queries_it_is_that_of_the_normal_distribution():
    rng = np.random.default_rng(0)
    values = rng.random(2000)
    low, high = interval(values, np.arange(2000))
    error = 1.96 * values.std() / np.sqrt(2000)
    assert low == pytest.approx(values.mean() - error, abs=0.1 * error)
    assert high == pytest.approx(values.mean() + error, abs=0.1 * error)


def test_queries_that_go_together_count_as_one():
    rng = np.random.default_rng(1)
    values, groups = np.repeat(rng.random(100), 20), np.repeat(np.arange(100), 20)
    low, high = interval(values, groups)
    error = 1.96 * values.std() / np.sqrt(100)
    assert (high - low) / 2 == pytest.approx(error, rel=0.1)


def test_it_is_the_spread_of_means_over_identities_drawn_with_replacement():
    rng = np.random.default_rng(2)
    groups = rng.integers(0, 12, 60)
    values = rng.random(60) + 0.1 * groups
    values[::7] = np.nan
    means = []
    for _ in range(4000):
        drawn = rng.choice(np.unique(groups), 12)
        means.append(np.nanmean(np.concatenate([values[groups == g] for g in drawn])))
    expected = np.quantile(means, [0.05, 0.95])
    np.testing.assert_allclose(interval(values, groups, level=0.9), expected, atol=0.03)


def test_it_is_seeded_and_one_identity_leaves_no_doubt():
    values, groups = np.arange(10.0), np.arange(10)
    assert interval(values, groups) == interval(values, groups)
    assert interval(values, groups) != interval(values, groups, seed=1)
    assert interval(values, np.zeros(10)) == (4.5, 4.5)
