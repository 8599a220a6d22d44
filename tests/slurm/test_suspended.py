"""A job that SLURM suspends for another one goes on as the only writer, or writes nothing more."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

TOYS = Path(__file__).parents[1] / "toy"
sys.path.insert(0, str(TOYS))

import toy_experiment as toy  # noqa: E402

from harness.base import locks  # noqa: E402
from harness.cluster.launch import launch  # noqa: E402
from harness.cluster.records import read_records  # noqa: E402
from harness.cluster.slurm import commands  # noqa: E402
from harness.cluster.states import survey  # noqa: E402
from harness.runs.run import Run  # noqa: E402

STALE_S = 8.0
"""Instead of a minute; a living holder touches its lock every 5 s."""


@pytest.fixture
def suspending(slurm: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The cluster, where jobs of the partition `urgent` suspend those of `main`."""
    monkeypatch.setenv("PYTHONPATH", str(TOYS))
    monkeypatch.setattr(locks, "STALE_S", STALE_S)
    monkeypatch.setattr(locks, "WATCHED_BEATS", 0.1)
    with slurm.configured("PreemptMode=REQUEUE\nSlurm", "PreemptMode=SUSPEND,GANG\nSlurm"):
        slurm.restart_controller()
        with slurm.configured("PreemptMode=REQUEUE Grace", "PreemptMode=SUSPEND Grace"):
            yield slurm
    slurm.restart_controller()


def epochs(run: Run) -> list[int]:
    return [line["epoch"] for line in run.metrics()]


def test_a_suspended_trial_goes_on_alone_and_one_that_was_overtaken_writes_nothing_more(
    suspending: Any, tmp_path: Path, fault_table: Callable[..., None]
) -> None:
    sweep = toy.make_sweep(
        tmp_path, {"work.quality": {"grid": [0.1, 0.2]}},
        recipe={"work": {"epochs": 9, "epoch_s": 1.0}},
    )
    launch(sweep, "slurm")
    own, lost = (trial.run for trial in sweep.trials)
    toy.until(lambda: min(len(epochs(own)), len(epochs(lost))) >= 2)
    [record] = read_records(sweep.folder)
    ids = set(record.jobs.values())
    urgent = subprocess.Popen(
        ["srun", "-p", "urgent", "-N2", "--exclusive", "sleep", "600"], env=suspending.environ
    )
    try:
        toy.until(lambda: {commands.my_jobs()[n][0] for n in ids} == {"SUSPENDED"})
        toy.until(lambda: locks.lock_holder(own.lock_file) is None
                  and locks.lock_holder(lost.lock_file) is None)
        written = epochs(lost), lost.status()
        assert [one.state for one in survey(sweep)] == ["running", "running"]
        assert launch(sweep, "slurm") == []
        assert set(commands.my_jobs()) >= ids
        with lost.lock():  # this machine is none of the nodes
            urgent.terminate()
            urgent.wait(60)
            toy.until(own.is_complete, seconds=60)
            toy.until(lambda: not ids & set(commands.my_jobs()), seconds=60)
            assert (epochs(lost), lost.status()) == written
    finally:
        urgent.kill()
        urgent.wait()
    assert epochs(own) == list(range(1, 10))
    assert own.status()["attempts"] == 1
    log = Path(record.folder, f"{record.jobs[lost.signature]}_0_log.err").read_text()
    assert "was suspended or cut off for too long, lost the lock and writes nothing more" in log
    assert [one.trial.run for one in launch(sweep, "slurm")] == [lost]
    toy.until(lost.is_complete)
    assert epochs(lost) == list(range(1, 10))
    fault_table("PreemptMode=SUSPEND,GANG, lock stale", "by itself", "0 of 9", "equal")
