"""What a type is called, and which values fit it."""

from typing import Any, Literal

import pytest

from harness.config.casts import at_type, type_words


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (dict[str, Any], "a mapping"), (float | None, "a number or null"),
        (list[int], "a list of integers"), (tuple[float, float], "a list of 2 numbers"),
        (list[Literal["a", "b"]], "a list of values, each one of a, b"), (bool, "true or false"),
    ],
)
def test_types_are_described_in_words(kind: Any, words: str) -> None:
    assert type_words(kind) == words


@pytest.mark.parametrize(
    ("kind", "fitting", "others"),
    [
        (int, [3, -1, 2**63 - 1, -(2**63)], [3.0, True, "3", None, [3], 2**63, 10**30]),
        (float, [0.5, -1.0], [True, "0.5", None, float("nan"), float("inf"), 10**400]),
        (bool, [True, False], [1, 0, "1", "y", None]),
        (str, ["3", "none", ""], [3, True, None, "???"]),
        (str | None, ["a", None], ["None", "none", 3]),
        (Literal[0, 1], [0, 1], [True, False, 1.0, "1"]),
        (list[int], [[], [1]], [1, [1.0], [True], ["1"], [[1]]]),
        (tuple[float, float], [(1.0, 2.0)], [[1], [1, 2, 3], [1, "2"]]),
        (dict[str, str], [{}, {"a": "b"}], [{"a": 1}, [], "a"]),
    ],
)
def test_nothing_is_converted_silently(kind: Any, fitting: list[Any], others: list[Any]) -> None:
    for value in fitting:
        assert repr(at_type(value, kind)) == repr(value)
    for value in others:
        with pytest.raises(ValueError, match=r"expected .*, found "):
            at_type(value, kind)


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (float, 1, 1.0), (float, -0.0, 0.0), (bool, "yes", True), (bool, "Off", False),
        (list[float], (1,), [1.0]),
        (tuple[float, float], [1, 0.5], (1.0, 0.5)), (dict[str, str], {1: "a"}, {"1": "a"}),
    ],
)
def test_what_can_mean_one_thing_only_is_converted(kind: Any, value: Any, expected: Any) -> None:
    assert repr(at_type(value, kind)) == repr(expected)


def test_an_integer_that_would_be_cut_to_64_bits_is_named() -> None:
    with pytest.raises(ValueError, match=r"^expected an integer of 64 bits, found 18446744073709"):
        at_type(2**64, int)
    with pytest.raises(ValueError, match=r"^expected an integer, found '3'$"):
        at_type("3", int)
