"""Errors that pass are not shown; those that last are."""

import errno
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.base.reading import PAUSES_S, exists, from_json, retried


def failing(*errors: Exception | None) -> Callable[[], int]:
    """A function that raises each error in turn and returns how often it was called at None."""
    calls: list[None] = []

    def read() -> int:
        error = errors[len(calls)]
        calls.append(None)
        if error is not None:
            raise error
        return len(calls)

    return read


def test_a_read_that_fails_for_a_moment_is_tried_again_and_one_that_goes_on_failing_raises(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    stale, cut = OSError(errno.ESTALE, "stale"), ValueError("cut")
    assert retried(failing(stale, OSError(errno.EIO, "io"), None)) == 3
    with pytest.raises(OSError, match="stale"):
        retried(failing(*[stale] * (len(PAUSES_S) + 1)))
    waited.clear()
    with pytest.raises(ValueError, match="cut"):  # a file that is damaged, not read in between
        retried(failing(cut, cut), ValueError)
    assert waited == [PAUSES_S[0]]
    for lasting in (PermissionError(errno.EACCES, "no"), FileNotFoundError(errno.ENOENT, "no")):
        with pytest.raises(OSError, match="no"):
            retried(failing(lasting))
    assert waited == [PAUSES_S[0]]
    assert (exists(tmp_path), exists(tmp_path / "nothing")) == (True, False)


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", '{"a": -Infinity}', "1e400", "-1e999",
                                  "1" * 400, "[" * 100_000, "", "\0\0", "{"])  # fmt: skip
def test_what_is_no_json_or_no_number_of_a_float_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        from_json(text)


def test_json_is_read_with_every_digit() -> None:
    assert from_json('{"a": [1, -0.1, 1e-320, 18446744073709551616, true, null, "\\ud83d"]}') == {
        "a": [1, -0.1, 1e-320, 2**64, True, None, "\ud83d"]
    }
