"""The state of a trial, from its files and its job."""

from pathlib import Path
from types import ModuleType

import pytest

from harness.base.errors import UserError
from harness.base.locks import held_lock
from harness.cluster.known_places import all_places
from harness.cluster.launch import due
from harness.cluster.local.place import ThisMachine
from harness.cluster.place import NoAnswer
from harness.cluster.records import EVERY, new_record, read_records
from harness.cluster.slurm import commands
from harness.cluster.slurm.place import Slurm
from harness.cluster.states import launch_lock, survey
from harness.runs.run import CLAIM


def one(toy: ModuleType, folder: Path, **keys: object):
    sweep = toy.make_sweep(folder, {}, **keys)
    [trial] = sweep.trials
    trial.run.folder.mkdir(parents=True)
    return sweep, trial.run


def state(sweep, jobs: dict | None = None, **options: object) -> str:
    slurm = Slurm(max_age_s=1e9, _jobs=jobs or {}, _asked_at=1e18)
    [found] = survey(sweep, {"slurm": slurm, "local": ThisMachine()}, **options)
    return found.state


def submitted(sweep, jobs: dict[str, str], when: float = 0.0, **options: object):
    """Leave the record of a submission; returns it and the name of its jobs."""
    record = new_record(sweep.folder, "slurm", list(jobs), **options)
    record.state, record.jobs, record.time = "submitted", jobs, when or record.time
    record.write()
    return record, f"toys.{record.token}"


def test_a_result_on_disk_is_the_only_proof_of_completion(toy: ModuleType, tmp_path: Path) -> None:
    sweep, run = one(toy, tmp_path)
    assert state(sweep) == "missing"
    run.set_status("complete")
    assert state(sweep) != "complete"
    run.result_file.write_text("{}")
    assert state(sweep) == "complete"


def test_running_means_that_somebody_alive_holds_the_run(toy: ModuleType, tmp_path: Path) -> None:
    sweep, run = one(toy, tmp_path)
    run.set_status("running")
    assert state(sweep) == "died"
    with run.lock():
        assert state(sweep) == "running"
    with held_lock(run.folder / CLAIM):
        assert state(sweep) == "running"


@pytest.mark.parametrize(
    ("written", "hindered", "is_due"),
    [("stopped", False, True), ("failed", True, True), ("failed", False, False)],
)
def test_what_was_stopped_or_hindered_is_due_and_what_failed_waits_to_be_asked_for(
    toy: ModuleType, tmp_path: Path, written: str, hindered: bool, is_due: bool
) -> None:
    sweep, run = one(toy, tmp_path)
    run.set_status(written, error="out of luck", reason="told to", hindered=hindered)
    [view] = survey(sweep)
    assert (view.state, view.is_due) == (written, is_due)
    assert view.note == ("out of luck" if written == "failed" else "told to")
    assert len(due([view])) == is_due
    assert due([view], retry_failed=True) == [view]


def test_a_submitted_trial_without_a_job_has_died(toy: ModuleType, tmp_path: Path) -> None:
    sweep, run = one(toy, tmp_path)
    run.set_status("submitted")
    _, name = submitted(sweep, {run.signature: "9"})
    assert state(sweep, {"9": ("PENDING", "Priority", name)}) == "queued"
    assert state(sweep, {"9": ("RUNNING", "None", name)}) == "running"
    assert state(sweep, {}) == "died"


def test_a_run_whose_folder_was_deleted_waits_for_its_job(toy: ModuleType, tmp_path: Path) -> None:
    sweep, run = one(toy, tmp_path)
    _, name = submitted(sweep, {run.signature: "9"})
    run.folder.rmdir()
    assert state(sweep, {"9": ("PENDING", "Priority", name)}) == "queued"
    assert state(sweep, {}) == "missing"


def test_a_trial_between_mark_and_job_id_is_on_its_way_while_its_launcher_lives(
    toy: ModuleType, tmp_path: Path
) -> None:
    sweep, run = one(toy, tmp_path)
    run.set_status("submitted")
    new_record(sweep.folder, "slurm", [run.signature]).write()
    with held_lock(launch_lock(sweep)):
        assert state(sweep) == "queued"
    assert state(sweep) == "died"


