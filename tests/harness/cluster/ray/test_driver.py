"""Sweeps under Ray Tune on this machine, against the same sweeps as independent trials."""

import dataclasses
import os
import random
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from harness.base.files import read_json
from harness.base.machine import visible_gpus
from harness.cluster.launch import cancel, launch
from harness.cluster.local import slots
from harness.cluster.local.claims import Pool
from harness.cluster.local.place import end_workers, living_workers
from harness.cluster.rank_processes import RankGroup
from harness.cluster.ray import driver
from harness.cluster.ray.schedulers import make_scheduler
from harness.cluster.ray.watched_run import WatchedRun
from harness.cluster.records import Record, read_records
from harness.cluster.states import survey
from harness.runs.run import Run, epoch_lines
from harness.sweeps.keys import Asha, Median
from harness.sweeps.reading import Sweep

PATIENCE_S = 300
"""Ray takes 10 s to start on two idle cores, minutes on busy ones."""
ASHA = {"asha": {"grace": 1, "reduction": 2}}


@pytest.fixture
def make_search(toy: ModuleType) -> Iterator[Callable[..., Sweep]]:
    """Makes a sweep for backend ray; what a failed test leaves running is ended."""
    made: list[Sweep] = []

    def make(*arguments: Any, **keys: Any) -> Sweep:
        made.append(toy.make_sweep(*arguments, backend="ray", **keys))
        return made[-1]

    yield make
    for sweep in made:
        end_workers(sweep.folder)


# --- with Ray ---


@pytest.mark.slow
def test_asha_ends_bad_trials_early_and_no_relaunch_of_the_search_takes_them_up(
    toy: ModuleType, make_search: Callable[..., Sweep], tmp_path: Path
) -> None:
    search = {"work.quality": {"grid": [0.4, 0.3, 0.2, 0.1]}}
    recipe = {"work": {"epochs": 4}}
    sweep = make_search(tmp_path, search, recipe=recipe, scheduler=ASHA)
    launch(sweep, "local", jobs=1)  # one after the other, best first: all others are ended
    over(toy, sweep)
    assert states(sweep) == ["complete", *["ended early"] * 3]
    assert [v.note for v in survey(sweep)[1:]] == ["stopped early by ASHA at epoch 1"] * 3
    assert [len(epoch_lines(t.run)) for t in sweep.trials] == [4, 1, 1, 1]
    assert launch(sweep, "local") == []

    # a new point is compared with what the finished ones were at its epoch
    wider = {"work.quality": {"grid": [0.4, 0.3, 0.2, 0.1, 0.15, 0.5]}}
    sweep = make_search(tmp_path, wider, recipe=recipe, scheduler=ASHA)
    assert [v.trial.point["work.quality"] for v in launch(sweep, "local", jobs=1)] == [0.15, 0.5]
    over(toy, sweep)
    assert states(sweep)[4:] == ["ended early", "complete"]

    # a sweep that ends nothing early goes on with them from where they are
    sweep = toy.make_sweep(tmp_path, search, recipe=recipe)
    assert len(launch(sweep, "local")) == 3
    over(toy, sweep)
    assert states(sweep) == ["complete"] * 4
    assert_whole(sweep, epochs=4)


