"""Sweeps on this machine: workers, their deaths, and what is left."""

import os
import re
import signal
import socket
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from tempfile import gettempdir
from types import ModuleType

import pytest

from harness.base.errors import UserError
from harness.base.files import read_json
from harness.base.locks import held_lock, lock_holder
from harness.cluster.launch import cancel, launch
from harness.cluster.local import slots
from harness.cluster.local.place import living_workers
from harness.cluster.slurm.place import Slurm
from harness.cluster.states import ALIVE, survey
from harness.sweeps.reading import Sweep

SLOW = {"work": {"epochs": 8, "epoch_s": 0.3}}


@pytest.mark.parametrize(
    ("how", "error"),
    [
        ("raise", "RuntimeError: the toy broke, as it was told to; wind it up"),
        ("kill", "killed by SIGKILL (out of memory?)"),
        ("exit", "ended with exit status 7"),
    ],
)
def test_a_failed_trial_has_its_cause_and_the_others_continue(
    toy: ModuleType, tmp_path: Path, how: str, error: str
) -> None:
    sweep = toy.make_sweep(tmp_path, {"work.fail": {"grid": [how, "no"]}})
    launch(sweep, "local", jobs=1)
    over(toy, sweep)
    assert states(sweep) == ["failed", "complete"]
    view = survey(sweep)[0]
    assert view.note == error
    assert Path(view.status["log"]).exists()


def test_a_relaunch_runs_what_was_killed_and_when_asked_to_what_failed(
    toy: ModuleType, tmp_path: Path
) -> None:
    sweep = toy.make_sweep(tmp_path, {"work.fail": {"grid": ["raise", "no", "kill"]}})
    launch(sweep, "local")
    over(toy, sweep)
    assert states(sweep) == ["failed", "complete", "failed"]
    assert [v.trial.index for v in launch(sweep, "local")] == [2]
    over(toy, sweep)
    assert [v.trial.index for v in launch(sweep, "local", retry_failed=True)] == [0, 2]
    over(toy, sweep)
    assert [t.run.status()["attempts"] for t in sweep.trials] == [2, 1, 3]


def test_a_killed_worker_takes_its_trial_along_and_the_relaunch_loses_nothing(
    toy: ModuleType, tmp_path: Path
) -> None:
    sweep = toy.make_sweep(tmp_path, {"work.quality": {"grid": [0.1, 0.2]}}, recipe=SLOW)
    launch(sweep, "local", jobs=1)
    first = sweep.trials[0].run
    toy.until(lambda: len(first.metrics()) >= 2)
    child = read_json(first.folder / "seen-0.json")["pid"]
    [worker] = living_workers(sweep.folder)
    os.kill(worker["pid"], signal.SIGKILL)
    toy.until(lambda: not alive(child))
    toy.until(lambda: states(sweep) == ["stopped", "died"])
    assert len(launch(sweep, "local", jobs=2)) == 2
    over(toy, sweep)
    assert_whole(sweep, epochs=8)


def test_a_trial_killed_with_its_worker_resumes_from_its_last_checkpoint(
    toy: ModuleType, tmp_path: Path
) -> None:
    sweep = toy.make_sweep(tmp_path, {}, recipe=SLOW)
    launch(sweep, "local")
    [trial] = sweep.trials
    toy.until(lambda: len(trial.run.metrics()) >= 2)
    child = read_json(trial.run.folder / "seen-0.json")["pid"]
    [worker] = living_workers(sweep.folder)
    os.kill(worker["pid"], signal.SIGSTOP)  # or it would write the trial's end
    os.kill(child, signal.SIGKILL)
    os.kill(worker["pid"], signal.SIGKILL)
    toy.until(lambda: states(sweep) == ["died"])
    assert len(launch(sweep, "local")) == 1
    over(toy, sweep)
    assert_whole(sweep, epochs=8)


def test_cancelling_lets_trials_save_and_leaves_no_process_though_slurm_does_not_answer(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: object) -> None:
        raise UserError("SLURM has not ended 1 job yet: 7")

    monkeypatch.setattr(Slurm, "cancel", fails)
    sweep = toy.make_sweep(tmp_path, {"work.quality": {"grid": [0.1, 0.2, 0.3]}}, recipe=SLOW)
    launch(sweep, "local", jobs=2)
    toy.until(lambda: all(len(t.run.metrics()) >= 1 for t in sweep.trials[:2]))
    processes = [read_json(t.run.folder / "seen-0.json")["pid"] for t in sweep.trials[:2]]
    processes += [worker["pid"] for worker in living_workers(sweep.folder)]
    with pytest.raises(UserError, match="SLURM has not ended 1 job yet: 7"):
        cancel(sweep)
    assert states(sweep) == ["stopped"] * 3
    assert not any(alive(pid) for pid in processes)
    assert len(launch(sweep, "local", jobs=3)) == 3
    over(toy, sweep)
    assert_whole(sweep, epochs=8)


