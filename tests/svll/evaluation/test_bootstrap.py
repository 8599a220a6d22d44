"""The bootstrap against a plain loop and against what is known in closed form."""

import tracemalloc

import numpy as np
import pytest

from harness.base.errors import UserError
from svll.evaluation import bootstrap
from svll.evaluation.bootstrap import interval


def clustered(seed, identities=40, inside=0.1):
    """Values that depend mostly on the identity, 1 to 6 each, and their identities."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(identities) * 7 - 3, rng.integers(1, 7, identities))
    own = rng.normal(0.6, 0.2, identities)[np.unique(groups, return_inverse=True)[1]]
    values = own + inside * rng.standard_normal(len(groups))
    order = rng.permutation(len(groups))
    return values[order], groups[order]


def test_bounds_equal_those_of_a_plain_loop():
    values, groups = clustered(0)
    values[[3, 10, 11]] = np.nan
    low, high = interval(values, groups, level=0.9, draws=20_000)
    rng, means = np.random.default_rng(1), []
    known = [g for g in np.unique(groups) if not np.isnan(values[groups == g]).all()]
    members = [values[(groups == g) & ~np.isnan(values)] for g in known]
    for _ in range(20_000):
        drawn = [members[i] for i in rng.integers(0, len(known), len(known))]
        means.append(np.concatenate(drawn).mean())
    # other random numbers: the bounds agree as far as 20,000 draws can tell
    spread = np.std(means)
    assert low == pytest.approx(np.quantile(means, 0.05), abs=0.05 * spread)
    assert high == pytest.approx(np.quantile(means, 0.95), abs=0.05 * spread)


def test_bounds_are_the_normal_ones_where_every_identity_has_one_query():
    values = np.random.default_rng(2).normal(0.7, 0.2, 900)
    low, high = interval(values, np.arange(900), draws=10_000)
    half = 1.96 * values.std() / 30
    assert low == pytest.approx(values.mean() - half, abs=0.06 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.06 * half)


def test_the_interval_holds_the_true_mean_as_often_as_it_says():
    inside = [
        low <= 0.6 <= high
        for low, high in (interval(*clustered(s), level=0.8, draws=400) for s in range(400))
    ]
    assert 0.72 < np.mean(inside) < 0.86  # 0.8, by four standard errors; a little less is known


def test_queries_of_one_identity_are_not_counted_as_independent():
    values, groups = clustered(3, identities=60, inside=0.0)
    together = np.diff(interval(values, groups))
    alone = np.diff(interval(values, np.arange(len(values))))
    assert together > 1.3 * alone


def test_one_identity_gives_its_mean_twice():
    values = [0.25, np.nan, 1.0, 0.5]
    assert interval(values, [4, 4, 4, 4]) == (1.75 / 3, 1.75 / 3)
    assert interval(values, [4, 9, 4, 4]) == (1.75 / 3, 1.75 / 3)  # 9 has nothing that counts


def test_skipped_queries_change_nothing():
    values, groups = clustered(4)
    more = np.r_[values, np.full(30, np.nan)]
    assert interval(more, np.r_[groups, np.arange(30)]) == interval(values, groups)


def test_the_seed_decides_and_the_order_of_queries_does_not():
    values, groups = clustered(5)
    order = np.random.default_rng(0).permutation(len(values))
    first = interval(values, groups, seed=1)
    assert first == interval(values, groups, seed=1)
    assert first != interval(values, groups, seed=2)
    assert first == pytest.approx(interval(values[order], groups[order], seed=1), abs=1e-12)
    assert interval(values, groups, level=0.5)[0] > first[0]


def test_memory_does_not_grow_with_the_draws():
    rng = np.random.default_rng(6)
    values, groups = rng.random(11_659), rng.integers(0, 3_060, 11_659)
    tracemalloc.start()
    interval(values, groups, draws=4000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * 8 * bootstrap.NUMBERS


def test_what_cannot_be_is_refused_all_at_once():
    with pytest.raises(UserError) as error:
        interval([0.5, 0.7], [1, 2, 3], level=95, draws=0)
    assert str(error.value).splitlines() == [
        "values and identities have shapes [2] and [3]; expected [queries] both",
        "level is 95; a share between 0 and 1 is needed, such as 0.95",
        "draws is 0; at least 1 is needed, and some 1,000 for steady bounds",
    ]
    with pytest.raises(UserError, match="no query counts"):
        interval([np.nan, np.nan], [1, 2])
    with pytest.raises(UserError, match=r"shapes \[0\] and \[0\]|no query counts"):
        interval([], [])