@pytest.mark.slow
def test_a_search_is_closed_and_once_cancelled_ends_in_what_the_array_backend_gives(
    toy: ModuleType, make_search: Callable[..., Sweep], tmp_path: Path,
    gpus: Callable[[int], list[str]], monkeypatch: pytest.MonkeyPatch,
) -> None:
    search = {"work.quality": {"grid": [0.1, 0.2, 0.3]}}
    recipe = {"work": {"epochs": 50, "epoch_s": 0.5}}  # the strangers take their time
    sweep = make_search(tmp_path / toy.ODD_HERE, search, recipe=recipe)
    launch(sweep, "local", jobs=2)
    toy.until(lambda: progressed(sweep) == 2, seconds=PATIENCE_S)
    rendezvous = rendezvous_of(sweep)
    processes = session(rendezvous["pid"])
    folder = Path(rendezvous["temp"])
    assert_closed(rendezvous, Path(read_records(sweep.folder)[0].folder))

    cancel(sweep)
    toy.until(lambda: not any(alive(pid) for pid in processes))
    assert len(processes) >= 5  # the head, GCS, raylet, agents, workers
    assert not folder.exists()
    assert not list(Path(read_records(sweep.folder)[0].folder).glob("*.token"))
    assert states(sweep) == ["stopped"] * 3
    reached = [len(epoch_lines(t.run)) for t in sweep.trials]
    assert all(reached[:2])
    assert not reached[2]

    monkeypatch.setenv("TOY_WORK", '{"epoch_s": 0}')
    _, second = gpus(2)
    claim = Pool(visible_gpus(), 1, [], 0).take("other (process 1)")
    assert claim is not None
    assert len(launch(sweep, "local", jobs=2)) == 3
    over(toy, sweep)
    claim.release()
    assert states(sweep) == ["complete"] * 3
    assert_whole(sweep, epochs=50)
    assert [t.run.status()["attempts"] for t in sweep.trials] == [2, 2, 1]
    seen = [read_json(trial.run.folder / "seen-0.json") for trial in sweep.trials]
    assert {one["CUDA_VISIBLE_DEVICES"] for one in seen} == {second}
    text = next(Path(read_records(sweep.folder)[-1].folder).glob("worker-0.log")).read_text()
    assert "1 instead of 2 trials at a time: other sweeps are running here" in text
    assert (sweep.folder / "reported.json").exists()
    by_array = toy.make_sweep(tmp_path / "array", search, recipe=recipe)
    launch(by_array, "local")
    over(toy, by_array)
    for one, other in zip(by_array.trials, sweep.trials, strict=True):
        assert one.run.signature == other.run.signature
        assert one.run.result() == other.run.result()
        assert one.run.metrics() == other.run.metrics()

    # what is finished is finished, whoever asks
    assert launch(sweep, "local") == []
    assert launch(dataclasses.replace(sweep, backend="array"), "local") == []
    assert len(read_records(sweep.folder)) == 2


