"""What every place does: the same tests for a real SLURM and for this machine."""

import dataclasses
import os
import sys
import time
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import pytest

TOYS = Path(__file__).parents[1] / "toy"
sys.path.insert(0, str(TOYS))

import toy_experiment as toy  # noqa: E402

from harness.base.errors import UserError  # noqa: E402
from harness.base.files import read_json  # noqa: E402
from harness.cluster.known_places import all_places, place_named  # noqa: E402
from harness.cluster.launch import cancel, launch  # noqa: E402
from harness.cluster.records import Cluster, read_records  # noqa: E402
from harness.cluster.states import ALIVE, survey  # noqa: E402
from harness.sweeps.reading import Sweep  # noqa: E402

ONE_BY_ONE: dict[str, Any] = {"slurm": {"array_parallelism": 1}}
TOO_MUCH: dict[str, dict[str, Any]] = {
    "slurm": {"slurm": {"partition": "moon"}}, "local": {"resources": {"gpus": 99}},
}


@pytest.fixture(params=["slurm", "local"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """The name of a place; jobs find the toy experiment by PYTHONPATH."""
    if request.param == "slurm":
        request.getfixturevalue("slurm")
    monkeypatch.setenv("PYTHONPATH", str(TOYS))
    return request.param


def test_there_is_a_set_of_tests_for_every_place() -> None:
    assert set(TOO_MUCH) == set(all_places())
    with pytest.raises(UserError, match="no place 'moon' to run jobs; there are slurm, local"):
        place_named("moon")


def test_a_sweep_runs_and_a_second_launch_submits_nothing(place: Cluster, tmp_path: Path) -> None:
    sweep = toy.make_sweep(tmp_path, {"work.quality": {"grid": [0.1, 0.2, 0.3]}})
    assert len(launch(sweep, place, jobs=2)) == 3
    assert set(states(sweep)) <= {"queued", "running", "complete"}
    over(sweep)
    assert states(sweep) == ["complete"] * 3
    assert [t.run.result()["mAP"] for t in sweep.trials] == [0.05, 0.1, 0.15]
    assert launch(sweep, place) == []
    [record] = read_records(sweep.folder)
    assert (record.cluster, record.state) == (place, "submitted")
    assert (sweep.folder / "jobs").stat().st_mode & 0o777 == 0o700


def test_trials_on_their_way_are_not_submitted_again_and_new_ones_are(
    place: Cluster, tmp_path: Path
) -> None:
    recipe = {"work": {"epochs": 2, "epoch_s": 1.5}}
    search = {"work.quality": {"grid": [0.1, 0.2]}}
    sweep = toy.make_sweep(tmp_path, search, recipe=recipe, **ONE_BY_ONE)
    launch(sweep, place, jobs=1)
    toy.until(lambda: "running" in states(sweep))
    assert "queued" in states(sweep)
    assert launch(sweep, place, jobs=1) == []
    wider = {"work.quality": {"grid": [0.1, 0.2, 0.3]}}
    sweep = toy.make_sweep(tmp_path, wider, recipe=recipe)
    assert [one.trial.point["work.quality"] for one in launch(sweep, place, jobs=1)] == [0.3]
    over(sweep)
    assert states(sweep) == ["complete"] * 3
    assert [t.run.status()["attempts"] for t in sweep.trials] == [1, 1, 1]


def test_a_failed_trial_has_its_cause_and_runs_again_only_on_request(
    place: Cluster, tmp_path: Path
) -> None:
    sweep = toy.make_sweep(tmp_path, {"work.fail": {"grid": ["raise", "no"]}})
    launch(sweep, place)
    over(sweep)
    assert states(sweep) == ["failed", "complete"]
    assert "the toy broke" in survey(sweep)[0].note
    assert launch(sweep, place) == []
    assert [one.trial.index for one in launch(sweep, place, retry_failed=True)] == [0]
    over(sweep)
    assert sweep.trials[0].run.status()["attempts"] == 2


def test_cancelled_trials_have_saved_do_not_come_back_and_resume_when_launched(
    place: Cluster, tmp_path: Path
) -> None:
    sweep = toy.make_sweep(
        tmp_path, {"work.quality": {"grid": [0.1, 0.2, 0.3]}},
        recipe={"work": {"epochs": 4, "epoch_s": 1.0}}, slurm={"array_parallelism": 2},
    )
    launch(sweep, place, jobs=2)
    first = sweep.trials[0].run
    toy.until(lambda: len(first.metrics()) >= 1)
    assert len(cancel(sweep)) == 3
    assert states(sweep) == ["stopped"] * 3
    time.sleep(2)
    assert states(sweep) == ["stopped"] * 3
    saved = read_json(first.checkpoints / "0.json")["epoch"]
    assert saved == len(first.metrics())
    assert len(launch(sweep, place, jobs=3)) == 3
    over(sweep)
    for trial in sweep.trials:  # no epoch is missing, and none was run twice
        assert [entry["epoch"] for entry in trial.run.metrics()] == [1, 2, 3, 4]


def test_of_two_sweeps_that_share_a_folder_each_cancels_its_own_jobs(
    place: Cluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    where = {"run": {"runs": str(tmp_path / "runs")}, "work": {"epochs": 60, "epoch_s": 1.0}}
    first, second = (
        toy.make_sweep(tmp_path / name, {"work.quality": {"grid": grid}}, recipe=where)
        for name, grid in (("a", [0.1, 0.2]), ("b", [0.2, 0.3]))
    )
    launch(first, place, jobs=2)
    toy.until(lambda: states(first) == ["running"] * 2)
    caplog.clear()
    assert [one.trial.point["work.quality"] for one in launch(second, place, jobs=3)] == [0.3]
    assert f"submitted from {tmp_path}/a; name=NAME keeps them apart" in caplog.text
    with pytest.raises(UserError) as raised:
        cancel(second)
    assert str(raised.value) == f"1 trial submitted from {tmp_path}/a; --cancel there ends them"
    assert states(second) == ["running", "stopped"]
    assert states(first) == ["running"] * 2
    assert len(cancel(first)) == 2
    assert states(first) == ["stopped"] * 2


def test_a_submission_whose_launcher_was_killed_is_settled_and_nothing_runs_twice(
    place: Cluster, tmp_path: Path
) -> None:
    sweep = toy.make_sweep(
        tmp_path, {"work.quality": {"grid": [0.1, 0.2]}},
        recipe={"work": {"epochs": 3, "epoch_s": 1.0}}, **ONE_BY_ONE,
    )
    launch(sweep, place, jobs=1)
    [record] = read_records(sweep.folder)
    # as it was just before the jobs were known
    dataclasses.replace(record, state="submitting", jobs={}).write()
    assert launch(sweep, place, jobs=1) == []
    [settled] = read_records(sweep.folder)
    assert (settled.state, settled.jobs) == ("submitted", record.jobs)
    over(sweep)
    assert states(sweep) == ["complete"] * 2
    assert [t.run.status()["attempts"] for t in sweep.trials] == [1, 1]


def test_what_a_place_would_refuse_is_refused_before_anything_is_marked(
    place: Cluster, tmp_path: Path
) -> None:
    sweep = toy.make_sweep(tmp_path, {}, **TOO_MUCH[place])
    with pytest.raises(UserError, match=r"moon|99"):
        launch(sweep, place)
    assert states(sweep) == ["missing"]
    assert read_records(sweep.folder) == []


def test_all_ranks_of_a_trial_meet(place: Cluster, tmp_path: Path) -> None:
    resources = {"nodes": 2, "tasks": 2, "cpus": 1, "gpus": 0, "time": "5m"}
    sweep = toy.make_sweep(tmp_path, {}, resources=resources)
    launch(sweep, place)
    over(sweep)
    seen = [read_json(sweep.trials[0].run.folder / f"seen-{rank}.json") for rank in range(4)]
    assert [one["RANK"] for one in seen] == ["0", "1", "2", "3"]
    assert {one["WORLD_SIZE"] for one in seen} == {"4"}
    assert len({(one["MASTER_ADDR"], one["SVLL_ATTEMPT"]) for one in seen}) == 1
    assert {one["OMP_NUM_THREADS"] for one in seen} == {"1"}


def test_a_search_runs_in_one_job_of_the_place(place: Cluster, tmp_path: Path) -> None:
    sweep = toy.make_sweep(
        tmp_path, {"work.quality": {"grid": [0.1, 0.2, 0.3]}}, backend="ray",
        resources={"time": "10m"}, ray={"trials_per_node": 2},
    )
    assert len(launch(sweep, place, jobs=2)) == 3
    over(sweep)
    assert states(sweep) == ["complete"] * 3
    assert [t.run.result()["mAP"] for t in sweep.trials] == [0.05, 0.1, 0.15]
    [record] = read_records(sweep.folder)
    assert len(record.jobs) == (place == "slurm")
    seen = read_json(sweep.trials[0].run.folder / "seen-0.json")
    # compiled code stays on the node
    assert seen["TRITON_CACHE_DIR"] == f"{gettempdir()}/svll-{os.getuid()}/triton"


def states(sweep: Sweep) -> list[str]:
    return [one.state for one in survey(sweep)]


def over(sweep: Sweep) -> None:
    """Wait until nothing of the sweep is on its way."""
    places = all_places(max_age_s=1.0)
    toy.until(lambda: not any(one.state in ALIVE for one in survey(sweep, places)), seconds=300)
