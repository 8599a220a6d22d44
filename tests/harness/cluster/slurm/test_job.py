"""What a job does around a run, without a scheduler."""

import json
import logging
import os
import signal
import time
from pathlib import Path

import pytest

from harness.base import locks
from harness.base.locks import lock_holder
from harness.cluster import rank_processes
from harness.cluster.rank_processes import TrialFailed
from harness.cluster.slurm import job
from harness.runs import stopping
from harness.runs.run import Run

SLURM = {
    "SLURM_JOB_ID": "41234", "SLURM_ARRAY_JOB_ID": "41230", "SLURM_ARRAY_TASK_ID": "4",
    "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NTASKS": "4", "SLURM_CPUS_PER_TASK": "6",
    "SLURM_JOB_NODELIST": "gpu[07-08]", "SLURM_STEP_ID": "5",
}
RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "SVLL_ATTEMPT", "OMP_NUM_THREADS")


@pytest.fixture
def slurm_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in RANKS:
        monkeypatch.setenv(name, "gone after the test")
        monkeypatch.delenv(name)
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Stand-ins for squeue and scontrol; returns what scontrol was called with."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr(job.time, "sleep", lambda seconds: None)

    def make(state: str, requeue: str) -> Path:
        for name, text in {"squeue": f"echo {state}", "scontrol": requeue}.items():
            (folder / name).write_text(f'#!/bin/sh\necho "$@" >> {folder / name}.calls\n{text}\n')
            (folder / name).chmod(0o755)
        return folder / "scontrol.calls"

    return make