@pytest.mark.slow
def test_one_search_of_two_on_a_node_ends_or_is_killed_without_the_other_and_loses_nothing(
    toy: ModuleType, make_search: Callable[..., Sweep], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(slots, "usable_cores", lambda: [0, 1])  # to claim: toys need no core
    search = {"work.quality": {"grid": [0.1, 0.2]}}
    short = make_search(tmp_path / "short", search)
    long = make_search(
        tmp_path / "long", search, recipe={"work": {"epochs": 300, "epoch_s": 1.0}}
    )
    launch(long, "local", jobs=1)  # on one core, the other is free
    toy.until(lambda: progressed(long) == 1, seconds=PATIENCE_S)
    launch(short, "local", jobs=1)
    over(toy, short)
    assert states(short) == ["complete"] * 2
    run = long.trials[0].run
    reached = len(epoch_lines(run))
    toy.until(lambda: len(epoch_lines(run)) >= reached + 2)
    assert run.status()["attempts"] == 1

    processes = session(rendezvous_of(long)["pid"])
    [worker] = living_workers(long.folder)
    os.kill(worker["pid"], signal.SIGKILL)
    toy.until(lambda: not any(alive(pid) for pid in processes))
    toy.until(lambda: states(long) == ["stopped", "died"])
    monkeypatch.setenv("TOY_WORK", '{"epoch_s": 0}')
    by_array = dataclasses.replace(long, backend="array")  # either backend takes them up
    assert len(launch(by_array, "local", jobs=2)) == 2
    over(toy, by_array)
    assert_whole(long, epochs=300)


def assert_closed(rendezvous: dict[str, Any], job: Path) -> None:
    """Nobody without the token gets in, and nobody else can read it or Ray's files."""
    [token] = job.glob("ray-*.token")
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert stat.S_IMODE(job.stat().st_mode) == 0o700
    assert stat.S_IMODE(Path(rendezvous["temp"]).stat().st_mode) == 0o700
    assert len(set(rendezvous["ports"].values())) == len(rendezvous["ports"])
    assert not refused(rendezvous, token.read_text())
    assert refused(rendezvous, "0" * 64)
    assert refused(rendezvous, None)


def refused(rendezvous: dict[str, Any], token: str | None) -> bool:
    """Whether a stranger who has this token cannot list the nodes of our Ray."""
    program = (
        "import sys; from ray._raylet import GcsClient\n"
        "print(len(GcsClient(address=sys.argv[1]).get_all_node_info(timeout=5)))\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    if token is not None:
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    done = subprocess.run(
        [sys.executable, "-c", program, rendezvous["address"]], env=environment,
        capture_output=True, text=True, timeout=60,
    )
    assert done.returncode or done.stdout.strip() == "1"
    return done.returncode != 0


# --- without ---


class TuneTrial:
    """A trial as Tune shows it to a scheduler."""

    def __init__(self, run: Run) -> None:
        self.trial_id, self.config = f"tune-{run.signature}", {"run": str(run.folder)}


def judged(toy: ModuleType, folder: Path, scheduler: Any, **changes: Any) -> Any:
    sweep = toy.make_sweep(folder / "of sweep", {}, backend="ray")
    return make_scheduler(dataclasses.replace(sweep, scheduler=scheduler, **changes))


def restarted(toy: ModuleType, folder: Path, scheduler: Any, runs: list[Run]) -> Any:
    tune = judged(toy, folder, scheduler)
    ended = [run for run in runs if (run.folder / "early_end.json").exists()]
    tune.replay(ended, [run for run in runs if run not in ended])
    return tune


SCORES = random.Random(3).sample(range(1000), 40)
"""Of ten runs, four epochs each."""


@pytest.mark.parametrize("scheduler", [Asha(grace=1, reduction=2), Median(grace=1, trials=2)])
@pytest.mark.parametrize("killed_after", [1, 5, 12, 20])
def test_a_driver_that_was_killed_ends_the_trials_that_it_would_have_ended(
    toy: ModuleType, tmp_path: Path, scheduler: Any, killed_after: int
) -> None:
    order = [(run, epoch) for run in range(10) for epoch in range(1, 5)]
    random.Random(killed_after).shuffle(order)
    order.sort(key=lambda item: item[1])  # as if side by side

    def course(folder: Path, killed_after: int | None) -> dict[str, int]:
        """Report epochs in order; returns at which each ended run was ended."""
        runs = [Run(folder / f"run{number}") for number in range(10)]
        tune, ended = judged(toy, folder, scheduler), {}
        for count, (number, epoch) in enumerate(order):
            if count == killed_after:
                tune = restarted(toy, folder, scheduler, runs)
            run = runs[number]
            if run.signature in ended:
                continue
            score = SCORES[4 * number + epoch - 1]
            run.log_metrics({"kind": "epoch", "epoch": epoch, "validation": {"mAP": score}})
            result = {"epoch": epoch, "validation.mAP": score}
            if count + 1 == killed_after:  # it had been logged, and nobody had judged it
                tune = restarted(toy, folder, scheduler, runs)
                assert WatchedRun(run, log_file=folder / "x", group=RankGroup()).stored
            if tune.on_trial_result("a controller", TuneTrial(run), result) == "STOP":
                ended[run.signature] = epoch
                assert read_json(run.folder / "early_end.json")["epoch"] == epoch
        return ended

    undisturbed = course(tmp_path / "undisturbed", None)
    assert 3 <= len(undisturbed) <= 9
    assert course(tmp_path / "killed", killed_after) == undisturbed


def test_asha_keeps_the_smallest_where_smaller_is_better(toy: ModuleType, tmp_path: Path) -> None:
    tune = judged(toy, tmp_path, Asha(grace=1, reduction=2), metric="loss", mode="min")
    decisions = [
        tune.on_trial_result(None, TuneTrial(Run(tmp_path / name)), {"epoch": 1, "loss": loss})
        for name, loss in (("a", 1.0), ("b", 2.0), ("c", 0.5))
    ]
    assert decisions == ["CONTINUE", "STOP", "CONTINUE"]


def test_asha_may_judge_epochs_without_the_metric_by_another_number(
    toy: ModuleType, tmp_path: Path
) -> None:
    tune = judged(toy, tmp_path, Asha(grace=1, reduction=2, early="sharpness"))
    results = [
        ("a", {"epoch": 1, "sharpness": 0.5}), ("b", {"epoch": 1, "sharpness": 0.4}),
        ("c", {"epoch": 1, "sharpness": 0.6}),
        # the second stage counts its epochs anew, and is compared with itself only
        ("a", {"epoch": 1, "validation.mAP": 0.1}), ("c", {"epoch": 1, "validation.mAP": 0.2}),
        ("d", {"epoch": 1, "loss": 0.6}),
    ]
    decisions = [
        tune.on_trial_result(None, TuneTrial(Run(tmp_path / name)), result)
        for name, result in results
    ]
    assert decisions == ["CONTINUE", "STOP", "CONTINUE", "CONTINUE", "CONTINUE", "CONTINUE"]


def test_a_requeued_job_resumes_open_runs_with_the_most_epochs_first(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "toys"
    lines = {"done": 3, "pruned": 1, "failed": 2, "new": 0, "half": 2}
    runs = {name: finished_run(folder / name, [0.1] * n) for name, n in lines.items()}
    runs["done"].result_file.write_text("{}")
    runs["pruned"].set_status("stopped", pruned=True)
    runs["failed"].set_status("failed")
    runs["new"].set_status("submitted")
    runs["half"].set_status("stopped")
    record = Record(
        "token", "slurm", 0.0, ["pruned", "failed", "new", "half"],
        options={"sweep": {"known": list(lines)}}, folder=str(folder / "jobs" / "token"),
    )
    finished, due = driver._split(record, list(lines))
    assert [run.signature for run in finished] == ["done", "pruned"]
    assert [run.signature for run in due] == ["half", "new"]


# --- helpers ---


def finished_run(folder: Path, scores: list[float]) -> Run:
    run = Run(folder)
    for epoch, score in enumerate(scores, start=1):
        run.log_metrics({"kind": "epoch", "epoch": epoch, "validation": {"mAP": score}})
        run.log_metrics({"kind": "step", "epoch": epoch + 1, "step": 1, "loss": 9.0})
    return run


def states(sweep: Sweep) -> list[str]:
    return [view.state for view in survey(sweep)]


def over(toy: ModuleType, sweep: Sweep) -> None:
    """Wait until the sweep's jobs are over, and not only its trials."""
    toy.until(lambda: not {"queued", "running"} & set(states(sweep)), seconds=PATIENCE_S)
    toy.until(lambda: not living_workers(sweep.folder), seconds=PATIENCE_S)


def progressed(sweep: Sweep) -> int:
    return sum(len(epoch_lines(trial.run)) >= 2 for trial in sweep.trials)


def assert_whole(sweep: Sweep, *, epochs: int) -> None:
    for trial in sweep.trials:
        epochs_logged = [line["epoch"] for line in epoch_lines(trial.run)]
        assert epochs_logged == list(range(1, epochs + 1))


def rendezvous_of(sweep: Sweep) -> dict[str, Any]:
    [record] = read_records(sweep.folder)
    return dict(read_json(Path(record.folder) / "ray-local.json"))


def session(leader: int) -> list[int]:
    """Return the processes of a session: all that Ray started on this machine."""
    found = subprocess.run(["ps", "-s", str(leader), "-o", "pid="], capture_output=True, text=True)
    return [int(pid) for pid in found.stdout.split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
