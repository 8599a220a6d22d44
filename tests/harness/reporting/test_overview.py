"""The time left, how much is over, and the best so far, compared with sums written here."""

from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from harness.base.files import write_json
from harness.cluster.states import TrialState
from harness.reporting import overview
from harness.reporting.overview import Watch


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    now = SimpleNamespace(s=1000.0)
    read = SimpleNamespace(time=lambda: now.s, monotonic=lambda: now.s)
    monkeypatch.setattr(overview, "time", read)
    return now


@pytest.fixture
def sweep(toy: ModuleType, tmp_path: Path):
    qualities = {"grid": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]}
    return toy.make_sweep(tmp_path, {"work.quality": qualities}, recipe={"work": {"epochs": 10}})


def running(trial, *, started: float, epoch: int | None = None) -> TrialState:
    if epoch is not None:
        trial.run.log_metrics({"stage": "work", "epoch": epoch})
    return TrialState(trial, "running", {"state": "running", "started": started})


def complete(trial, seconds: float, metric: float) -> TrialState:
    write_json(trial.run.result_file, {"validation": {"mAP": metric}})
    return TrialState(trial, "complete", {"state": "complete", "seconds": seconds})


def test_nothing_is_claimed_before_there_is_something_to_estimate_from(sweep, clock) -> None:
    watch = Watch(sweep)
    first, second, *others = sweep.trials
    queued = [TrialState(one, "queued", {}) for one in others]
    states = [running(first, started=990.0), running(second, started=990.0), *queued]
    assert watch.look(states).left_s is None
    assert watch.look(queued).left_s is None, "nobody knows when the queue moves"
    states[0] = running(first, started=990.0, epoch=1)
    assert watch.look(states).left_s is None, "when its first epoch began is not known"
    assert watch.look(states).best is None


def test_the_time_left_comes_from_trials_that_have_finished(sweep, clock) -> None:
    watch = Watch(sweep)
    a, b, c, d, e, f = sweep.trials
    states = [complete(a, 100.0, 0.3), complete(b, 140.0, 0.5), running(c, started=970.0),
              running(d, started=910.0), TrialState(e, "queued", {}), TrialState(f, "queued", {})]
    seen = watch.look(states)
    # two at a time, 120 s each: 90 s and 30 s are left of those that run, and two come after them
    assert seen.left_s == (90 + 30 + 120 + 120) / 2
    assert seen.best == (states[1], 0.5)
    assert (seen.ended, seen.total) == (2, 6)
    late = [*states[:2], running(c, started=0.0)]
    alone = Watch(replace(sweep, trials=(a, b, c)))
    assert alone.look(late).left_s is None, "it takes longer than those did"


def test_the_time_left_comes_from_epochs_while_no_trial_has_finished(sweep, clock) -> None:
    sweep = replace(sweep, trials=sweep.trials[:3])
    watch, [trial, *others] = Watch(sweep), sweep.trials
    waiting = [TrialState(one, "queued", {}) for one in others]
    for epoch in (2, 3, 4):  # 7 s each
        clock.s += 7.0
        state = running(trial, started=950.0, epoch=epoch)
        seen = watch.look([state, *waiting])
        assert (seen.left_s is None) == (epoch < 4)
    clock.s += 1.0
    left = 6 * 7 - 1.0
    each = clock.s - 950.0 + left
    assert watch.look([state, *waiting]).left_s == left + 2 * each


def test_a_running_trial_counts_by_its_epochs_and_points_to_come_count_too(
    sweep, clock
) -> None:
    a, b, *_ = sweep.trials
    states = [complete(a, 100.0, 0.3), running(b, started=970.0, epoch=4)]
    assert Watch(replace(sweep, trials=(a, b))).look(states).done == pytest.approx((1 + 0.4) / 2)
    search = replace(sweep, trials=(a,), to_propose=9)
    assert Watch(search).look(states).total == 10
    assert Watch(search).look(states).done == pytest.approx(1.4 / 10)


def test_each_result_is_read_once_and_the_smallest_is_best_where_it_should_be(
    toy: ModuleType, tmp_path: Path
) -> None:
    sweep = toy.make_sweep(tmp_path, {"work.quality": {"grid": [0.1, 0.2]}}, mode="min")
    states = [complete(trial, 5.0, metric)
              for trial, metric in zip(sweep.trials, (0.7, 0.4), strict=True)]
    watch = Watch(sweep)
    assert watch.look(states).best == (states[1], 0.4)
    for trial in sweep.trials:
        trial.run.result_file.unlink()
    assert watch.look(states).best == (states[1], 0.4)
