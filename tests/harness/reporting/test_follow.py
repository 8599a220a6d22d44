"""Following goes on through errors that pass, and ends with those that last."""

import io
import os
import shutil
import time
from pathlib import Path
from types import ModuleType

import pytest
from rich.console import Console

from harness.base.errors import UserError
from harness.cluster.launch import launch
from harness.cluster.states import TrialState
from harness.reporting import follow as following
from harness.reporting.follow import follow
from harness.reporting.overview import Watch


def test_a_file_system_that_fails_now_and_then_ends_neither_the_follower_nor_a_worker(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import failing_reads

    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(failing_reads.SITECUSTOMIZE)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}{os.pathsep}{os.environ['PYTHONPATH']}")
    sweep = toy.make_sweep(
        tmp_path, {"work.quality": {"grid": [0.1, 0.2]}},
        recipe={"work": {"epochs": 3, "epoch_s": 0.3}},
    )
    launch(sweep, "local", jobs=1)
    failing_reads.install(monkeypatch.setattr)
    states = follow(sweep, Console(file=io.StringIO()))
    monkeypatch.undo()
    assert [one.state for one in states] == ["complete", "complete"]
    assert min(failing_reads.counts.values()) >= 3
    for trial in sweep.trials:
        assert [line["epoch"] for line in trial.run.metrics()] == [1, 2, 3]
        assert trial.run.status()["attempts"] == 1


def test_a_folder_that_is_gone_for_a_moment_does_not_end_the_follower_and_a_lasting_fault_does(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = toy.make_sweep(tmp_path, {})
    run, aside = sweep.trials[0].run, tmp_path / "aside"
    run.set_status("running")
    seen: list[float] = []

    def in_between(seconds: float) -> None:
        """Instead of sleeping between two looks."""
        seen.append(seconds)
        match len(seen):
            case 1:
                run.folder.rename(aside)
            case 2:
                aside.rename(run.folder)
            case 5:
                run.status_file.write_text("\0" * 20)

    console, clock = Console(file=io.StringIO(), width=200), iter(range(10**6))
    monkeypatch.setattr(following, "POLL_S", 1.5)  # unlike other pauses
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda s: in_between(s) if s == 1.5 else sleep(0))
    monkeypatch.setattr(following.time, "monotonic", lambda: float(next(clock)))
    with run.lock(), pytest.raises(UserError) as caught:
        follow(sweep, console)
    assert f"{run.status_file}: cannot be read" in str(caught.value)
    assert str(caught.value).splitlines()[1] == (
        "no longer followed: this has lasted for 30 s; trials continue (--status shows, --cancel "
        "ends them)"
    )
    shown = console.file.getvalue().splitlines()
    states = [line.split(": ")[1] for line in shown if " toys: " not in line]
    assert states[:3] == ["running", "missing", "running"]
    shutil.rmtree(run.folder)


@pytest.fixture
def many(toy: ModuleType, tmp_path: Path):
    return toy.make_sweep(tmp_path, {"work.quality": {"grid": [n / 100 for n in range(1, 61)]}})


def lines_of(console: Console) -> list[str]:
    """Return what was printed since the last call, without the time of day."""
    text = console.file.getvalue()
    console.file.seek(0)
    console.file.truncate()
    return [line[9:] for line in text.splitlines()]


def test_what_had_finished_before_is_counted_and_many_changes_at_once_are_cut(
    many, monkeypatch: pytest.MonkeyPatch
) -> None:
    console, now = Console(file=io.StringIO()), [0.0]
    monkeypatch.setattr(following.time, "monotonic", lambda: now[0])
    show = following._Lines(many, Watch(many), console).show
    states = [TrialState(trial, "complete", {}) for trial in many.trials[:50]]
    states += [TrialState(many.trials[50], "failed", {}, "no luck")]
    show([*states, *(TrialState(trial, "queued", {}) for trial in many.trials[51:])])
    counts = "toys: 60 trials: 9 queued, 1 failed, 50 complete; 51 of 60 trials ended"
    assert lines_of(console) == [counts, "trial 50 (quality=0.51 seed=1): failed (no luck)"]
    now[0] = 11.0
    show([TrialState(trial, "stopped", {}) for trial in many.trials])
    first, *_, more, summary = lines_of(console)
    assert first == "trial 0 (quality=0.01 seed=1): stopped"
    assert more == "and 40 trials more changed"
    assert summary == "toys: 60 trials: 60 stopped; 60 of 60 trials ended"


def test_a_sweep_that_waits_is_not_silent_and_says_nothing_twice(
    many, monkeypatch: pytest.MonkeyPatch
) -> None:
    console, now = Console(file=io.StringIO()), [0.0]
    monkeypatch.setattr(following.time, "monotonic", lambda: now[0])
    show = following._Lines(many, Watch(many), console).show
    said = {}
    for second in range(700):
        now[0] = float(second)
        show([TrialState(trial, "queued", {}) for trial in many.trials[:2]])
        if lines := lines_of(console):
            said[second] = lines
    counts = "toys: 2 trials: 2 queued; 0 of 60 trials ended"
    assert said == {0: [counts], 300: [f"{counts}; no change for 5 min"],
                    600: [f"{counts}; no change for 10 min"]}


def test_epochs_of_many_trials_are_told_together(
    many, monkeypatch: pytest.MonkeyPatch
) -> None:
    console, now = Console(file=io.StringIO()), [0.0]
    monkeypatch.setattr(following.time, "monotonic", lambda: now[0])
    some = many.trials[:3]
    show = following._Lines(many, Watch(many), console).show
    said = []
    for second in range(0, 61, 5):
        now[0] = float(second)
        for trial in some:
            trial.run.log_metrics({"stage": "work", "epoch": second})
        show([TrialState(trial, "running", {}) for trial in some])
        said.append(len(lines_of(console)))
    # the counts and three trials; then each trial every ten seconds, and the sweep every minute
    assert said == [4, 0, 3, 0, 3, 0, 3, 0, 3, 0, 3, 0, 4]
    monkeypatch.setattr(following, "MOST_LINES", 2)
    now[0] = 71.0
    some[0].run.log_metrics({"stage": "work", "epoch": 99})
    show([TrialState(trial, "running", {}) for trial in some])
    assert lines_of(console) == []
