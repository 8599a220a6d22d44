"""A failure is told by its cause: the user, the file system, another rank or the program."""

import errno
from pathlib import Path
from typing import Any

import pytest

from harness.base.errors import Hindered, UserError
from harness.runs import failures
from harness.runs.failures import describe
from harness.runs.run import Run

MISTAKE = UserError("data.root: no such folder\nset data.root=DIR")
LOST = RuntimeError("[gloo] Connection closed by peer")


def described(error: Exception, run: Run, *, leader: bool = True) -> tuple[dict[str, Any], str]:
    try:
        raise error
    except Exception:
        return describe(error, run, leader=leader)


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
        (ValueError("3"), "ValueError: 3", False, True),
    ],
    ids=["mistake", "hindered", "full disk", "no file", "lost rank", "fault"],
)
def test_only_what_lies_outside_is_a_hindrance_and_only_faults_have_a_traceback(
    tmp_path: Path, error: Exception, line: str, hindered: bool, traceback: bool
) -> None:
    failure, text = described(error, Run(tmp_path))
    assert (failure["error"], failure["hindered"]) == (line, hindered)
    assert ("Traceback" in text) is traceback
    assert failure["lines"][-1] == text.splitlines()[-1]


@pytest.mark.parametrize("same_attempt", [True, False])
def test_a_failed_rank_leaves_its_error_to_rank_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same_attempt: bool
) -> None:
    """Rank 0 would otherwise only know that it was lost, which another try might fix."""
    monkeypatch.setenv("MASTER_PORT", "4321")
    monkeypatch.setenv("RANK", "1")
    described(MISTAKE, Run(tmp_path), leader=False)
    if not same_attempt:
        monkeypatch.setenv("MASTER_PORT", "4322")
    failure, text = described(LOST, Run(tmp_path))
    own = "rank 1: data.root: no such folder"
    lost = "RuntimeError: [gloo] Connection closed by peer"
    assert failure["error"] == (own if same_attempt else lost)
    assert (own in text) is same_attempt
    assert failure["hindered"] is not same_attempt
