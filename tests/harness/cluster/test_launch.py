"""What a launch submits, and what it does not change."""

import json
from pathlib import Path
from types import ModuleType

import pytest

from harness.base.errors import UserError
from harness.base.files import read_json, write_json
from harness.base.locks import held_lock
from harness.cluster import array_plan
from harness.cluster.launch import cancel, launch
from harness.cluster.local.place import ThisMachine
from harness.cluster.ray import plan as ray_plan
from harness.cluster.records import new_record
from harness.cluster.slurm.before_and_after import job_count
from harness.cluster.states import launch_lock, survey


def one(toy: ModuleType, folder: Path, **keys: object):
    sweep = toy.make_sweep(folder, {}, **keys)
    [trial] = sweep.trials
    trial.run.folder.mkdir(parents=True)
    return sweep, trial.run


def test_jobs_before_and_after_the_trials_count_where_jobs_are_limited(
    toy: ModuleType, tmp_path: Path
) -> None:
    sweep = toy.make_sweep(tmp_path / "a", {}, prepare=True, report=True)
    assert [job_count(sweep, trials) for trials in (1, 2, 100)] == [1, 2, 2]
    sweep = toy.make_sweep(tmp_path / "b", {}, backend="ray", prepare=True, report=True)
    assert job_count(ray_plan.jobs(sweep, 100)[0], 100) == 0
    assert [plan.jobs(sweep, 100)[1] for plan in (array_plan, ray_plan)] == [100, 1]


def test_a_path_that_cannot_be_a_folder_is_an_error(toy: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    sweep = toy.make_sweep(tmp_path, {})
    with pytest.raises(UserError, match="cannot be written: Not a directory"):
        launch(sweep, "local")


def test_a_launch_that_fails_leaves_each_status_as_it_was(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = toy.make_sweep(tmp_path, {"work.quality": {"grid": [0.1, 0.2]}})
    failed = sweep.trials[1].run
    failed.set_status("failed", error="before", attempts=3, hindered=True)
    before = failed.status()

    def refuse(*args: object, **options: object) -> None:
        assert [v.status["state"] for v in survey(sweep)] == ["submitted"] * 2
        raise UserError("no")

    monkeypatch.setattr(ThisMachine, "submit", refuse)
    with pytest.raises(UserError, match="no"):
        launch(sweep, "local")
    assert sweep.trials[0].run.status() == {"state": "new"}
    assert failed.status() == before


def test_a_launch_writes_down_its_trials_and_their_newest_settings(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ThisMachine, "submit", lambda *args, **options: None)
    sweep = toy.make_sweep(tmp_path, {"work.quality": {"grid": [0.1, 0.2]}}, seeds=[5])
    launch(sweep, "local")
    content = read_json(sweep.folder / "sweep.json")
    assert content["trials"] == [
        {"point": {"work.quality": q}, "seed": 5, "signature": t.signature}
        for q, t in zip((0.1, 0.2), sweep.trials, strict=True)
    ]
    other = toy.make_sweep(
        tmp_path, {"work.quality": {"grid": [0.1, 0.2]}}, seeds=[5],
        overrides={"run.experiment": "another.run"},
    )
    launch(other, "local")
    assert "another.run" in other.trials[0].run.config_file.read_text()


def test_where_there_is_no_slurm_trials_that_ended_there_hinder_neither_launch_nor_cancellation(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    sweep = toy.make_sweep(tmp_path, {"work.quality": {"grid": [0.1, 0.2, 0.3]}})
    done, running, missing = (trial.run for trial in sweep.trials)
    record = new_record(sweep.folder, "slurm", [done.signature, running.signature])
    record.site, record.origin = "far", sweep.origin
    record.jobs = {done.signature: "7_0", running.signature: "7_1"}
    record.write("submitted")
    write_json(done.result_file, {})
    running.set_status("running")
    monkeypatch.setattr(ThisMachine, "submit", lambda *args, **options: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with running.lock():
        assert [one.trial.run for one in launch(sweep, "local")] == [missing]
        assert "1 trial submitted to the cluster far, which does not answer here" in caplog.text
        with pytest.raises(UserError, match="far, which does not answer here"):
            cancel(sweep)
    assert missing.status()["state"] == "stopped"


def test_a_second_launcher_is_refused(toy: ModuleType, tmp_path: Path) -> None:
    sweep, _ = one(toy, tmp_path)
    with held_lock(launch_lock(sweep)), pytest.raises(UserError, match="in use by process"):
        launch(sweep, "local")


def test_records_hold_paths_and_strings_only(toy: ModuleType, tmp_path: Path) -> None:
    sweep, run = one(toy, tmp_path)
    record = new_record(sweep.folder, "local", [run.signature], cpus=2)
    record.write()
    content = json.loads(record.file.read_text())
    assert content["trials"] == [run.signature]
    assert record.file.parent.stat().st_mode & 0o777 == 0o700