def test_trials_on_their_way_are_not_started_again_and_new_ones_wait_for_a_slot(
    toy: ModuleType, tmp_path: Path
) -> None:
    recipe = {"work": {"epochs": 2, "epoch_s": 0.5}}
    sweep = toy.make_sweep(tmp_path, {"work.quality": {"grid": [0.1, 0.2]}}, recipe=recipe)
    launch(sweep, "local", jobs=1)
    assert launch(sweep, "local", jobs=1) == []
    wider = {"work.quality": {"grid": [0.1, 0.2, 0.3]}}
    sweep = toy.make_sweep(tmp_path, wider, recipe=recipe)
    assert [v.trial.index for v in launch(sweep, "local", jobs=1)] == [2]
    over(toy, sweep)
    spans = sorted((t.run.status()["started"], t.run.status()["time"]) for t in sweep.trials)
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))


def test_a_worker_that_waits_for_a_slot_reads_little_and_takes_it_within_a_second(
    toy: ModuleType, tmp_path: Path
) -> None:
    grid = [n / 100 for n in range(100)]
    sweep = toy.make_sweep(tmp_path, {"work.quality": {"grid": grid}}, recipe=SLOW)
    with held_lock(sweep.folder / "jobs" / "slot-0.lock"):
        launch(sweep, "local", jobs=1)
        [worker] = living_workers(sweep.folder)
        time.sleep(1.0)  # its first pauses are shorter
        before = reads(worker["pid"])
        time.sleep(2.0)
        # all statuses, five times a second, would be 1,000 reads a second
        assert reads(worker["pid"]) - before < 50
    released = time.monotonic()
    lock = sweep.folder / "jobs" / "slot-0.lock"
    toy.until(lambda: lock_holder(lock) is not None, every=0.02)
    assert time.monotonic() - released < 10.0
    cancel(sweep)


def test_a_worker_that_writes_the_page_ends_when_it_is_told_to(
    toy: ModuleType, tmp_path: Path
) -> None:
    recipe = {"run": {"runs": str(tmp_path / "runs"), "report": "toy_experiment.slow_report"}}
    sweep = toy.make_sweep(tmp_path, {}, recipe=recipe)
    launch(sweep, "local")
    toy.until(lambda: lock_holder(sweep.folder / "jobs" / "page.lock") is not None)
    [worker] = living_workers(sweep.folder)
    os.kill(worker["pid"], signal.SIGTERM)
    toy.until(lambda: not alive(worker["pid"]), seconds=5)
    assert states(sweep) == ["complete"]
    assert not (sweep.folder / "jobs" / "page.lock").exists()


def test_workers_belong_to_no_terminal(toy: ModuleType, tmp_path: Path) -> None:
    sweep = toy.make_sweep(tmp_path, {}, recipe=SLOW)
    launch(sweep, "local")
    [worker] = living_workers(sweep.folder)
    assert os.getsid(worker["pid"]) != os.getsid(0)
    cancel(sweep)


def test_several_ranks_share_world_and_port_and_see_no_gpu_where_the_sweep_wants_none(
    toy: ModuleType, tmp_path: Path, gpus: Callable[[int], list[str]]
) -> None:
    gpus(1)
    sweep = toy.make_sweep(tmp_path, {}, resources={"nodes": 2, "tasks": 2, "gpus": 0})
    launch(sweep, "local")
    over(toy, sweep)
    files = [sweep.trials[0].run.folder / f"seen-{rank}.json" for rank in range(4)]
    seen = [read_json(file) for file in files]
    assert [s["LOCAL_RANK"] for s in seen] == ["0", "1", "2", "3"]
    assert {s["WORLD_SIZE"] for s in seen} == {"4"}
    assert len({s["SVLL_ATTEMPT"] for s in seen}) == 1
    assert {s["CUDA_VISIBLE_DEVICES"] for s in seen} == {""}
    # compiled code stays on the node
    caches = f"{gettempdir()}/svll-{os.getuid()}"
    assert {s["TRITON_CACHE_DIR"] for s in seen} == {f"{caches}/triton"}