def test_a_stopped_trial_whose_job_is_back_in_the_queue_waits(
    toy: ModuleType, tmp_path: Path
) -> None:
    sweep, run = one(toy, tmp_path)
    run.set_status("stopped")
    _, name = submitted(sweep, {run.signature: "9_2"})
    assert state(sweep, {"9_2": ("PENDING", "BeginTime", name)}) == "queued"
    assert state(sweep, {"9_2": ("COMPLETING", "None", name)}) == "running"
    assert state(sweep, {}) == "stopped"


def test_a_failed_trial_whose_job_has_not_ended_waits_for_it(
    toy: ModuleType, tmp_path: Path
) -> None:
    sweep, run = one(toy, tmp_path)
    _, name = submitted(sweep, {run.signature: "9_2"})
    for hindered in (True, False):
        run.set_status("failed", error="Connection closed by peer", hindered=hindered)
        waits = "queued" if hindered else "failed"
        for how in ("PENDING", "COMPLETING"):
            jobs = {"9_2": (how, "BeginTime", name)}
            assert state(sweep, jobs) == waits
            assert state(sweep, jobs, retry_failed=True) == "queued"
        assert state(sweep, {}, retry_failed=True) == "failed"


def test_squeue_is_asked_once_for_all_trials_and_again_at_the_next_look(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = toy.make_sweep(tmp_path, {"work.quality": {"grid": [0.1, 0.2, 0.3]}})
    jobs = {trial.signature: f"9_{trial.index}" for trial in sweep.trials}
    _, name = submitted(sweep, jobs)
    for trial in sweep.trials:
        trial.run.set_status("submitted")
    asked: list[int] = []
    there = {f"9_{n}": ("PENDING", "Priority", name) for n in range(3)}
    monkeypatch.setattr(commands, "my_jobs", lambda: asked.append(1) or there)
    places = all_places()
    for looks in (1, 2):
        assert [view.state for view in survey(sweep, places)] == ["queued"] * 3
        assert len(asked) == looks


def test_squeue_is_not_asked_when_the_folders_tell_all(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep, run = one(toy, tmp_path)
    submitted(sweep, {run.signature: "9"})
    run.set_status("failed", error="x")
    monkeypatch.setattr(commands, "my_jobs", lambda: pytest.fail("squeue was asked"))
    assert [v.state for v in survey(sweep)] == ["failed"]


def test_a_controller_that_never_answered_is_waited_for_when_following(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep, run = one(toy, tmp_path)
    run.set_status("submitted")
    submitted(sweep, {run.signature: "9"})

    def no_answer() -> None:
        raise UserError("squeue: nothing within 30 s")

    monkeypatch.setattr(commands, "my_jobs", no_answer)
    asked: list[int] = []

    def no_name() -> str:
        asked.append(1)
        raise NoAnswer("scontrol: nothing within 30 s")

    monkeypatch.setattr(commands, "cluster_name", no_name)
    for _ in range(3):
        record, _ = submitted(sweep, {run.signature: "9"})
        record.site = "here"
        record.write()
    [view] = survey(sweep, all_places(patient=True))
    assert (view.state, view.note) == ("queued", "SLURM does not answer")
    assert len(asked) == 1  # not for each record
    with pytest.raises(UserError, match="nothing within 30 s"):
        survey(sweep)


def test_a_run_that_a_search_ended_is_done_for_it_and_due_for_others(
    toy: ModuleType, tmp_path: Path
) -> None:
    sweep, run = one(toy, tmp_path, backend="ray", scheduler={"asha": {}})
    run.set_status("stopped", reason="stopped early by ASHA at epoch 2", pruned=True)
    [view] = survey(sweep)
    assert (view.state, view.is_due) == ("ended early", False)
    plain = toy.make_sweep(tmp_path, {})
    [view] = survey(plain)
    assert (view.state, view.is_due) == ("stopped", True)


def test_a_run_that_was_ended_early_is_done_while_its_search_continues(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = {"work.quality": {"grid": [0.1, 0.2, 0.3]}}
    sweep = toy.make_sweep(tmp_path, search, backend="ray", scheduler={"asha": {}})
    record, name = submitted(sweep, dict.fromkeys((t.signature for t in sweep.trials), ""),
                             backend="ray")
    record.jobs = {EVERY: "9"}
    record.write()
    sweep.trials[0].run.set_status("stopped", reason="by ASHA", pruned=True)
    sweep.trials[1].run.set_status("stopped", reason="the driver was killed")
    sweep.trials[2].run.set_status("submitted")
    monkeypatch.setattr(commands, "my_jobs", lambda: {"9": ("RUNNING", "None", name)})
    states = [(view.state, view.note) for view in survey(sweep)]
    assert states == [("ended early", "by ASHA"), *[("queued", "waits in the search")] * 2]
    monkeypatch.setattr(commands, "my_jobs", lambda: {"9": ("PENDING", "None", name)})
    assert [view.note for view in survey(sweep)] == ["by ASHA", "", ""]


def test_unreadable_files_are_errors_never_an_empty_state(toy: ModuleType, tmp_path: Path) -> None:
    sweep, run = one(toy, tmp_path)
    record = new_record(sweep.folder, "local", [run.signature])
    record.file.write_text('{"token": ')
    with pytest.raises(UserError, match=r"record\.json: not a record of submitted jobs"):
        survey(sweep)
    record.file.unlink()
    run.status_file.write_text("{")
    with pytest.raises(UserError, match=r"status\.json: cannot be read"):
        survey(sweep)


def test_any_living_job_of_a_trial_counts_whichever_was_recorded_last(
    toy: ModuleType, tmp_path: Path
) -> None:
    sweep, run = one(toy, tmp_path)
    run.set_status("submitted")
    names = {}
    for when, job in ((1.0, "1"), (3.0, "3"), (2.0, "2")):
        _, names[job] = submitted(sweep, {run.signature: job}, when)
    assert [r.jobs[run.signature] for r in read_records(sweep.folder)] == ["1", "2", "3"]
    for job, name in names.items():
        assert state(sweep, {job: ("PENDING", "", name)}) == "queued"
    assert state(sweep, {"1": ("PENDING", "", names["2"])}) == "died"
    for record in read_records(sweep.folder):
        record.write("ended")
    assert state(sweep, {"3": ("PENDING", "", names["3"])}) == "died"


def test_a_damaged_file_is_named_and_all_other_trials_are_shown(
    toy: ModuleType, tmp_path: Path
) -> None:
    sweep = toy.make_sweep(tmp_path, {"work.quality": {"grid": [0.1, 0.2, 0.3, 0.4]}})
    runs = [trial.run for trial in sweep.trials]
    for run in runs:
        run.set_status("failed", error="x")
    runs[1].status_file.write_text('{"state": 5}')
    runs[2].result_file.write_text('{"mAP": NaN}')
    faults: list[str] = []
    found = survey(sweep, faults=faults)
    assert [one.state for one in found] == ["failed", "unreadable", "unreadable", "failed"]
    assert not any(one.is_due for one in found)
    assert [str(runs[1].status_file) in faults[0], str(runs[2].result_file) in faults[1]] == [
        True, True
    ]  # fmt: skip
    assert [one.note for one in found][1:3] == faults


def test_without_a_record_that_can_be_read_no_trial_counts_as_dead(
    toy: ModuleType, tmp_path: Path
) -> None:
    sweep, run = one(toy, tmp_path)
    run.set_status("running")
    new_record(sweep.folder, "local", [run.signature]).file.write_text("{}")
    faults: list[str] = []
    [found] = survey(sweep, faults=faults)
    assert (found.state, found.note) == (
        "queued", "its jobs are not known, as a record of them cannot be read"
    )
    assert "record.json: not a record of submitted jobs" in faults[0]
