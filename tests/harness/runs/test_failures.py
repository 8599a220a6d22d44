"""A failure is told by its cause: the user, the file system, another rank or the program."""

import errno
from typing import Any

import pytest

from harness.base.errors import Hindered, UserError
from harness.runs import failures
from harness.runs.failures import describe

MISTAKE = UserError("data.root: no such folder\nset data.root=DIR")
LOST = RuntimeError("[gloo] Connection closed by peer")


def described(error: Exception) -> tuple[dict[str, Any], str, bool]:
    try:
        raise error
    except Exception as caught:
        return describe(caught)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "OTHERS_WAIT_S", 0.0)


@pytest.mark.parametrize(
    ("error", "line", "hindered", "traceback"),
    [
        (MISTAKE, "data.root: no such folder", False, False),
        (Hindered("a: is full"), "a: is full", True, False),
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), "a/b: No space left on device",
         True, False),
        (OSError(errno.ENOENT, "No such file or directory", "a/b"),
         "FileNotFoundError: [Errno 2] No such file or directory: 'a/b'", False, True),
        (LOST, "RuntimeError: [gloo] Connection closed by peer", True, True),
        (RuntimeError("port: 29500, code: -98, name: EADDRINUSE"),
         "RuntimeError: port: 29500, code: -98, name: EADDRINUSE", True, True),
        (ValueError("3"), "ValueError: 3", False, True),
    ],
    ids=["mistake", "hindered", "full disk", "no file", "lost rank", "taken port", "fault"],
)
def test_only_what_lies_outside_is_a_hindrance_and_only_faults_have_a_traceback(
    error: Exception, line: str, hindered: bool, traceback: bool
) -> None:
    failure, text, knows_cause = described(error)
    assert (failure["error"], failure["hindered"]) == (line, hindered)
    assert ("Traceback" in text) is traceback
    assert failure["lines"][-1] == text.splitlines()[-1]
    assert knows_cause is (error is not LOST)
