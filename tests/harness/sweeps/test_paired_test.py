"""The sign-flip test against scipy's, and what must hold of any test."""

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.base.errors import UserError
from harness.sweeps.paired_test import EXACT, compare

VALUES = st.lists(st.integers(-50, 50), min_size=1, max_size=10)


@given(VALUES)
@settings(max_examples=25, deadline=None)
def test_p_is_that_of_scipys_exact_permutation_test(values: list[int]) -> None:
    found = compare(values, [0] * len(values))
    expected = scipy.stats.permutation_test(
        (np.array(values, float),), np.mean, permutation_type="samples", n_resamples=np.inf,
    ) if len(values) > 1 else None
    if expected is not None:
        assert found.p == pytest.approx(expected.pvalue, abs=1e-9)
    assert found.mean == pytest.approx(np.mean(values))
    assert found.wins == sum(v > 0 for v in values)
    assert found.losses == sum(v < 0 for v in values)


@pytest.mark.parametrize("pairs", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("digits", [1, 2, 4])
def test_p_is_the_share_of_signs_even_where_sums_are_equal_but_for_rounding(
    pairs: int, digits: int
) -> None:
    random = np.random.default_rng(10 * pairs + digits)
    for _ in range(20):
        a, b = random.uniform(0.5, 0.7, (2, pairs)).round(digits).tolist()
        exact = [Fraction(str(x)) - Fraction(str(y)) for x, y in zip(a, b, strict=True)]
        sums = [
            sum(sign * difference for sign, difference in zip(signs, exact, strict=True))
            for signs in product((1, -1), repeat=pairs)
        ]
        assert compare(a, b).p == np.mean([abs(each) >= abs(sum(exact)) for each in sums])


def test_many_differences_are_tested_by_drawing_and_agree_with_the_exact_test() -> None:
    random = np.random.default_rng(2)
    values = random.normal(0.35, 1.0, EXACT + 4)
    exact = scipy.stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=np.inf
    )
    found = compare(values, np.zeros_like(values))
    assert found.p == pytest.approx(exact.pvalue, abs=0.01)
    assert compare(values, np.zeros_like(values)) == found


def test_without_a_difference_p_is_spread_evenly() -> None:
    random = np.random.default_rng(5)
    found = [compare(random.normal(size=12), random.normal(size=12)).p for _ in range(300)]
    assert scipy.stats.kstest(found, "uniform").pvalue > 0.01


def test_a_and_b_may_change_places_and_nan_is_left_out() -> None:
    a, b = [0.5, 0.7, float("nan"), 0.9], [0.1, 0.8, 0.3, 0.2]
    one, other = compare(a, b), compare(b, a)
    assert (one.pairs, one.wins, one.losses) == (3, 2, 1)
    assert (one.mean, one.p) == (-other.mean, other.p)


def test_what_cannot_be_compared_is_reported() -> None:
    with pytest.raises(UserError, match="shapes"):
        compare([1.0, 2.0], [1.0])
    with pytest.raises(UserError, match="no pair has two values"):
        compare([float("nan")], [1.0])
