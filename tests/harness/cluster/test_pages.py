"""The page that is written when the last trial of a sweep ends."""

import shutil
from pathlib import Path
from types import ModuleType

import pytest

from harness.base.files import read_json, write_json
from harness.base.locks import held_lock
from harness.cluster import pages
from harness.cluster.launch import launch
from harness.cluster.local.place import living_workers
from harness.cluster.states import survey
from harness.runs.run import Run
from harness.sweeps.reading import Sweep
from harness.sweeps.sweep_results import read_outcomes

SEARCH = {"work.quality": {"grid": [0.1, 0.2, 0.3]}}


def test_the_last_trial_leaves_a_page_that_nobody_waited_for(
    toy: ModuleType, tmp_path: Path
) -> None:
    sweep = toy.make_sweep(tmp_path, {**SEARCH, "work.fail": {"grid": ["no", "raise"]}})
    launch(sweep, "local", jobs=2)
    over(toy, sweep)
    assert set(read_json(sweep.folder / "reported.json")) >= {t.signature for t in sweep.trials}


def test_trials_end_as_they_did_when_their_page_fails(toy: ModuleType, tmp_path: Path) -> None:
    recipe = {"run": {"runs": str(tmp_path / "runs"), "report": "toy_experiment.broken_report"}}
    sweep = toy.make_sweep(tmp_path, SEARCH, recipe=recipe)
    launch(sweep, "local", jobs=1)
    over(toy, sweep)
    assert [view.state for view in survey(sweep)] == ["complete"] * 3
    logs = "".join(log.read_text() for log in (sweep.folder / "jobs").rglob("worker-*.log"))
    assert f"{sweep.folder.resolve()}: no page was written: no ink" in logs


@pytest.mark.parametrize(
    ("state", "is_written"),
    [("submitted", False), ("running", False), ("stopped", False), ("failed", True),
     ("new", True)],
)
def test_a_page_waits_for_trials_that_are_on_their_way(
    sweep: Sweep, state: str, is_written: bool
) -> None:
    if state != "new":
        sweep.trials[0].run.set_status(state)
    pages.write_if_over(sweep.folder)
    assert (sweep.folder / "reported.json").exists() == is_written


def test_a_sweeps_folder_says_what_is_searched(sweep: Sweep) -> None:
    pages.write_summary(sweep)
    [found] = read_outcomes(sweep.folder).dimensions.values()
    assert (found.key, found.kind, found.values) == ("work.quality", "grid", (0.1, 0.2, 0.3))


def test_a_finished_sweep_that_is_launched_with_another_metric_runs_nothing_and_ranks_by_it(
    toy: ModuleType, tmp_path: Path
) -> None:
    for metric in ("accuracy", "speed"):
        sweep = toy.make_sweep(tmp_path, SEARCH, metric=metric)
        for n, trial in enumerate(sweep.trials):
            write_json(trial.run.result_file, {"accuracy": n, "speed": -n})
        launch(sweep, "local", jobs=1)
        found = read_outcomes(sweep.folder)
        best = found.ranked()[0].point["work.quality"]
        assert (found.metric, best) == (metric, 0.3 if metric == "accuracy" else 0.1)
    assert not list(sweep.folder.glob("jobs/*/record.json"))


def test_a_page_that_another_process_writes_is_left_to_it(
    sweep: Sweep, caplog: pytest.LogCaptureFixture
) -> None:
    with held_lock(sweep.folder / "jobs" / "page.lock"):
        pages.write_if_over(sweep.folder)
    assert not (sweep.folder / "reported.json").exists()
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_a_run_of_an_older_version_names_nothing_that_writes_a_page(
    sweep: Sweep, caplog: pytest.LogCaptureFixture
) -> None:
    last = sweep.trials[-1].run.config_file
    whole = last.read_text()
    last.write_text(whole.replace("report:", "reported:"))
    pages.write_if_over(sweep.folder)
    last.write_text(whole)
    assert f"{last}: run.report cannot be read" in caplog.text


@pytest.fixture(scope="module")
def finished(toy: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    sweep = toy.make_sweep(tmp_path_factory.mktemp("finished"), SEARCH)
    launch(sweep, "local", jobs=3)
    over(toy, sweep)
    return sweep


@pytest.fixture
def sweep(finished: Sweep) -> Sweep:
    """Return a sweep whose trials have ended, but for the first, and that has no page."""
    (finished.folder / "reported.json").unlink(missing_ok=True)
    first = finished.trials[0].run
    first.result_file.unlink(missing_ok=True)
    first.status_file.unlink(missing_ok=True)
    return finished


def over(toy: ModuleType, sweep: Sweep) -> None:
    toy.until(lambda: not living_workers(sweep.folder))


def test_trials_that_left_the_sweep_file_stay_listed_and_marked_as_long_as_their_runs_exist(
    toy: ModuleType, tmp_path: Path
) -> None:
    values = {"old": [0.1, 0.2], "edited": [0.2, 0.3], "again": [0.1, 0.4]}
    sweeps = {name: toy.make_sweep(tmp_path, {"work.quality": {"grid": grid}})
              for name, grid in values.items()}

    def listed(name: str) -> list[tuple[float, int]]:
        pages.write_summary(sweeps[name])
        trials = read_json(sweeps[name].folder / "sweep.json")["trials"]
        return [(t["point"]["work.quality"], t.get("dropped", 0)) for t in trials]

    for sweep in sweeps.values():
        for trial in sweep.trials:
            trial.run.create("seed: 1\n")
    assert listed("old") == [(0.1, 0), (0.2, 0)]
    assert listed("edited") == [(0.2, 0), (0.3, 0), (0.1, 1)]
    # the first point is in the file again, the two others have left it together
    assert listed("again") == [(0.1, 0), (0.4, 0), (0.2, 2), (0.3, 2)]
    shutil.rmtree(sweeps["edited"].trials[1].run.folder)
    assert listed("again") == [(0.1, 0), (0.4, 0), (0.2, 2)]


def test_one_odd_entry_does_not_make_other_dropped_trials_forgotten(
    toy: ModuleType, tmp_path: Path
) -> None:
    before, now = (toy.make_sweep(tmp_path, {"work.quality": {"grid": [value]}})
                   for value in (0.1, 0.2))
    before.trials[0].run.create("seed: 1\n")
    for odd in ("text", 3, None, [1], {}, {"signature": 7}, {"signature": "../a"},
                {"signature": "a", "dropped": "x"}):
        pages.write_summary(before)
        summary = read_json(before.folder / "sweep.json")
        write_json(before.folder / "sweep.json", summary | {"trials": [odd, *summary["trials"]]})
        pages.write_summary(now)
        listed = read_json(now.folder / "sweep.json")["trials"]
        assert [(trial["signature"], "dropped" in trial) for trial in listed] == [
            (now.trials[0].signature, False), (before.trials[0].signature, True)]


def test_a_page_does_not_wait_for_trials_that_are_no_longer_in_the_sweep_file(
    sweep: Sweep
) -> None:
    summary = read_json(sweep.folder / "sweep.json")
    gone = sweep.folder / "0123456789ab"
    Run(gone).set_status("stopped")
    summary["trials"].append({"point": {}, "seed": 1, "signature": gone.name, "dropped": 1})
    write_json(sweep.folder / "sweep.json", summary)
    pages.write_if_over(sweep.folder)
    assert (sweep.folder / "reported.json").exists()
