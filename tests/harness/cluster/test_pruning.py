"""Old job folders and frozen code are deleted, never what an unfinished trial or a job needs."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from harness.base.files import write_json
from harness.base.locks import held_lock
from harness.base.unused import DAY_S, UNUSED_DAYS
from harness.cluster.launch import launch
from harness.cluster.local.place import worker_lock
from harness.cluster.place import NoAnswer
from harness.cluster.pruning import prune, unneeded
from harness.cluster.records import Record, new_record, read_records
from harness.cluster.slurm import commands
from harness.sweeps.reading import Sweep

OLD_S = (UNUSED_DAYS + 1) * DAY_S
Submit = Callable[..., Record]


@pytest.fixture
def sweep(toy: ModuleType, tmp_path: Path) -> Sweep:
    return toy.make_sweep(tmp_path, {"work.quality": {"grid": [0.1, 0.2]}})


@pytest.fixture
def submit(sweep: Sweep) -> Submit:
    """Leave a submission of some trials as it looks after `age` seconds; returns its record."""

    def submitted(*trials: int, code: str, age: float = OLD_S, **changes: Any) -> Record:
        signatures = [sweep.trials[trial].signature for trial in trials]
        place = changes.pop("place", "local")
        frozen = sweep.folder.resolve() / "code" / code
        frozen.mkdir(parents=True, exist_ok=True)
        write_json(frozen.with_name(f"{code}.git.json"), {})
        record = new_record(sweep.folder, place, signatures, code=str(frozen), **changes)
        record.jobs = {signature: f"47_{n}" for n, signature in enumerate(signatures)}
        record.time -= age
        record.write("submitted")
        Path(record.folder, "worker-0.log").write_text("a log")
        for path in (frozen, frozen.with_name(f"{code}.git.json"), Path(record.folder)):
            os.utime(path, (time.time() - age,) * 2)
        return record

    return submitted


def complete(sweep: Sweep, *trials: int) -> None:
    for trial in trials:
        write_json(sweep.trials[trial].run.result_file, {"mAP": 0.5})
        sweep.trials[trial].run.set_status("complete")


def names(sweep: Sweep) -> set[str]:
    found = [*sweep.folder.glob("jobs/*/"), *sweep.folder.glob("code/*")]
    return {path.name for path in found}


def test_a_launch_deletes_what_complete_trials_needed_long_ago(
    sweep: Sweep, submit: Submit
) -> None:
    submit(0, 1, code="a")
    recent = submit(0, code="b", age=OLD_S - 2 * DAY_S)
    (sweep.folder / "jobs" / "before").mkdir()
    os.utime(sweep.folder / "jobs" / "before", (1, 1))
    complete(sweep, 0, 1)
    assert launch(sweep, "local") == []
    assert names(sweep) == {recent.token, "before", "b", "b.git.json"}
    assert [record.token for record in read_records(sweep.folder)] == [recent.token]


@pytest.mark.parametrize("state", ["stopped", "failed", "running", "submitted"])
def test_an_unfinished_trial_keeps_its_newest_record_its_code_and_its_log(
    sweep: Sweep, submit: Submit, state: Any
) -> None:
    logged, _, newest = (submit(1, code=code) for code in "abc")
    submit(0, code="d")
    complete(sweep, 0)
    run = sweep.trials[1].run
    run.set_status(state, log=str(Path(logged.folder, "worker-0.log")), code="/moved/code/e")
    submit(0, code="e")
    prune(sweep.folder)
    assert names(sweep) == {logged.token, newest.token, "c", "c.git.json", "e", "e.git.json"}


def test_what_a_living_worker_or_run_needs_stays(sweep: Sweep, submit: Submit) -> None:
    record = submit(0, code="a")
    complete(sweep, 0)
    with held_lock(worker_lock(record.file, 0)):
        os.utime(record.folder, (1, 1))
        assert unneeded(sweep.folder) == []
    os.utime(record.folder, (1, 1))
    with sweep.trials[0].run.lock():
        assert unneeded(sweep.folder) == []
    assert {path.name for path in unneeded(sweep.folder)} == {record.token, "a", "a.git.json"}


def test_what_a_queued_job_needs_stays_and_so_does_all_when_the_scheduler_is_silent(
    sweep: Sweep, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    queued, over = submit(0, code="a", place="slurm"), submit(0, code="b", place="slurm")
    complete(sweep, 0)

    asked: list[int] = []
    there = {"47_0": ("PENDING", "Priority", f"toys.{queued.token}")}  # both had this number
    monkeypatch.setattr(commands, "my_jobs", lambda: asked.append(1) or there)
    assert {path.name for path in unneeded(sweep.folder)} == {over.token, "b", "b.git.json"}
    assert len(asked) == 1

    def silent() -> None:
        raise NoAnswer("squeue: no answer")

    monkeypatch.setattr(commands, "my_jobs", silent)
    before = names(sweep)
    prune(sweep.folder)
    assert names(sweep) == before


def test_a_search_keeps_all_until_the_trials_that_it_proposed_have_ended_too(
    sweep: Sweep, submit: Submit
) -> None:
    record = submit(0, code="a", backend="ray")
    complete(sweep, 0)
    sweep.trials[1].run.set_status("stopped")  # proposed later: its record does not name it
    assert unneeded(sweep.folder) == []
    sweep.trials[1].run.set_status("stopped", pruned=True)
    assert {path.name for path in unneeded(sweep.folder)} == {record.token, "a", "a.git.json"}


def test_a_submission_whose_launcher_was_killed_stays(sweep: Sweep, submit: Submit) -> None:
    record = submit(0, code="a")
    complete(sweep, 0)
    record.write("submitting")
    os.utime(record.folder, (1, 1))
    assert unneeded(sweep.folder) == []


def test_a_wrong_clock_of_this_machine_deletes_nothing(
    sweep: Sweep, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(0, code="a", age=DAY_S)
    complete(sweep, 0)
    year_ahead = time.time() + 365 * DAY_S
    monkeypatch.setattr(time, "time", lambda: year_ahead)
    assert unneeded(sweep.folder) == []


def test_what_a_kill_left_of_a_deletion_is_deleted_later(sweep: Sweep, submit: Submit) -> None:
    record = submit(0, code="a")
    complete(sweep, 0)
    left = Path(record.folder).rename(Path(record.folder).with_name(f".{record.token}.x.tmp"))
    os.utime(left, (1, 1))
    prune(sweep.folder)
    assert names(sweep) == set()


def test_a_trial_whose_run_was_removed_needs_nothing_but_its_job_if_that_lives(
    sweep: Sweep, submit: Submit
) -> None:
    record = submit(0, 1, code="a")
    complete(sweep, 0)
    sweep.trials[1].run.set_status("stopped")
    assert unneeded(sweep.folder) == []
    shutil.rmtree(sweep.trials[1].run.folder)
    with held_lock(worker_lock(record.file, 0)):
        os.utime(record.folder, (1, 1))
        assert unneeded(sweep.folder) == []
    os.utime(record.folder, (1, 1))
    assert {path.name for path in unneeded(sweep.folder)} == {record.token, "a", "a.git.json"}
