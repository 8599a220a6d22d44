"""Sweeps as job arrays on a real SLURM."""

import dataclasses
import os
import signal
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

from harness.base.errors import UserError  # noqa: E402
from harness.base.files import read_json  # noqa: E402
from harness.cluster.known_places import all_places  # noqa: E402
from harness.cluster.launch import cancel, launch  # noqa: E402
from harness.cluster.records import read_records  # noqa: E402
from harness.cluster.slurm import commands  # noqa: E402
from harness.cluster.states import ALIVE, survey  # noqa: E402
from harness.sweeps.reading import Sweep  # noqa: E402


@pytest.fixture(autouse=True)
def surroundings(slurm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs find the toy experiment by what the login node exports."""
    monkeypatch.setenv("PYTHONPATH", str(TOYS))


def test_a_failed_trial_fails_its_job_and_the_others_continue(slurm: Any, tmp_path: Path) -> None:
    sweep = toy.make_sweep(tmp_path, {"work.fail": {"grid": ["raise", "no"]}})
    launch(sweep, "slurm")
    over(sweep)
    assert states(sweep) == ["failed", "complete"]
    assert "the toy broke" in survey(sweep)[0].note
    number = read_records(sweep.folder)[0].jobs[sweep.trials[0].signature]
    toy.until(lambda: sacct(slurm, number) == "FAILED|1:0")
    assert launch(sweep, "slurm") == []
    assert [v.trial.index for v in launch(sweep, "slurm", retry_failed=True)] == [0]
    over(sweep)


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


def lose_a_node(slurm: Any, sweep: Sweep) -> None:
    """Cut node2's power once the trial has made some way."""
    toy.until(lambda: len(sweep.trials[0].run.metrics()) >= 2)
    slurm.kill_node("node2")
    slurm.run("scontrol", "update", "nodename=node2", "state=down", "reason=power cut")


def test_two_nodes_with_two_ranks_each_agree_on_world_and_master(
    slurm: Any, tmp_path: Path
) -> None:
    resources = {"nodes": 2, "tasks": 2, "cpus": 1, "time": "5m"}
    sweep = toy.make_sweep(tmp_path, {}, resources=resources, slurm={"env": {"TOY": "a b'c"}})
    launch(sweep, "slurm")
    over(sweep)
    [trial] = sweep.trials
    files = [trial.run.folder / f"seen-{rank}.json" for rank in range(4)]
    seen = [read_json(file) for file in files]
    assert [s["LOCAL_RANK"] for s in seen] == ["0", "1", "0", "1"]
    assert [s["host"] for s in seen] == ["node1", "node1", "node2", "node2"]
    assert {(s["WORLD_SIZE"], s["MASTER_ADDR"], s["TOY"]) for s in seen} == {
        ("4", "node1", "a b'c")
    }
    assert len({s["MASTER_PORT"] for s in seen}) == 1
    assert {s["OMP_NUM_THREADS"] for s in seen} == {"1"}


def test_a_preempted_trial_saves_waits_and_ends_as_if_nothing_had_happened(
    slurm: Any, tmp_path: Path, fault_table: Callable[..., None]
) -> None:
    sweep = toy.make_sweep(
        tmp_path, {}, recipe={"work": {"epochs": 6, "epoch_s": 1.0}},
        resources={"nodes": 2, "cpus": 2, "time": "10m"},
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


def test_a_user_signal_saves_and_puts_the_job_back_into_the_queue(
    slurm: Any, tmp_path: Path
) -> None:
    sweep = toy.make_sweep(
        tmp_path, {"work.quality": {"grid": [0.1, 0.2]}},
        recipe={"work": {"epochs": 4, "epoch_s": 1.0}},
    )
    launch(sweep, "slurm")
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


def test_a_trial_resumes_after_its_time_limit_but_not_for_ever(
    slurm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault_table: Callable[..., None]
) -> None:
    # SLURM looks at time limits twice a minute: the trial has to last for the limit of one, twice
    sweep = toy.make_sweep(
        tmp_path, {}, recipe={"work": {"epochs": 45, "epoch_s": 2.0}},
        resources={"time": "15m", "max_time_outs": 1},
    )
    launch(sweep, "slurm")
    [trial] = sweep.trials
    toy.until(lambda: len(trial.run.metrics()) >= 1)
    slurm.run("scontrol", "update", f"jobid={job_of(sweep, 0)}", "timelimit=1")
    toy.until(lambda: trial.run.status().get("time_outs") == 2, seconds=150)
    toy.until(lambda: not mine(sweep), seconds=30)
    assert states(sweep) == ["stopped"]
    assert "reached its time limit 2 times" in survey(sweep)[0].note
    assert trial.run.status()["attempts"] == 2
    monkeypatch.setenv("TOY_WORK", '{"epoch_s": 0}')  # the rest need not take its time
    launch(sweep, "slurm")
    over(sweep, patience_s=120)
    assert_whole(sweep, epochs=45, attempts=3)
    fault_table("time limit of 15 minutes", "by itself", "0 of 45", "equal")


def test_a_job_cancelled_by_hand_is_not_put_back(slurm: Any, tmp_path: Path) -> None:
    sweep = toy.make_sweep(tmp_path, {}, recipe={"work": {"epochs": 9, "epoch_s": 1.0}})
    launch(sweep, "slurm")
    toy.until(lambda: len(sweep.trials[0].run.metrics()) >= 1)
    slurm.run("scancel", job_of(sweep, 0))
    over(sweep)
    assert states(sweep) == ["stopped"]
    time.sleep(3)
    assert not mine(sweep)


def test_more_trials_than_an_array_may_have_become_several_arrays(
    slurm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "max_array_size", lambda: 2)
    sweep = toy.make_sweep(tmp_path, {"work.quality": {"grid": [0.1, 0.2, 0.3, 0.4, 0.5]}})
    launch(sweep, "slurm")
    assert sorted(len(r.trials) for r in read_records(sweep.folder)) == [1, 2, 2]
    over(sweep)
    assert [t.run.result()["validation"]["mAP"] for t in sweep.trials] == [0.1, 0.2, 0.3, 0.4, 0.5]


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


def test_what_the_cluster_would_refuse_is_named_key_by_key_before_anything_is_submitted(
    slurm: Any, tmp_path: Path
) -> None:
    sweep = toy.make_sweep(
        tmp_path, {"work.quality": {"grid": [0.1, 0.2, 0.3]}}, resources={"time": "2h"},
        slurm={"partition": "main,moon", "constraint": "big&fast", "account": "lab"},
    )
    changes = [("partitionname=main", "maxtime=60"), ("nodename=node1", "features=big")]
    accounts = [
        ("add", "account", "lab", "cluster=kit"), ("add", "account", "other", "cluster=kit"),
        ("add", "user", "root", "account=lab"),
        ("modify", "user", "root", "where", "account=lab", "set", "maxsubmit=2"),
    ]
    for change in changes:
        slurm.run("scontrol", "update", *change)
    for change in accounts:
        slurm.run("sacctmgr", "-i", *change)
    try:
        output = refusal(sweep)
        assert output == [
            "slurm.partition: no partition moon here; choose one of main, urgent",
            "resources.time: 2h is more than the 1 h that main allows; a trial that takes longer "
            "continues in a further job",
            "slurm.constraint: no node of main has fast; features: big",
            "3 jobs to submit, your limit (MaxSubmitJobs) leaves 2; wait for others to "
            "end, or ask for fewer trials",
        ]
        sweep.slurm["account"] = "other"
        assert refusal(sweep)[-1] == "slurm.account: you may not use other; yours: lab, root"
        assert states(sweep) == ["missing"] * 3
        assert not mine(sweep)
    finally:
        slurm.run("sacctmgr", "-i", "delete", "user", "root", "account=lab")
        slurm.run("sacctmgr", "-i", "delete", "account", "lab,other")
        slurm.run("scontrol", "update", "partitionname=main", "maxtime=infinite")


def refusal(sweep: Sweep) -> list[str]:
    """What a launch says, less the file's name."""
    with pytest.raises(UserError) as caught:
        launch(sweep, "slurm")
    return [line.removeprefix(f"{sweep.file}: ") for line in str(caught.value).splitlines()]


def test_sbatchs_refusal_is_reported_with_its_message_and_leaves_nothing_behind(
    slurm: Any, tmp_path: Path
) -> None:
    sweep = toy.make_sweep(tmp_path, {}, slurm={"gres": "moon:1"})
    with pytest.raises(UserError, match=r"sbatch refused the jobs: .*gres"):
        launch(sweep, "slurm")
    assert states(sweep) == ["missing"]
    assert not mine(sweep)


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


def states(sweep: Sweep) -> list[str]:
    return [view.state for view in survey(sweep)]


def over(sweep: Sweep, *, patience_s: float = 180) -> None:
    """Wait until nothing of the sweep is on its way."""
    places = all_places(max_age_s=1.0)
    toy.until(
        lambda: not any(v.state in ALIVE for v in survey(sweep, places)), seconds=patience_s
    )


def until_running(sweep: Sweep, index: int) -> None:
    toy.until(lambda: sweep.trials[index].run.status()["state"] == "running")


def job_of(sweep: Sweep, index: int) -> str:
    return read_records(sweep.folder)[-1].jobs[sweep.trials[index].signature]


def mine(sweep: Sweep) -> list[str]:
    tokens = {record.token for record in read_records(sweep.folder)}
    return [n for n, (_, _, name) in commands.my_jobs().items() if name.split(".")[-1] in tokens]


def forget(record: Any) -> None:
    """Make a record look as its launcher left it just before it knew the ids."""
    dataclasses.replace(record, state="submitting", jobs={}).write()


def sacct(slurm: Any, number: str) -> str:
    return slurm.run("sacct", "-X", "-n", "-P", "-j", number, "-o", "State,ExitCode").strip()


def assert_whole(sweep: Sweep, *, epochs: int, attempts: int) -> None:
    [trial] = sweep.trials
    assert [entry["epoch"] for entry in trial.run.metrics()] == list(range(1, epochs + 1))
    toy.until(lambda: trial.run.status()["state"] == "complete")  # a moment after its result
    assert trial.run.status()["attempts"] == attempts
    assert os.path.exists(trial.run.result_file)