def test_a_rank_that_fails_ends_the_others_and_is_named(toy: ModuleType, tmp_path: Path) -> None:
    recipe = {"work": {"fail_rank": 1, "epochs": 90, "epoch_s": 0.5}}
    sweep = toy.make_sweep(tmp_path, {"work.fail": {"grid": ["raise", "kill"]}}, recipe=recipe,
                           resources={"tasks": 2})
    launch(sweep, "local")
    over(toy, sweep)
    views = survey(sweep)
    assert [view.state for view in views] == ["failed", "failed"]
    assert [view.note for view in views] == [
        "rank 1: RuntimeError: the toy broke, as it was told to; wind it up",
        "rank 1: killed by SIGKILL (out of memory?)",
    ]
    assert "in misbehave" in "\n".join(views[0].status["lines"])
    assert [view.is_due for view in views] == [False, True]
    for view in views:
        begun = (view.trial.run.folder / "seen-1.json").stat().st_mtime
        assert view.status["time"] - begun < 15.0


def test_sweeps_of_one_machine_take_turns_with_its_gpu_and_say_whom_they_wait_for(
    toy: ModuleType, tmp_path: Path, gpus: Callable[[int], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    [name] = gpus(1)
    search = {"work.quality": {"grid": [0.1, 0.2]}}
    sweeps = [
        toy.make_sweep(tmp_path / n, search, name="same", resources={"cpus": 3}) for n in "ab"
    ]
    pool = slots.pool_for(sweeps[0].resources, 1)
    claim = pool.take("same (process 1)")
    assert claim is not None
    for sweep in sweeps:
        launch(sweep, "local")
    assert {v.note for s in sweeps for v in survey(s)} == {"waits for same (process 1)"}
    with monkeypatch.context() as patch:  # of who looks, on another machine or as another user
        patch.setattr(socket, "gethostname", lambda: "elsewhere")
        assert {v.note for s in sweeps for v in survey(s)} == {""}
    with monkeypatch.context() as patch:
        patch.setenv("SVLL_CLAIMS", "/proc/no-folder")
        assert {v.note for s in sweeps for v in survey(s)} == {""}
    logs = [next(sweep.folder.glob("jobs/*/worker-0.log")) for sweep in sweeps]
    toy.until(lambda: all("used by same (process 1)" in log.read_text() for log in logs))
    claim.release()
    for sweep in sweeps:
        over(toy, sweep)
    runs = [trial.run for sweep in sweeps for trial in sweep.trials]
    seen = [read_json(run.folder / "seen-0.json") for run in runs]
    assert {(s["CUDA_VISIBLE_DEVICES"], s["OMP_NUM_THREADS"]) for s in seen} == {(name, "3")}
    assert {(s["RANK"], s["WORLD_SIZE"], s["MASTER_ADDR"]) for s in seen} == {
        ("0", "1", "127.0.0.1")
    }
    spans = sorted((r.status()["started"], r.status()["time"], r.folder.parent) for r in runs)
    assert all(end <= start for (_, end, _), (start, _, _) in pairwise(spans))
    assert {folder for _, _, folder in spans[:2]} == {sweep.folder for sweep in sweeps}


def test_a_killed_workers_gpu_stays_taken_until_its_trial_has_saved(
    toy: ModuleType, tmp_path: Path, gpus: Callable[[int], list[str]]
) -> None:
    gpus(1)
    sweep = toy.make_sweep(tmp_path, {}, recipe=SLOW)
    launch(sweep, "local")
    [trial] = sweep.trials
    toy.until(lambda: len(trial.run.metrics()) >= 1)
    child = read_json(trial.run.folder / "seen-0.json")["pid"]
    pool = slots.pool_for(sweep.resources, 1)
    os.kill(child, signal.SIGSTOP)
    [worker] = living_workers(sweep.folder)
    os.kill(worker["pid"], signal.SIGKILL)
    toy.until(lambda: not alive(worker["pid"]))
    assert pool.free() == 0
    os.kill(child, signal.SIGCONT)
    toy.until(lambda: pool.free() == 1)
    toy.until(lambda: not alive(child))


# --- helpers ---


def reads(pid: int) -> int:
    """Return how often a process has read from files."""
    return int(re.findall(r"syscr: (\d+)", Path(f"/proc/{pid}/io").read_text())[0])


def states(sweep: Sweep) -> list[str]:
    return [view.state for view in survey(sweep)]


def over(toy: ModuleType, sweep: Sweep) -> None:
    toy.until(lambda: not any(view.state in ALIVE for view in survey(sweep)))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def assert_whole(sweep: Sweep, *, epochs: int) -> None:
    """No epoch is missing and none was run twice."""
    for trial in sweep.trials:
        assert trial.run.is_complete()
        assert [e["epoch"] for e in trial.run.metrics()] == list(range(1, epochs + 1))
