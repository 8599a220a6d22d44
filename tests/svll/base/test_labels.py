"""Labels in any type of number are the integers that were meant, or are refused."""

import numpy as np
import pytest

from svll.base.labels import whole_numbers


@pytest.mark.parametrize(
    "values",
    [
        np.array([7.0, -1.0, 0.0]), np.array([7, 254], np.uint8), np.array([[3], [-1]], np.int8),
        np.array([2**24 - 1], np.float32), np.array([2**53 - 1], np.float64),
        np.array([2**62], np.uint64), np.array([5], ">i2"), np.zeros(0), np.zeros(0, np.uint8),
    ],
)  # fmt: skip
def test_labels_that_their_type_holds_come_back_as_int64(values):
    found = whole_numbers(values)
    assert found.dtype == np.int64
    assert found.tolist() == values.astype(object).tolist()


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.array([7.0, 7.5]), "number 1 is 7.5; integers are needed"),
        (np.array([1.0, np.nan]), "number 1 is nan; integers are needed"),
        (np.array([np.inf]), "number 0 is inf; integers are needed"),
        # 16,777,217 in float32 is 16,777,216: two persons become one
        (np.array([2**24 + 1], np.float32), "float32 holds integers exactly only below 16,777,216"),
        (np.array([2049], np.float16), "float16 holds integers exactly only below 2,048"),
        (np.array([2.0**53]), "float64 holds integers exactly only below 9,007,199,254,740,992"),
        # -1 in an unsigned type, and 300 in MATLAB's uint8
        (np.array([3, -1]).astype(np.uint8), "number 1 is 255; the largest number of uint8"),
        (np.array([-1]).astype(np.uint16), "number 0 is 65535; the largest number of uint16"),
        (np.array([-1]).astype(np.uint64), "is 18446744073709551615; the largest number of uint64"),
        (np.array([2**63 + 5], np.uint64), "number 0 is 9223372036854775813; labels are not negat"),
        # 200 in int8
        (np.array([200]).astype(np.int8), "number 0 is -56; labels are not negative, except -1"),
        (np.array([-2.0]), "number 0 is -2.0; labels are not negative"),
    ],
)  # fmt: skip
def test_labels_that_their_type_may_have_changed_are_refused(values, reason):
    with pytest.raises(ValueError, match=reason):
        whole_numbers(values)
