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
from harness.reporting import follow as following
from harness.reporting.follow import follow


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
