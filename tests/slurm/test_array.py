"""Sweeps as job arrays on a real SLURM."""

import dataclasses
import os
import signal
import site
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TOYS = Path(__file__).parents[1] / "toy"
sys.path.insert(0, str(TOYS))

import toy_experiment as toy  # noqa: E402

from harness.base.files import read_json  # noqa: E402
from harness.cluster.causes import NOT_BEGUN  # noqa: E402
from harness.cluster.launch import cancel, launch  # noqa: E402
from harness.cluster.records import read_records  # noqa: E402
from harness.cluster.slurm import commands  # noqa: E402
from harness.cluster.states import survey  # noqa: E402
from harness.reporting.terminal import troubles  # noqa: E402
from harness.sweeps.reading import Sweep  # noqa: E402
from tests.slurm.sweeps import assert_whole, container, job_of, mine, over, states, until_running  # noqa: E402


@pytest.fixture(autouse=True)
def surroundings(slurm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs find the toy experiment by what the login node exports."""
    monkeypatch.setenv("PYTHONPATH", str(TOYS))


def test_a_failed_trial_fails_its_job_and_may_run_again_once_that_has_ended(
    slurm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sweep = toy.make_sweep(tmp_path, {"work.fail": {"grid": ["raise", "no"]}},
                           slurm={"setup": ["trap 'sleep 5' EXIT"]})  # as a rank that hangs
    launch(sweep, "slurm")
    toy.until(lambda: states(sweep)[0] == "failed")
    with monkeypatch.context() as patch:
        patch.setattr("harness.cluster.launch.ENDING_S", 0.0)
        assert launch(sweep, "slurm", retry_failed=True) == []
    assert caplog.messages == ["1 trial failed, but the job has not ended: not submitted again; "
                               "wait for its end, or end it with --cancel"]
    one = survey(sweep, retry_failed=True)[0]
    assert (one.state, one.is_due) == ("queued", False)
    assert one.note.startswith("its job has not ended; RuntimeError: the toy broke")
    over(sweep)
    assert states(sweep) == ["failed", "complete"]
    assert "the toy broke" in survey(sweep)[0].note
    assert launch(sweep, "slurm") == []
    number = job_of(sweep, 0)
    assert [v.trial.index for v in launch(sweep, "slurm", retry_failed=True)] == [0]  # waits
    assert len(mine(sweep)) == 1
    cancel(sweep)
    toy.until(lambda: sacct(slurm, number) == "FAILED|1:0")


def test_a_killed_job_resumes_at_once_when_slurm_starts_it_again(
    slurm: Any, tmp_path: Path
) -> None:
    sweep = toy.make_sweep(tmp_path, {}, recipe={"work": {"epochs": 4, "epoch_s": 1.0}})
    launch(sweep, "slurm")
    [trial] = sweep.trials
    toy.until(lambda: len(trial.run.metrics()) >= 2)
    os.kill(read_json(trial.run.folder / "seen-0.json")["pid"], signal.SIGKILL)
    toy.until(lambda: sacct(slurm, job_of(sweep, 0)).startswith("FAILED"))
    assert launch(sweep, "slurm") == []  # its lock may belong to a living process yet
    slurm.run("scontrol", "requeue", job_of(sweep, 0))
    toy.until(trial.run.is_complete)
    assert [entry["epoch"] for entry in trial.run.metrics()] == [1, 2, 3, 4]


def test_a_trial_that_slurm_does_not_restart_has_its_cause_and_resumes_by_a_launch(
    slurm: Any, tmp_path: Path
) -> None:
    sweep = toy.make_sweep(
        tmp_path, {}, recipe={"work": {"epochs": 5, "epoch_s": 1.0}},
        slurm={"nodelist": "node2", "requeue": False, "no_requeue": True},
    )
    launch(sweep, "slurm")
    lose_a_node(slurm, sweep)
    toy.until(lambda: not mine(sweep))
    slurm.start_node("node2")
    sweep.trials[0].run.lock_file.unlink()  # of another machine it looks alive for a minute
    toy.until(lambda: "NODE_FAIL" in survey(sweep)[0].note)
    [view] = survey(sweep)
    assert view.state == "died"
    assert "the node was lost; the same command resumes from the last checkpoint" in view.note
    launch(sweep, "slurm")
    over(sweep)
    assert_whole(sweep, epochs=5, attempts=2)


EARLY_DEATHS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "setup fails": (
        {"setup": ["echo no license left >&2", "exit 3"]},
        ["(exit status 3:0) on node", "its output ends with: no license left (OUTPUT)"],
    ),
    "setup fails without a word": (
        {"setup": ["false || exit 127"]},
        ["exit status 127:0: a program is missing", "it wrote nothing (OUTPUT); ", "slurm.setup"],
    ),
    "no such Python": (
        {"python": "/nowhere/python"},
        ["exit status 2:0: often a file or program that is missing", "slurm.python",
         "execve(): /nowhere/python: No such file or directory (OUTPUT)"],
    ),
    "no runs folder": (
        {"nodelist": "node2"},
        ["exit status 0:53: SLURM could not open the job's output file) on node2", "(run.runs)",
         "no output of it is in FOLDER; "],
    ),
}


def test_a_death_before_python_starts_is_told_with_the_jobs_own_output_and_what_to_do(
    slurm: Any, tmp_path: Path
) -> None:
    sweeps = {}
    for name, (keys, _) in EARLY_DEATHS.items():
        (tmp_path / name / "runs").mkdir(parents=True)
        sweeps[name] = toy.make_sweep(tmp_path / name, {}, slurm=keys)
    hidden = str(tmp_path / "no runs folder" / "runs")
    on_node2 = ["nsenter", f"--target={slurm.pid_of('node2')}", "--mount"]
    subprocess.run([*on_node2, "mount", "-t", "tmpfs", "none", hidden], check=True)
    try:
        for sweep in sweeps.values():
            launch(sweep, "slurm")
        toy.until(lambda: not any(mine(sweep) for sweep in sweeps.values()))
    finally:
        subprocess.run([*on_node2, "umount", hidden], check=True)
    views = {name: survey(sweep)[0] for name, sweep in sweeps.items()}

    def told() -> bool:  # accounting has its last word some seconds after the end
        views.update({name: survey(sweep)[0] for name, sweep in sweeps.items()})
        return all(view.note.startswith("FAILED") for view in views.values())

    toy.until(told)
    for name, (_, parts) in EARLY_DEATHS.items():
        folder = Path(read_records(sweeps[name].folder)[0].folder)
        output = folder / f"{job_of(sweeps[name], 0)}_0_log.err"
        for part in parts:
            said = part.replace("OUTPUT", str(output)).replace("FOLDER", str(folder))
            assert said in views[name].note
        assert views[name].note.endswith(f"; {NOT_BEGUN}")
        assert output.exists() == (name != "no runs folder")
        assert not any("log:" in line for line in troubles([views[name]]))


def lose_a_node(slurm: Any, sweep: Sweep) -> None:
    """Cut node2's power once the trial has made some way."""
    toy.until(lambda: len(sweep.trials[0].run.metrics()) >= 2)
    slurm.kill_node("node2")
    slurm.run("scontrol", "update", "nodename=node2", "state=down", "reason=power cut")


def test_a_preempted_trial_saves_waits_and_ends_as_if_nothing_had_happened(
    slurm: Any, tmp_path: Path, fault_table: Callable[..., None]
) -> None:
    sweep = toy.make_sweep(
        tmp_path, {}, recipe={"work": {"epochs": 6, "epoch_s": 1.0}},
        resources={"nodes": 2, "cpus": 2, "time": "10m"}, slurm={"wrap": container(tmp_path).wrap},
    )
    launch(sweep, "slurm")
    until_running(sweep, 0)
    toy.until(lambda: len(sweep.trials[0].run.metrics()) >= 2)
    slurm.run("srun", "-p", "urgent", "-N2", "--exclusive", "true", timeout=90)
    assert states(sweep)[0] in ("queued", "running")
    assert launch(sweep, "slurm") == []
    over(sweep, patience_s=120)
    assert_whole(sweep, epochs=6, attempts=2)
    fault_table("preemption, user signal on, two nodes", "by itself", "0 of 6", "equal")


HOSTILE = {
    "SBATCH_TIMELIMIT": "1", "SBATCH_NO_REQUEUE": "1", "SBATCH_ARRAY_INX": "0-5",
    "SBATCH_EXPORT": "NONE", "SBATCH_OUTPUT": "/nowhere/log", "SBATCH_OPEN_MODE": "truncate",
    "SBATCH_WAIT": "1", "SBATCH_CLUSTERS": "moon", "SLURM_CLUSTERS": "moon",
    "SLURM_EXPORT_ENV": "NONE", "SLURM_REMOTE_CWD": "/nowhere", "SRUN_DEBUG": "3",
    "SQUEUE_STATES": "SUSPENDED", "SINFO_PARTITION": "moon", "SLURM_TIME_FORMAT": "relative",
}


def test_a_user_signal_puts_the_job_back_whatever_slurms_variables_say(
    slurm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    comment = "it's #1, \\ \"x\" $HOME"
    sweep = toy.make_sweep(
        tmp_path, {"work.quality": {"grid": [0.1, 0.2]}},
        recipe={"work": {"epochs": 4, "epoch_s": 1.0}},
        slurm={"export": "NONE", "comment": comment, "env": {"SQUEUE_STATES": "SUSPENDED"}},
    )
    with monkeypatch.context() as patch:
        for name, value in HOSTILE.items():
            patch.setenv(name, value)
        launch(sweep, "slurm")
        assert len(mine(sweep)) == 2
    shown = slurm.run("scontrol", "show", "job", job_of(sweep, 1))
    assert f"Comment={comment}" in shown
    assert {"TimeLimit=00:10:00", "Requeue=1"} <= set(shown.split())
    toy.until(lambda: all(len(t.run.metrics()) >= 1 for t in sweep.trials))
    slurm.run("scancel", "--signal=USR2", job_of(sweep, 1))
    over(sweep, patience_s=120)
    assert states(sweep) == ["complete", "complete"]
    assert [t.run.status()["attempts"] for t in sweep.trials] == [1, 2]


WAITING = """
import time
from harness.base.files import write_json
from harness.runs.stopping import Stopped, stop_requested

WORD = "old"

def run(run, report=None):
    begun = run.folder / "begun"
    if not begun.exists():
        begun.touch()
        while not stop_requested():
            time.sleep(0.05)
        raise Stopped("told to")
    write_json(run.result_file, {"mAP": 0.5, "word": WORD})
"""


def test_a_job_that_is_put_back_runs_the_code_that_was_submitted(
    slurm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "waiting.py"
    source.write_text(WAITING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    here = tmp_path / toy.ODD
    here.mkdir()
    monkeypatch.chdir(here)
    where = {"runs": str(here / "runs"), "experiment": "waiting.run"}
    sweep = toy.make_sweep(here, {}, recipe={"run": where})
    launch(sweep, "slurm")
    run = sweep.trials[0].run
    toy.until((run.folder / "begun").exists)
    source.write_text(WAITING.replace("old", "new"))
    slurm.run("scancel", "--signal=USR2", job_of(sweep, 0))
    over(sweep, patience_s=120)
    assert run.result() == {"mAP": 0.5, "word": "old"}
    [record] = read_records(sweep.folder)
    assert run.status()["code"] == record.options["code"]
    log = Path(record.folder) / f"{job_of(sweep, 0)}_0_log.err"
    assert "was requeued" in log.read_text()


def test_a_trial_resumes_after_a_short_time_limit_which_it_uses_but_not_for_ever(
    slurm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault_table: Callable[..., None]
) -> None:
    # SLURM cannot know a limit below a minute, and looks at limits twice a minute
    sweep = toy.make_sweep(
        tmp_path, {}, recipe={"work": {"epochs": 45, "epoch_s": 2.0}},
        resources={"time": "15m", "max_time_outs": 0},
    )
    launch(sweep, "slurm")
    [trial] = sweep.trials
    toy.until(lambda: len(trial.run.metrics()) >= 1)
    slurm.run("scontrol", "update", f"jobid={job_of(sweep, 0)}", "timelimit=1")
    # the signal, 90 s before a limit, now comes within half a minute: no limit was reached
    slurm.run("scancel", "--signal=USR2", job_of(sweep, 0))
    toy.until(lambda: trial.run.status().get("short_limit_s") == 60.0, seconds=60)
    assert "time_outs" not in trial.run.status()
    toy.until(lambda: trial.run.status().get("time_outs") == 1, seconds=150)
    assert trial.run.status()["time"] - trial.run.status()["started"] > 38, "used the limit"
    toy.until(lambda: not mine(sweep), seconds=30)
    assert states(sweep) == ["stopped"]
    assert "reached its time limit 1 time, allowed are 0" in survey(sweep)[0].note
    assert trial.run.status()["attempts"] == 2
    monkeypatch.setenv("TOY_WORK", '{"epoch_s": 0}')  # the rest need not take its time
    launch(sweep, "slurm")
    over(sweep, patience_s=120)
    assert_whole(sweep, epochs=45, attempts=3)
    fault_table("time limit cut to a minute", "by itself", "0 of 45", "equal")


def test_a_job_cancelled_by_hand_is_not_put_back(slurm: Any, tmp_path: Path) -> None:
    sweep = toy.make_sweep(tmp_path, {}, recipe={"work": {"epochs": 9, "epoch_s": 1.0}})
    launch(sweep, "slurm")
    toy.until(lambda: len(sweep.trials[0].run.metrics()) >= 1)
    slurm.run("scancel", job_of(sweep, 0))
    over(sweep)
    assert states(sweep) == ["stopped"]
    time.sleep(3)
    assert not mine(sweep)


def test_more_trials_than_an_array_may_have_become_arrays_that_share_what_may_run_at_once(
    slurm: Any, tmp_path: Path
) -> None:
    work = {"epochs": 1, "epoch_s": 0.5}
    keys: dict[str, Any] = {"slurm": {"array_parallelism": 2}, "recipe": {"work": work}}
    points = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    with slurm.configured("KillWait=5", "KillWait=5\nMaxArraySize=2"):
        sweep = toy.make_sweep(tmp_path, {"work.quality": {"grid": points[:5]}}, **keys)
        launch(sweep, "slurm")
        assert sorted(len(r.trials) for r in read_records(sweep.folder)) == [1, 2, 2]
        until_running(sweep, 0)
        sweep = toy.make_sweep(tmp_path, {"work.quality": {"grid": points}}, **keys)
        assert len(launch(sweep, "slurm")) == 1
        over(sweep)
    assert [t.run.result()["validation"]["mAP"] for t in sweep.trials] == points
    jobs = [n for record in read_records(sweep.folder) for n in record.jobs.values()]
    assert most_together(slurm, jobs) == 2


def most_together(slurm: Any, jobs: list[str]) -> int:
    """Return how many of the jobs ran at the same time at most."""
    spans: list[list[str]] = []

    def known() -> bool:
        output = slurm.run("sacct", "-XnP", "-j", ",".join(jobs), "-o", "Start,End")
        spans[:] = [line.split("|") for line in output.splitlines() if "Unknown" not in line]
        return len(spans) == len(jobs)

    toy.until(known)
    return max(sum(start <= moment < end for start, end in spans) for moment, _ in spans)


def test_jobs_of_a_launcher_that_died_before_it_knew_them_are_adopted(
    slurm: Any, tmp_path: Path
) -> None:
    sweep = toy.make_sweep(
        tmp_path, {"work.quality": {"grid": [0.1, 0.2]}}, slurm={"begin": "now+1hour"}
    )
    launch(sweep, "slurm")
    [record] = read_records(sweep.folder)
    known = dict(record.jobs)
    forget(record)
    assert states(sweep) == ["died", "died"]
    assert launch(sweep, "slurm") == []
    assert read_records(sweep.folder)[0].jobs == known
    assert states(sweep) == ["queued", "queued"]
    cancel(sweep)


def test_jobs_that_cannot_run_because_their_launcher_died_are_replaced(
    slurm: Any, tmp_path: Path
) -> None:
    sweep = toy.make_sweep(tmp_path, {}, slurm={"begin": "now+1hour"})
    launch(sweep, "slurm")
    [record] = read_records(sweep.folder)
    [lost] = record.jobs.values()
    (Path(record.folder) / f"{lost}_submitted.pkl").unlink()
    forget(record)
    assert len(launch(sweep, "slurm")) == 1
    toy.until(lambda: lost not in commands.my_jobs())
    assert len(mine(sweep)) == 1
    cancel(sweep)


def test_a_controller_that_does_not_answer_is_an_error_not_an_empty_queue(
    slurm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = toy.make_sweep(tmp_path, {}, slurm={"begin": "now+1hour"})
    launch(sweep, "slurm")
    monkeypatch.setattr(commands, "ANSWER_LIMIT_S", 2.0)
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "nowhere.conf"))
    with pytest.raises(Exception, match="the SLURM cluster does not answer"):
        launch(sweep, "slurm")
    monkeypatch.setenv("SLURM_CONF", str(slurm.conf))
    cancel(sweep)


def test_two_launchers_at_once_submit_each_trial_once(
    slurm: Any, tmp_path: Path, fault_table: Callable[..., None]
) -> None:
    sweep = toy.make_sweep(
        tmp_path, {"work.quality": {"grid": [0.1, 0.2]}}, slurm={"begin": "now+1hour"}
    )
    program = (
        "import sys, pathlib, toy_experiment as toy\n"
        "from harness.cluster.launch import launch\n"
        "from harness.sweeps.reading import read_sweep\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "sweep = read_sweep(folder / 'sweep.yaml', schema=toy.Config, recipes=folder / 'recipes')\n"
        "print(len(launch(sweep, 'slurm')))\n"
    )
    racers = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    output = [racer.communicate(timeout=60) for racer in racers]
    submitted = [int(out) for out, _ in output if out]
    assert sum(submitted) == 2, output
    assert len(mine(sweep)) == 2
    cancel(sweep)
    fault_table("two launchers at once", "each trial submitted once", "0", "equal")


# --- helpers ---


def forget(record: Any) -> None:
    """Make a record look as its launcher left it just before it knew the ids."""
    dataclasses.replace(record, state="submitting", jobs={}).write()


def sacct(slurm: Any, number: str) -> str:
    return slurm.run("sacct", "-X", "-n", "-P", "-j", number, "-o", "State,ExitCode").strip()


def venv_setup(folder: Path) -> list[str]:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    [packages] = (folder / "venv/lib").glob("python*/site-packages")
    (packages / "ours.pth").write_text(site.getsitepackages()[0])
    return [f"source {folder}/venv/bin/activate"]


def modules_setup(folder: Path) -> list[str]:
    """Modules as a site has them: a function that the shell of a job reads from a file."""
    (folder / "modules.sh").write_text(f'module() {{ [ "$1" = load ] && . {folder}/$2; }}\n')
    (folder / "python-3").write_text(f"export TOY=module PATH={folder}/bin:$PATH\n")
    stand_in(folder / "bin")
    return [f"source {folder}/modules.sh", "module load python-3"]


def conda_setup(folder: Path) -> list[str]:
    """What conda's own file does on `conda activate`, less what it asks its Python for."""
    (folder / "etc").mkdir()
    (folder / "etc/conda.sh").write_text(
        f'conda() {{ [ "$1" = activate ] && export TOY=$2 PATH={folder}/envs/$2/bin:$PATH; }}\n'
    )
    stand_in(folder / "envs/reid/bin")
    return [f"source {folder}/etc/conda.sh", "conda activate reid"]


def stand_in(folder: Path) -> None:
    """Put this Python into a folder as `python`."""
    folder.mkdir(parents=True)
    (folder / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (folder / "python").chmod(0o755)


def test_jobs_take_python_from_a_virtual_environment_modules_or_conda(
    slurm: Any, tmp_path: Path
) -> None:
    ways = {"VIRTUAL_ENV": venv_setup, "module": modules_setup, "reid": conda_setup}
    sweeps = {}
    for name, make in ways.items():
        folder = tmp_path / name
        folder.mkdir()
        sweeps[name] = toy.make_sweep(folder, {}, slurm={"setup": make(folder), "python": "python"})
        launch(sweeps[name], "slurm")
    for name, sweep in sweeps.items():
        over(sweep)
        seen = read_json(sweep.trials[0].run.folder / "seen-0.json")
        assert seen.get("TOY", "VIRTUAL_ENV") == name
        assert (seen.get("VIRTUAL_ENV") == str(tmp_path / name / "venv")) is (name == "VIRTUAL_ENV")
