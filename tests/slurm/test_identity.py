"""Whose job a number is: clusters, users and folders that share a sweep's folder, on a real SLURM.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

TOYS = Path(__file__).parents[1] / "toy"
sys.path.insert(0, str(TOYS))

import toy_experiment as toy  # noqa: E402

from harness.base.errors import UserError  # noqa: E402
from harness.cluster.launch import cancel, launch  # noqa: E402
from harness.cluster.records import NotYours, read_records  # noqa: E402
from harness.cluster.slurm import commands  # noqa: E402
from harness.cluster.states import survey  # noqa: E402
from tests.commands import as_nobody, open_folder  # noqa: E402
from tests.slurm.neighbour import neighbour  # noqa: E402
from tests.slurm.sweeps import mine  # noqa: E402

LATER: dict[str, Any] = {"slurm": {"begin": "now+1hour"}}
TWO = {"work.quality": {"grid": [0.1, 0.2]}}


@pytest.fixture(autouse=True)
def surroundings(slurm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs find the toy experiment; LOGNAME is somebody else's, as after `su`."""
    monkeypatch.setenv("PYTHONPATH", str(TOYS))
    monkeypatch.setenv("LOGNAME", "nobody")
    monkeypatch.setenv("USER", "nobody")


def test_jobs_of_another_cluster_are_neither_submitted_again_nor_cancelled_by_number(
    slurm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sweep = toy.make_sweep(tmp_path, TWO, **LATER)
    launch(sweep, "slurm")
    [record] = read_records(sweep.folder)
    ours = set(record.jobs.values())
    array = next(iter(ours)).partition("_")[0]
    with neighbour(slurm, "annex", first_job=int(array)) as conf:
        monkeypatch.setenv("SLURM_CONF", str(conf))
        unrelated("--array=0-1")
        assert set(commands.my_jobs()) == ours  # the same numbers
        note = "submitted to the cluster kit, which cannot be asked from here (annex)"
        assert [(one.state, one.note) for one in survey(sweep)] == [("queued", note)] * 2
        caplog.clear()
        assert launch(sweep, "slurm") == []
        todo = ("give --cancel there, or, if that cluster is gone, delete the folders in "
                f"{sweep.folder}/jobs whose record.json names it")
        assert caplog.messages == [f"2 trials {note}; {todo}"]
        with pytest.raises(UserError) as raised:
            cancel(sweep)
        assert str(raised.value) == f"2 trials {note}; {todo}"
        record.site = ""  # as in records of earlier versions: known by their names alone
        record.write()
        assert [one.state for one in survey(sweep)] == ["died"] * 2
        cancel(sweep)
        assert set(commands.my_jobs()) == ours
        monkeypatch.setenv("SLURM_CONF", str(slurm.conf))
        record.site = "kit"
        record.write("submitted")
        assert len(cancel(sweep)) == 2
        assert not ours & set(commands.my_jobs())
        monkeypatch.setenv("SLURM_CONF", str(conf))  # cancelled there, they may run here
        assert len(launch(sweep, "slurm")) == 2
        assert read_records(sweep.folder)[-1].site == "annex"


def test_launches_by_a_clock_that_is_wrong_leave_one_job_and_a_number_that_came_again_is_not_it(
    slurm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = toy.make_sweep(tmp_path, {}, **LATER)
    now = time.time
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: now() + 3600)
        launch(sweep, "slurm")
    [first] = read_records(sweep.folder)
    slurm.run("scancel", *first.jobs.values())
    toy.until(lambda: not mine(sweep))
    assert len(launch(sweep, "slurm")) == 1
    second = read_records(sweep.folder)[-1]
    assert second.time > first.time > now() + 3000
    second.time = first.time - 1800  # as earlier versions wrote it
    second.write()
    assert [one.state for one in survey(sweep)] == ["queued"]
    assert launch(sweep, "slurm") == []
    assert set(mine(sweep)) == set(second.jobs.values())
    other = unrelated()
    second.jobs = dict.fromkeys(second.jobs, other)
    second.write()
    assert [one.state for one in survey(sweep)] == ["died"]
    cancel(sweep)
    assert commands.my_jobs()[other][2] == "unrelated"
    slurm.run("scancel", other, *mine(sweep))


def test_somebody_elses_sweep_is_told_as_such(slurm: Any) -> None:
    with open_folder() as folder:
        sweep = toy.make_sweep(folder, TWO, **LATER)
        launch(sweep, "slurm")
        jobs = set(mine(sweep))
        assert {one.state for one in survey(sweep)} == {"queued"}
        whose = "belongs to root (uid 0), who alone can see"
        with as_nobody():
            assert [(one.state, one.note) for one in survey(sweep)] == [
                ("queued", f"the sweep {whose} its jobs")
            ] * 2
            for act in (lambda: launch(sweep, "slurm"), lambda: cancel(sweep)):
                with pytest.raises(NotYours, match=rf"toys: this sweep {whose[:16]}"):
                    act()
        assert set(mine(sweep)) == jobs
        [record] = read_records(sweep.folder)  # root can read everybody's
        assert (record.uid, record.user) == (os.getuid(), "root")
        record.uid, record.user = 65534, "nobody"
        record.write()
        assert [(one.state, one.note) for one in survey(sweep)] == [
            ("queued", "submitted by nobody (uid 65534), who alone can see the jobs")
        ] * 2
        for act in (lambda: launch(sweep, "slurm"), lambda: cancel(sweep)):
            with pytest.raises(NotYours, match=r"belongs to nobody \(uid 65534\)"):
                act()
        assert set(mine(sweep)) == jobs
        slurm.run("scancel", *jobs)


def test_a_job_in_a_hidden_partition_is_seen(slurm: Any) -> None:
    with as_nobody():  # root sees all
        job = unrelated()
    slurm.run("scontrol", "update", "PartitionName=main", "Hidden=YES")
    try:
        with as_nobody():
            assert commands.my_jobs()[job][2] == "unrelated"
    finally:
        slurm.run("scontrol", "update", "PartitionName=main", "Hidden=NO")
        slurm.run("scancel", job)


# --- helpers ---


def unrelated(*options: str) -> str:
    """Submit a held job that is no sweep's; returns its id."""
    command = ["sbatch", "--parsable", "--hold", "--job-name=unrelated", "--output=/dev/null",
               *options, "--wrap=true"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
