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
    (tmp_path / "8_0_log.err").write_text("all is well\n")
    found = deaths({"7_0": tmp_path, "8": tmp_path, "9": tmp_path})
    assert found.keys() == {"7_0"}
    assert found["7_0"] == "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0."
    assert "resources.memory" in causes.with_next_step(found["7_0"])
