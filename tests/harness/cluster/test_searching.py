"""Searches that propose, pause, and run trials of several ranks, by Ray on this machine."""

import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from harness.base.files import read_json
from harness.cluster.launch import launch
from harness.cluster.local.place import end_workers, living_workers
from harness.cluster.states import is_searched, survey
from harness.runs.run import epoch_lines
from harness.runs.takeovers import changes
from harness.sweeps.reading import Sweep, with_proposed
from harness.sweeps.space import read_points

PATIENCE_S = 300


@pytest.fixture
def make_search(toy: ModuleType, tmp_path: Path) -> Iterator[Callable[..., Sweep]]:
    """Makes a sweep for backend ray; what a failed test leaves running is ended."""
    made: list[Sweep] = []

    def make(name: str, *arguments: Any, **keys: Any) -> Sweep:
        made.append(toy.make_sweep(tmp_path / name, *arguments, backend="ray", **keys))
        return made[-1]

    yield make
    for sweep in made:
        end_workers(sweep.folder)


def over(toy: ModuleType, sweep: Sweep) -> None:
    toy.until(
        lambda: not {"queued", "running"} & {v.state for v in survey(sweep)}
        and not is_searched(sweep) and not living_workers(sweep.folder),
        seconds=PATIENCE_S,
    )


def test_a_search_that_was_killed_proposes_and_ends_early_what_the_undisturbed_one_does(
    toy: ModuleType, make_search: Callable[..., Sweep]
) -> None:
    keys: dict[str, Any] = {
        "search": {
            "work.quality": {"uniform": [0.0, 1.0]},
            "work.epochs": {"randint": [4, 9], "when": "work.quality > 0.2"},
        },
        "recipe": {"work": {"epochs": 6, "epoch_s": 0.2}}, "samples": 6,
        "constraints": ["work.quality < 0.9"], "algorithm": {"tpe": {"startup": 2}},
        "scheduler": {"asha": {"grace": 1, "reduction": 2}},
    }
    undisturbed, killed = (make_search(name, **keys) for name in ("undisturbed", "killed"))
    assert launch(undisturbed, "local", jobs=1) == []  # nothing is known before it is proposed
    assert is_searched(undisturbed)
    over(toy, undisturbed)
    launch(killed, "local", jobs=1)
    toy.until(lambda: len(read_points(killed.folder)) == 3, seconds=PATIENCE_S)
    toy.until(lambda: len(epoch_lines(with_proposed(killed).trials[-1].run)) >= 1)
    assert launch(killed, "local") == []  # it is on its way
    [worker] = living_workers(killed.folder)
    os.kill(worker["pid"], signal.SIGKILL)
    toy.until(lambda: not is_searched(killed))
    toy.until(lambda: not {"queued", "running"} & {v.state for v in survey(killed)})
    launch(killed, "local", jobs=1)
    over(toy, killed)
    assert read_points(killed.folder) == read_points(undisturbed.folder)
    one, other = (survey(sweep) for sweep in (undisturbed, killed))
    assert [view.state for view in other] == [view.state for view in one]
    assert {view.state for view in one} == {"complete", "ended early"}
    for mine, theirs in zip(one, other, strict=True):
        assert epoch_lines(mine.trial.run) == epoch_lines(theirs.trial.run)
        assert mine.trial.run.result() == theirs.trial.run.result()
    assert launch(killed, "local") == []
    assert not is_searched(killed)
    summary = read_json(killed.folder / "sweep.json")
    assert [t["signature"] for t in summary["trials"]] == [
        trial.signature for trial in with_proposed(killed).trials
    ]