def test_ranks_come_from_slurms_variables(
    slurm_job: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASTER_PORT", "29500")  # the login shell's, which two jobs would share
    job.set_slurm_ranks()
    assert "MASTER_PORT" not in os.environ
    assert {name: os.environ[name] for name in RANKS} == {
        "RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "gpu07",
        "SVLL_ATTEMPT": "gpu07.41234.5.0", "OMP_NUM_THREADS": "6",
    }
    for name, value in {"SLURM_STEP_ID": "6", "SLURM_RESTART_COUNT": "1"}.items():
        before = os.environ["SVLL_ATTEMPT"]
        monkeypatch.setenv(name, value)
        job.set_slurm_ranks()
        assert os.environ["SVLL_ATTEMPT"] != before  # another step, another attempt


def test_a_task_beside_others_of_a_bare_step_is_a_rank(
    slurm_job: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    job.join_step()
    assert (os.environ["RANK"], os.environ["LOCAL_RANK"], os.environ["WORLD_SIZE"]) == (
        "3", "1", "2"
    )
    assert os.environ["MASTER_ADDR"] == "gpu07"


@pytest.mark.parametrize(
    "setting",
    [{}, {"SLURM_STEP_NUM_TASKS": "1"}, {"SLURM_STEP_NUM_TASKS": "2", "RANK": "5"}],
    ids=["in an allocation's shell", "alone in its step", "under torchrun"],
)
def test_ranks_that_another_gave_or_nobody_stay_as_they_are(
    slurm_job: None, monkeypatch: pytest.MonkeyPatch, setting: dict[str, str]
) -> None:
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS", raising=False)
    for name, value in setting.items():
        monkeypatch.setenv(name, value)
    job.join_step()
    assert os.environ.get("RANK") == setting.get("RANK")
    assert "WORLD_SIZE" not in os.environ


def test_a_job_of_one_rank_needs_no_network(
    slurm_job: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "1")
    job.set_slurm_ranks()
    assert os.environ["MASTER_ADDR"] == "127.0.0.1"


def test_fewer_cores_than_asked_for_are_warned_about(
    slurm_job: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {5})
    job.set_slurm_ranks()
    with caplog.at_level(logging.INFO, logger="harness"):
        job.check_cores()
    assert "cores 5" in caplog.text
    assert "6 cores were asked for, srun gave 1" in caplog.text


def test_a_running_job_is_put_back_by_its_array_id(slurm_job: None, commands) -> None:
    calls = commands("RUNNING", "exit 0")
    job.requeue()
    assert calls.read_text().splitlines() == ["requeue 41230_4"]


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED", ""])
def test_a_job_that_is_being_cancelled_is_not_put_back(
    slurm_job: None, commands, state: str
) -> None:
    calls = commands(state, "exit 0")
    job.requeue()
    assert not calls.exists()


def test_a_requeue_that_fails_or_hangs_is_tried_three_times(
    slurm_job: None, commands, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = commands("RUNNING", "exit 1")
    job.requeue()
    assert len(calls.read_text().splitlines()) == 3
    assert "launch the sweep again" in caplog.text
    monkeypatch.setattr(job, "REQUEUE_LIMIT_S", 0.3)
    commands("RUNNING", "exec sleep 30")
    started = time.monotonic()
    job.requeue()
    assert time.monotonic() - started < 10


def test_time_outs_differ_from_preemptions_by_the_time_left_and_only_they_have_a_limit(
    slurm_job: None, commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(job.MAX_TIME_OUTS, "1")
    monkeypatch.setenv(job.SIGNAL_DELAY_S, "300")
    run = Run(tmp_path)
    run.set_status("stopped", reason="asked to in stage2", attempts=3)
    last = {"0:40": False}  # the second time-out
    for left in ("2:00:00", "1-00:00:00", "UNLIMITED", "4:50", "9:00", "0:40"):
        calls = commands(f"'RUNNING|{left}'", "exit 0")
        calls.unlink(missing_ok=True)
        job.requeue(run)
        assert calls.exists() == last.get(left, True), left
    status = run.status()
    assert (status["preemptions"], status["time_outs"], status["attempts"]) == (4, 2, 3)
    assert status["state"] == "stopped"
    assert "reached its time limit 2 times, allowed are 1 (resources.max_time_outs)" in (
        status["reason"]
    )


def test_a_signal_that_comes_at_the_start_because_the_limit_is_short_is_counted_once_it_is_known(
    slurm_job: None, commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv(job.SIGNAL_DELAY_S, "90")
    run = Run(tmp_path)
    run.set_status("stopped", reason="asked to")
    counts = []
    for left, limit in (("0:50", "1:00"), ("0:11", "1:00"), ("0:50", "1:00"), ("3:00", "4:00")):
        calls = commands(f"'RUNNING|{left}|{limit}'", "exit 0")
        job.requeue(run, [run])
        counts.append(run.status().get("time_outs", 0))
    assert counts == [0, 1, 2, 2]
    assert run.status()["preemptions"] == 1
    assert len(calls.read_text().splitlines()) == 4
    assert ("came 50 s before the time limit of 60 s, which is below slurm.signal_delay_s (90 s)"
            in caplog.text)


def test_a_run_that_its_time_limits_leave_no_step_is_not_requeued_for_ever(
    slurm_job: None, commands, tmp_path: Path
) -> None:
    run = Run(tmp_path)
    run.set_status("stopped", reason="asked to", attempts=3)
    requeued = []
    for step in (None, 1, None, None, 2, None, None, None):
        if step is not None:
            (run.checkpoints / f"stage1-0001-{step:06d}").mkdir(parents=True)
        calls = commands("'RUNNING|0:40|1:00:00'", "exit 0")
        calls.unlink(missing_ok=True)
        job.requeue(run, [run])
        requeued.append(calls.exists())
    assert requeued == [True] * 7 + [False]
    assert run.status()["reason"] == (
        "reached its time limit of 3600 s 3 times in a row without a new checkpoint; give it more "
        "time (resources.time), or launch it again"
    )


def test_a_run_that_gets_further_without_checkpoints_is_requeued(
    slurm_job: None, commands, tmp_path: Path
) -> None:
    run, requeued = Run(tmp_path), []
    for kept in (100, 200, 300, 400, 500, 500, 500, 500):
        facts = {k: v for k, v in run.status().items() if k not in ("state", "time", "reason")}
        run.set_status("stopped", reason=f"while encoding images, {kept} are kept", **facts)
        calls = commands("'RUNNING|0:40|1:00:00'", "exit 0")
        calls.unlink(missing_ok=True)
        job.requeue(run)
        requeued.append(calls.exists())
    assert requeued == [True] * 7 + [False]


def test_a_search_is_requeued_as_long_as_one_of_its_runs_gets_further(
    slurm_job: None, commands, tmp_path: Path
) -> None:
    own, runs, requeued = Run(tmp_path / "job"), [Run(tmp_path / "a"), Run(tmp_path / "b")], []
    for step in (1, 2, 3, 4, 5, None, None, None):
        if step is not None:
            (runs[step % 2].checkpoints / f"stage1-0001-{step:06d}").mkdir(parents=True)
        calls = commands("'RUNNING|0:40|1:00:00'", "exit 0")
        calls.unlink(missing_ok=True)
        job.requeue(own, runs)
        requeued.append(calls.exists())
    assert requeued == [True] * 7 + [False]


@pytest.mark.parametrize("limit", ["1:00", "10:00"])
def test_only_a_short_limit_that_is_known_is_outlasted(
    slurm_job: None, commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setenv(job.SIGNAL_DELAY_S, "90")
    stops: list[float] = []
    monkeypatch.setattr(job, "stop_after", lambda seconds, instead_of: stops.append(seconds))
    commands(f"'RUNNING|0:57|{limit}'", "exit 0")
    run = Run(tmp_path)
    job.outlast_early_signal(run)
    assert not stops
    run.set_status("stopped", short_limit_s=60.0)
    job.outlast_early_signal(run)
    assert stops == ([45.0] if limit == "1:00" else [])
    assert os.environ[job.SIGNAL_DELAY_S] == ("12.0" if limit == "1:00" else "90")


@pytest.fixture
def own_signals():
    before = {n: signal.getsignal(n) for n in (signal.SIGUSR2, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    with stopping.stop_on_signals():
        pass  # forgets the request


def test_a_signal_before_the_run_has_begun_puts_the_job_back_at_once(
    slurm_job: None, own_signals: None, commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = commands("RUNNING", "exit 0")
    monkeypatch.setenv("SLURM_PROCID", "0")
    # as if the signal came while this was being logged
    monkeypatch.setattr(job, "check_cores", lambda: os.kill(os.getpid(), signal.SIGUSR2))
    monkeypatch.setattr(job, "execute", lambda run: pytest.fail("the run was begun"))
    with pytest.raises(SystemExit) as ended:
        job.run_trial(str(tmp_path))
    assert ended.value.code == 0
    assert calls.read_text().splitlines() == ["requeue 41230_4"]


def test_a_job_whose_other_rank_cannot_start_fails_and_is_not_put_back(
    slurm_job: None, own_signals: None, commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = commands("RUNNING", "exit 0")
    for name, value in {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2"}.items():
        monkeypatch.setenv(name, value)
    # srun sends TERM to the first rank before it waits for the other one
    monkeypatch.setattr(job, "check_cores", lambda: os.kill(os.getpid(), signal.SIGTERM))
    Run(tmp_path).create("run: {experiment: os.getcwd}\n")
    with pytest.raises(TrialFailed, match=r"^ended by SIGTERM while it waited for 1 of 2 ranks"):
        job.run_trial(str(tmp_path))
    assert not calls.exists()
    assert Run(tmp_path).status()["hindered"]


def test_only_the_first_rank_puts_a_stopped_job_back(
    slurm_job: None, own_signals: None, commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = commands("RUNNING", "exit 0")
    monkeypatch.setattr(job, "execute", lambda run: "stopped")
    with pytest.raises(SystemExit):
        job.run_trial(str(tmp_path))
    assert not calls.exists()


def test_a_failed_run_makes_its_job_fail_with_the_runs_own_error(
    slurm_job: None, own_signals: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Run(tmp_path).set_status("failed", error="loss is nan at step 7")
    monkeypatch.setattr(job, "execute", lambda run: "failed")
    with pytest.raises(TrialFailed, match="loss is nan at step 7"):
        job.run_trial(str(tmp_path))


def write_lock(run: Run, *, job: str, host: str = "another-node") -> None:
    run.folder.mkdir(parents=True, exist_ok=True)
    run.lock_file.write_text(json.dumps(
        {"host": host, "pid": 1, "started": "1", "job": job, "token": "t"}
    ))


def test_the_lock_of_this_jobs_killed_attempt_is_removed(
    slurm_job: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "HEARTBEAT_S", 0.1)
    run = Run(tmp_path)
    write_lock(run, job="41230_4")
    rank_processes.drop_own_lock(run)
    assert lock_holder(run.lock_file) is None


def test_a_lock_of_another_job_or_with_a_heartbeat_stays(
    slurm_job: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path)
    write_lock(run, job="41230_5")
    rank_processes.drop_own_lock(run)
    assert lock_holder(run.lock_file) is not None
    write_lock(run, job="41230_4")
    monkeypatch.setattr(
        rank_processes.time, "sleep", lambda seconds: os.utime(run.lock_file, (9e9, 9e9))
    )
    rank_processes.drop_own_lock(run)
    assert lock_holder(run.lock_file) is not None
