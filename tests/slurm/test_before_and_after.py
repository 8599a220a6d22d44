"""Jobs before and after a sweep's trials, on a real SLURM."""

import dataclasses
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TOYS = Path(__file__).parents[1] / "toy"
sys.path.insert(0, str(TOYS))

import toy_experiment as toy  # noqa: E402

from harness.base.errors import UserError  # noqa: E402
from harness.base.files import read_json, write_json  # noqa: E402
from harness.cluster.launch import cancel, launch  # noqa: E402
from harness.cluster.slurm.commands import my_jobs  # noqa: E402
from harness.cluster.states import survey  # noqa: E402
from tests.slurm.sweeps import mine  # noqa: E402


@pytest.fixture(autouse=True)
def surroundings(slurm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(TOYS))


def test_trials_wait_for_what_they_share_though_that_job_is_stopped_and_the_report_for_them(
    slurm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_PREPARE_S", "100")
    search = {"work.quality": {"grid": [0.1, 0.9, 0.5]}, "work.fail": {"grid": ["no", "raise"]}}
    sweep = toy.make_sweep(tmp_path, search, prepare=True, report=True)
    launch(sweep, "slurm")
    toy.until(lambda: [view.note for view in survey(sweep)] == ["Dependency"] * 6)
    toy.until((sweep.folder / "preparing.json").exists)
    [number] = [number for number, (_, _, name) in mine(sweep).items() if ".before." in name]
    slurm.run("scancel", "--signal=USR2", number)
    report = sweep.folder / "report.txt"
    toy.until(report.exists, seconds=120)
    seen = [read_json(trial.run.folder / "seen-0.json") for trial in sweep.trials]
    assert all(one["shared"] for one in seen)
    shared = read_json(sweep.folder / "shared.json")
    assert shared == [trial.signature for trial in sweep.trials]
    lines = report.read_text().splitlines()
    assert "3 of 6 complete, ranked by validation.mAP (max)" in lines[0]
    assert any("test mAP" in line for line in lines), "a column of the experiment's own"
    ranked = [trial.signature for trial in sweep.trials if trial.point["work.fail"] == "no"]
    places = [next(n for n, line in enumerate(lines) if name in line) for name in ranked]
    assert sorted(places, reverse=True) == [places[0], places[2], places[1]]
    assert sum("failed: RuntimeError: the toy broke" in line for line in lines) == 3
    toy.until((sweep.folder / "reported.json").exists)
    toy.until(lambda: not mine(sweep))
    assert launch(sweep, "slurm") == []
    assert not mine(sweep), "the report is there"


def test_the_last_trial_writes_the_page_where_no_job_was_asked_to(
    slurm: Any, tmp_path: Path
) -> None:
    search = {"work.quality": {"grid": [0.1, 0.9]}, "work.fail": {"grid": ["no", "raise"]}}
    sweep = toy.make_sweep(tmp_path, search)
    launch(sweep, "slurm")
    toy.until((sweep.folder / "reported.json").exists, seconds=120)
    assert {view.state for view in survey(sweep)} == {"complete", "failed"}
    assert not (sweep.folder / "report.txt").exists()


def test_a_cancelled_sweep_leaves_none_of_the_jobs_around_it(slurm: Any, tmp_path: Path) -> None:
    search = {"work.quality": {"grid": [0.1, 0.9]}}
    sweep = toy.make_sweep(
        tmp_path, search, prepare=True, report=True, slurm={"begin": "now+1hour"}
    )
    others = set(my_jobs())
    launch(sweep, "slurm")
    assert len(set(my_jobs()) - others) == 4
    cancel(sweep)
    assert set(my_jobs()) <= others


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int, str], None]:
    """Return a function that has sbatch submit and then do something else, at its n-th job."""
    real, folder = shutil.which("sbatch"), tmp_path / "bin"
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def misbehaves(call: int, then: str) -> None:
        folder.mkdir()
        (folder / "sbatch").write_text(
            f"#!/bin/sh\n{real} \"$@\" || exit\n"
            f"case \"$*\" in *--test-only*) exit;; esac\necho >> {folder}/calls\n"
            f"test $(wc -l < {folder}/calls) -ne {call} || {{ {then}; }}\n"
        )
        (folder / "sbatch").chmod(0o755)

    return misbehaves


@pytest.mark.parametrize(("call", "what"), [(1, "before"), (2, "trials"), (3, "after")])
def test_each_job_is_there_once_after_a_launcher_was_killed_at_its_sbatch(
    slurm: Any, tmp_path: Path, sbatch: Callable[[int, str], None], call: int, what: str
) -> None:
    search = {"work.quality": {"grid": [0.1, 0.9]}}
    sweep = toy.make_sweep(
        tmp_path, search, prepare=True, report=True, slurm={"begin": "now+1hour"}
    )
    sbatch(call, "kill -9 $PPID")
    if (launcher := os.fork()) == 0:
        launch(sweep, "slurm")
        os._exit(0)
    assert os.waitpid(launcher, 0)[1] == signal.SIGKILL
    orphans = {number: state for number, (state, _, _) in mine(sweep).items()}
    assert len(orphans) == call + (call > 1)  # two of them are the trials
    assert len(launch(sweep, "slurm")) == (0 if what == "after" else 2)
    jobs = mine(sweep)
    names = sorted(name.removesuffix(f".{name.split('.')[-1]}") for _, _, name in jobs.values())
    assert names == ["toys", "toys", "toys.after", "toys.before"]
    [report] = [number for number, (_, _, name) in jobs.items() if ".after." in name]
    waits_for = slurm.run("squeue", "-h", "-j", report, "-o", "%E")
    [trials] = {number.partition("_")[0] for number in jobs if "_" in number}
    assert trials in waits_for
    cancel(sweep)
    assert not mine(sweep)


def test_a_job_that_sbatch_took_before_it_timed_out_is_cancelled(
    slurm: Any, tmp_path: Path, sbatch: Callable[[int, str], None]
) -> None:
    search = {"work.quality": {"grid": [0.1, 0.9]}}
    sweep = toy.make_sweep(
        tmp_path, search, prepare=True, report=True, slurm={"begin": "now+1hour"}
    )
    sbatch(1, "echo 'sbatch: error: Socket timed out on send/recv operation' >&2; exit 1")
    with pytest.raises(UserError, match=r"sbatch refused the job before the trials: .*timed out"):
        launch(sweep, "slurm")
    assert [name.split(".")[1] for _, _, name in mine(sweep).values()] == ["before"]
    cancel(sweep)
    assert not mine(sweep)


def test_the_report_is_of_the_trials_that_it_was_asked_for_with(
    slurm: Any, tmp_path: Path
) -> None:
    search = {"work.quality": {"grid": [0.1, 0.9, 0.5]}}
    sweep = toy.make_sweep(tmp_path, search, report=True, slurm={"nodelist": "node1"})
    launch(dataclasses.replace(sweep, first=1), "slurm")
    write_json(sweep.folder / "sweep.json", {"another": "launch"})
    report = sweep.folder / "report.txt"
    toy.until(report.exists, seconds=120)
    text = report.read_text()
    assert "1 of 1 complete" in text
    assert [trial.signature in text for trial in sweep.trials] == [True, False, False]