def test_hyperband_pauses_trials_which_resume_where_they_were(
    toy: ModuleType, make_search: Callable[..., Sweep]
) -> None:
    qualities = [0.1, 0.2, 0.3, 0.7, 0.4, 0.6, 0.5, 0.8]
    sweep = make_search(
        "bands", {"work.quality": {"grid": qualities}}, recipe={"work": {"epochs": 10}},
        scheduler={"hyperband": {"epochs": 9, "reduction": 3}}, ray={"trials_per_node": 2},
    )
    launch(sweep, "local", jobs=2)
    over(toy, sweep)
    views = survey(sweep)
    # Li et al. 2017, table 1, for R = 9 and eta = 3: three trials in full, five for three epochs,
    # of which the best third goes on
    done = [v.trial.point["work.quality"] for v in views if v.state == "complete"]
    assert done == [0.1, 0.2, 0.3, 0.7, 0.8]
    ended = {v.note for v in views if v.state == "ended early"}
    assert ended == {"stopped early by HyperBand at epoch 3"}
    for view in views:
        epochs = [line["epoch"] for line in epoch_lines(view.trial.run)]
        assert epochs == list(range(1, 11 if view.state == "complete" else 4))
    assert max(view.status["attempts"] for view in views) == 2  # one was paused
    assert launch(sweep, "local") == []


def test_a_population_continues_from_its_best_and_logs_how(
    toy: ModuleType, make_search: Callable[..., Sweep]
) -> None:
    sweep = make_search(
        "population", {"work.quality": {"grid": [0.9, 0.7, 0.5, 0.3, 0.2, 0.1]}},
        recipe={"work": {"epochs": 7}}, scheduler={"pbt": {"every": 2, "share": 0.34}},
    )
    assert all(trial.signature.startswith("pbt-") for trial in sweep.trials)
    launch(sweep, "local", jobs=1)
    over(toy, sweep)
    assert [view.state for view in survey(sweep)] == ["complete"] * 6
    runs = {trial.signature: trial.run for trial in sweep.trials}
    changed = {name: changes(run) for name, run in runs.items()}
    # one after the other, so that each is compared with those before it
    assert not changed[sweep.trials[0].signature]
    assert changed[sweep.trials[1].signature]
    assert changed[sweep.trials[-1].signature]
    for name, run in runs.items():
        assert [line["epoch"] for line in epoch_lines(run)] == list(range(1, 8))
        assert not (run.folder / "exports").exists()
        if changed[name]:
            last = changed[name][-1]
            quality = last["settings"]["work.quality"]
            assert run.result()["validation"]["mAP"] == quality
            # up to there the log is that of the one it went on from, unless that changed as well
            source = runs[last["of"]]
            if not changed[last["of"]]:
                assert epoch_lines(run)[: last["epoch"]] == epoch_lines(source)[: last["epoch"]]
                # and so are the files that the experiment names
                assert (run.folder / "notes.txt").read_text() == source.signature
    assert launch(sweep, "local") == []


def test_ranks_of_a_trial_end_together_and_a_failed_trial_has_its_cause_and_ends_no_other(
    toy: ModuleType, make_search: Callable[..., Sweep]
) -> None:
    sweep = make_search(
        "ranks",
        {"work.fail": {"grid": ["raise", "kill", "no"]}, "work.quality": {"grid": [0.3, 0.2]}},
        constraints=["work.fail == 'no' or work.quality > 0.2"], recipe={"work": {"epochs": 4}},
        resources={"tasks": 2}, scheduler={"asha": {"grace": 2, "reduction": 2}},
    )
    launch(sweep, "local", jobs=1)
    over(toy, sweep)
    views = survey(sweep)
    assert [view.state for view in views] == ["failed", "failed", "complete", "ended early"]
    assert views[0].note == "RuntimeError: the toy broke, as it was told to; wind it up"
    assert views[1].note == "rank 0: killed by SIGKILL (out of memory?)"
    assert all(Path(view.status["log"]).exists() for view in views[:2])
    # the actors too run the frozen code, not that of the present folder
    text = next(sweep.folder.glob("jobs/*/worker-0.log")).read_text()
    files = re.findall(r'File "(.*)", line \d+, in next_result', text)
    assert {Path(file).parents[4] for file in files} == {sweep.folder / "code"}
    for view in views[2:]:
        run = view.trial.run
        seen = [read_json(run.folder / f"seen-{rank}.json") for rank in range(2)]
        assert [(s["RANK"], s["LOCAL_RANK"], s["WORLD_SIZE"]) for s in seen] == [
            ("0", "0", "2"), ("1", "1", "2")
        ]
        assert len({s["SVLL_ATTEMPT"] for s in seen}) == 1
