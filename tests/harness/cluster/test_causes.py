"""The cause and the next step of trials that failed."""

import errno
import importlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.base.errors import UserError
from harness.cluster import causes
from harness.cluster.slurm.commands import deaths
from harness.runs.failures import one_line

RAISED: dict[str, tuple[Callable[[], object], str]] = {
    "numpy has no memory": (lambda: np.empty(2**50), "resources.memory"),
    "torch has no memory": (lambda: torch.empty(2**50), "resources.memory"),
    "the GPU has no memory": (
        lambda: raise_(torch.OutOfMemoryError("CUDA out of memory.")), "lower the batch"
    ),
    "a module is missing": (lambda: importlib.import_module("no_such_module"), "slurm.python"),
    "the disk is full": (
        lambda: raise_(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a.h5")), "make room"
    ),
    "the folder is read-only": (
        lambda: raise_(OSError(errno.EROFS, os.strerror(errno.EROFS), "a.h5")), "run.runs"
    ),
    "the quota is used up": (
        lambda: raise_(UserError("a.h5: no room: 3 bytes are needed")), "make room"
    ),
}


def raise_(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("case", RAISED)
def test_an_error_is_followed_by_the_next_step(case: str) -> None:
    work, step = RAISED[case]
    with pytest.raises(Exception) as caught:  # noqa: PT011
        work()
    line = one_line(caught.value)
    message = causes.with_next_step(line)
    assert message.startswith(f"{line}; ")
    assert step in message


def test_an_unknown_error_stays_as_it_is() -> None:
    assert causes.with_next_step("ValueError: 3") == "ValueError: 3"


def test_the_experiments_own_advice_comes_before_ours() -> None:
    advice = {"CUDA out of memory": "lower work.batch", "3 apples": "eat one"}
    message = causes.with_next_step("OutOfMemoryError: CUDA out of memory.", advice)
    assert message == "OutOfMemoryError: CUDA out of memory.; lower work.batch"
    assert causes.with_next_step("ValueError: 3 apples", advice).endswith("; eat one")
    assert causes.with_next_step("PREEMPTED", advice) == causes.with_next_step("PREEMPTED")


def test_without_accounting_the_ends_of_the_logs_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no sacct
    (tmp_path / "7_0_0_log.err").write_text("all is well\n" * 3)
    (tmp_path / "7_0_1_log.err").write_text(
        "x" * 100_000 + "\nslurmstepd: error: Detected 1 oom_kill event in StepId=7.0.\nbye\n"
    )
    (tmp_path / "8_0_log.err").write_text("all is well\n\nsrun: error: task 0: Killed\n")
    (tmp_path / "9_0_log.err").touch()
    found = deaths(dict.fromkeys(("7_0", "8", "9", "10"), tmp_path))
    assert found == {
        "7_0": "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0. "
        f"({tmp_path / '7_0_1_log.err'})",
        "8": "its output ends with: all is well | srun: error: task 0: Killed "
        f"({tmp_path / '8_0_log.err'})",
        "9": f"it wrote nothing ({tmp_path / '9_0_log.err'})",
        "10": f"no output of it is in {tmp_path}",
    }
    assert "resources.memory" in causes.with_next_step(found["7_0"])


@pytest.mark.parametrize(
    ("status", "words"),
    [("0:53", "output file"), ("2:0", "missing"), ("127:0", "missing"), ("0:9", "SIGKILL"),
     ("137:0", "SIGKILL"), ("0:15", "SIGTERM"), ("0:125", "out of memory"), ("3:0", "")],
)
def test_exit_statuses_are_told_in_words(status: str, words: str) -> None:
    told = causes.exit_status(status)
    assert told.startswith(f"exit status {status}")
    assert told.endswith(words) if words else told == f"exit status {status}"


def test_only_a_puzzling_end_before_the_beginning_points_to_the_doctor() -> None:
    advised = [causes.with_next_step(end, begun=False).endswith(causes.NOT_BEGUN) for end in (
        "FAILED (exit status 3:0) on a: it wrote nothing (x.err)", "no output of it is in x",
        "NODE_FAIL (exit status 1:0) on a", "CANCELLED by 0 (exit status 0:0) on None assigned",
    )]
    assert advised == [True, True, False, False]
    assert "doctor" not in causes.with_next_step("FAILED (exit status 3:0) on a")
