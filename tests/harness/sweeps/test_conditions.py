"""Conditions say what Python would say, and can do nothing else."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.sweeps.conditions import read_condition

VALUES = {"a.x": 3, "a.y": 0.5, "name": "car", "none": None, "sizes": [1, 2]}


def holds(text: str, values: dict[str, Any] = VALUES) -> bool:
    faults: list[str] = []
    condition = read_condition(text, "here", faults)
    assert condition is not None, faults
    return condition.holds(values.__getitem__)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.x > 2", True), ("a.x > 2 and a.y > 1", False), ("a.x > 2 or a.y > 1", True),
        ("not a.x > 2", False), ("2 < a.x <= 3", True), ("2 < a.x < 3", False),
        ("a.x + a.y == 3.5", True), ("a.x * -a.y < -1", True), ("a.x / 2 - 1 >= a.y", True),
        ("name == 'car'", True), ("name in ['bus', 'car']", True), ("name not in ['car']", False),
        ("none == null", True), ("none == None", True), ("name != null", True),
        ("(a.x > 5) == false", True), ("sizes == [1, 2]", True),
        # what `and` and `or` skip is never evaluated
        ("none == null or none > 8", True), ("not (none != null and none > 8)", True),
        # what cannot be computed does not hold
        ("none > 1", False), ("a.x / (a.y - a.y) > 0", False), ("name > 1", False),
        (f"1{'0' * 400} / a.x > 1", False), (f"a.y + 1{'0' * 400} > 1", False),
        ("name * 99999999999 == 'car'", False), ("sizes * 99999999999 == sizes", False),
        ("name + 's' == 'cars'", True), ("a.x < 1e999", True),
    ],
)
def test_a_condition_means_what_python_means(text: str, expected: bool) -> None:
    assert holds(text) is expected


@given(st.integers(-9, 9), st.integers(-9, 9), st.integers(-9, 9))
def test_sums_and_comparisons_agree_with_python(a: int, b: int, c: int) -> None:
    text = "a.x + a.y * 2 - c < 3 or c == a.x"
    values = {"a.x": a, "a.y": b, "c": c}
    assert holds(text, values) == (a + b * 2 - c < 3 or c == a)


def test_the_keys_that_it_looks_at_are_known() -> None:
    condition = read_condition("a.x > 2 and (a.y < a.x or deep.er.key == null)", "here", [])
    assert condition is not None
    assert condition.names == ("a.x", "a.y", "deep.er.key")


@pytest.mark.parametrize(
    "text",
    [
        "a.x >", "", "open('f')", "a.__class__()", "[n for n in a.x]", "a.x ** 99", "a[0] > 1",
        "lambda: a.x", "f'{a.x}'", "a.x if a.y else 1", "{1: a.x}", "a.x << 3 > 1", "1 < 2", 7,
        None, "a.x; b", "(a.x := 3)", "a.x > 1j", "name == b'car'", "a.x == ...", "a.x\0 > 1",
        "a.x > 9**9**9", "(" * 500 + "a.x", "-" * 900 + "a.x > 0", "not " * 240 + "a.x",
        "a.x + " * 200 + "a.x > 1", b"a.x > 1", f"a.x > {'9' * 4400}", "\ud800 > 1",
    ],
)
def test_anything_else_is_refused_and_not_evaluated(text: Any) -> None:
    faults: list[str] = []
    assert read_condition(text, "tried.yaml, line 4", faults) is None
    [told] = faults
    assert told.startswith("tried.yaml, line 4: ")
