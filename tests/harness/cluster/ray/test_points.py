"""What a search starts next is read from the run folders."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from harness.base.errors import UserError
from harness.base.files import write_json
from harness.cluster.ray.points import Points, tried_points
from harness.runs.run import Run
from harness.sweeps.reading import Sweep, with_proposed
from harness.sweeps.space import read_points


@pytest.fixture
def make(toy: ModuleType, tmp_path: Path) -> Callable[..., Sweep]:
    def made(search: dict[str, Any] | None = None, **keys: Any) -> Sweep:
        search = search or {"work.quality": {"uniform": [0.0, 1.0]}}
        return toy.make_sweep(
            tmp_path, search, **{"backend": "ray", "algorithm": "tpe", "samples": 3, **keys}
        )

    return made


def finish(run: Run, value: float) -> None:
    write_json(run.result_file, {"mAP": 0.0, "validation": {"mAP": value}})
    run.set_status("complete")


def taken(points: Points) -> list[Run]:
    return list(iter(points.next_run, None))


def test_open_runs_come_first_then_every_seed_of_the_points_that_are_proposed(
    make: Callable[..., Sweep], tmp_path: Path
) -> None:
    sweep = make(seeds=[1, 2])
    before = Run(tmp_path / "before")
    points = Points(sweep, [before])
    assert points.most == 1 + 3 * 2
    runs = taken(points)
    assert runs[0] == before
    known = with_proposed(sweep)
    assert [trial.run.folder for trial in known.trials] == [run.folder for run in runs[1:]]
    assert [trial.seed for trial in known.trials] == [1, 2] * 3
    assert known.to_propose == 0
    assert len(read_points(sweep.folder)) == 3
    for trial in known.trials:
        assert trial.run.status()["state"] == "submitted"
        assert trial.run.config_file.exists()


def test_a_search_that_was_killed_proposes_what_the_undisturbed_one_would(
    make: Callable[..., Sweep]
) -> None:
    def value(run: Run) -> float:
        return float(run.signature.encode()[0])  # anything

    sweep = make(samples=8, algorithm={"tpe": {"startup": 2}})
    undisturbed = Points(sweep, [])
    while (run := undisturbed.next_run()) is not None:
        finish(run, value(run))
    expected = read_points(sweep.folder)
    lines = (sweep.folder / "points.jsonl").read_text().splitlines(keepends=True)
    (sweep.folder / "points.jsonl").write_text("".join(lines[:5]) + lines[5][:-4])  # cut short
    killed = Points(with_proposed(sweep), [])
    assert killed.most == 3
    while killed.next_run() is not None:
        pass
    assert read_points(sweep.folder) == expected


def test_another_search_seed_begins_a_search_of_its_own_in_the_same_folder(
    make: Callable[..., Sweep]
) -> None:
    first = make()
    taken(Points(first, []))
    second = make(search_seed=1)
    assert (second.trials, second.to_propose) == ((), 3)
    found = taken(Points(second, []))
    assert len(found) == 3
    known = [with_proposed(sweep) for sweep in (first, second)]
    assert [len(sweep.trials) for sweep in known] == [3, 3]
    drawn = [{trial.point["work.quality"] for trial in sweep.trials} for sweep in known]
    assert drawn[0].isdisjoint(drawn[1])


def test_the_metric_of_a_point_is_the_mean_over_its_seeds_once_all_are_complete(
    make: Callable[..., Sweep]
) -> None:
    sweep = make(seeds=[1, 2, 3], samples=1)
    runs = taken(Points(sweep, []))
    values = (0.1, 0.2, 0.6)
    for run, known in zip(runs, values, strict=True):
        [tried] = tried_points(with_proposed(sweep))
        assert (tried.state, tried.values) == ("running", None)
        finish(run, known)
    [tried] = tried_points(with_proposed(sweep))
    assert (tried.state, tried.values) == ("complete", [pytest.approx(0.3)])


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        (["failed", "running"], "failed"), (["stopped", "running"], "running"),
        (["pruned", "running"], "ended early"), (["pruned", "failed"], "failed"),
    ],
)
def test_a_point_with_an_incomplete_run_has_that_runs_state(
    make: Callable[..., Sweep], states: Sequence[str], expected: str
) -> None:
    sweep = make(seeds=[1, 2], samples=1)
    for number, (run, state) in enumerate(zip(taken(Points(sweep, [])), states, strict=True)):
        for epoch, score in enumerate([0.1, 0.3, 0.5][: 3 - number], start=1):
            run.log_metrics({"kind": "epoch", "epoch": epoch, "validation": {"mAP": score}})
        pruned = state == "pruned"
        run.set_status("stopped" if pruned else state, **({"pruned": True} if pruned else {}))
    [tried] = tried_points(with_proposed(sweep))
    assert tried.state == expected
    assert tried.reached == ({1: 0.1, 2: 0.3} if expected == "ended early" else {})


def test_points_with_faults_are_left_out_and_too_many_end_the_search(
    make: Callable[..., Sweep], caplog: pytest.LogCaptureFixture
) -> None:
    def searching(name: str, low: int, high: int) -> Sweep:
        """A space whose faults were not seen in its corners."""
        sweep = make({"work.epochs": {"randint": [1, 3]}}, samples=2, name=name)
        [dimension] = sweep.space.dimensions
        wider = dataclasses.replace(dimension, values=(low, high))
        return dataclasses.replace(
            sweep, space=dataclasses.replace(sweep.space, dimensions=(wider,))
        )

    some = searching("some", 0, 3)
    assert len(taken(Points(some, []))) == 2
    assert sorted(p["work.epochs"] for p in read_points(some.folder)) == [1, 2]
    with pytest.raises(UserError, match="points in a row have faults"):
        taken(Points(searching("all", -90, 1), []))
    assert "must be at least 1" in caplog.text


def test_a_space_that_is_exhausted_ends_the_search(make: Callable[..., Sweep]) -> None:
    sweep = make({"work.quality": {"choice": [0.1, 0.2]}}, samples=9)
    assert len(taken(Points(sweep, []))) == 2
    assert sweep.to_propose == 2
    assert with_proposed(sweep).to_propose == 0


def test_what_is_weighed_comes_from_the_result_or_the_last_epoch(
    make: Callable[..., Sweep]
) -> None:
    sweep = make(seeds=[1, 2], samples=1, objectives={"images_per_s": "max", "mAP": "min"})
    for number, run in enumerate(taken(Points(sweep, []))):
        for speed in (5.0, 100.0 + number):
            run.log_metrics({"kind": "epoch", "epoch": 1, "images_per_s": speed, "mAP": 9.0})
        finish(run, 0.2)
    [tried] = tried_points(with_proposed(sweep))
    assert tried.values == [0.2, 100.5, 0.0]
