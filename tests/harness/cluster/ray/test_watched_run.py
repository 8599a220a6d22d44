"""A run as Ray's actor watches it; no Ray is needed for that."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from harness.base.files import read_json
from harness.base.locks import lock_holder
from harness.base.mappings import numeric_leaves
from harness.cluster.rank_processes import RankGroup, TrialFailed
from harness.cluster.ray import watched_run
from harness.cluster.ray.followers import own_gpus
from harness.cluster.ray.search_notes import (
    end_early,
    end_paused,
    mark_ended_early,
    was_ended_early,
)
from harness.cluster.ray.watched_run import WatchedRun
from harness.config.values import to_yaml
from harness.runs.run import Run, epoch_lines


@pytest.fixture
def make_run(toy: ModuleType, tmp_path: Path) -> Any:
    def make(name: str = "0123456789ab", **work: Any) -> Run:
        run = Run(tmp_path / "runs" / "toys" / name)
        run.create(to_yaml(toy.Config(work=toy.Work(**work))))
        return run

    return make


def watch(run: Run) -> WatchedRun:
    return WatchedRun(run, log_file=run.folder.parent / "log.txt", group=RankGroup(), replay=True)


def until_done(watched: WatchedRun) -> list[dict[str, Any]]:
    results = [watched.next_result()]
    while not results[-1].get("done"):
        results.append(watched.next_result())
    return results


def test_nested_metrics_become_numbers_by_dotted_key() -> None:
    line = {"kind": "epoch", "epoch": 3, "ok": True, "validation": {"mAP": 0.5, "cmc": {"1": 0.7}}}
    assert numeric_leaves(line) == {"epoch": 3, "validation.mAP": 0.5, "validation.cmc.1": 0.7}


def test_a_paused_run_that_is_ended_while_it_still_saves_is_marked_by_its_own_process(
    make_run: Any
) -> None:
    saving, over = make_run(), make_run("ba9876543210")
    with saving.lock():
        end_paused(saving, by="HyperBand", epoch=3)
        saving.set_status("stopped", reason="told to stop")
    assert not was_ended_early(saving)
    mark_ended_early(saving)
    assert was_ended_early(saving)
    over.set_status("stopped", reason="told to stop")
    end_paused(over, by="HyperBand", epoch=3)
    assert was_ended_early(over)
    assert over.status()["reason"] == "stopped early by HyperBand at epoch 3"


def test_every_epoch_is_reported_and_the_end_has_the_result(make_run: Any) -> None:
    run = make_run(quality=0.4, epochs=2)
    *epochs, end = until_done(watch(run))
    assert [(r["epoch"], r["validation.mAP"]) for r in epochs] == [(1, 0.2), (2, 0.4)]
    assert end["mAP"] == 0.2
    assert end["validation.mAP"] == 0.4
    assert run.status()["state"] == "complete"


def test_the_run_waits_for_the_answer_before_it_trains_on(toy: ModuleType, make_run: Any) -> None:
    run = make_run(epochs=50)
    watched = watch(run)
    for count in (1, 2, 3):
        watched.next_result()
        assert len(epoch_lines(run)) == count
    watched.end()
    assert len(epoch_lines(run)) == 3
    assert run.status()["state"] == "stopped"
    assert not was_ended_early(run)


def test_a_run_that_the_search_ends_is_marked_so_with_its_epoch(make_run: Any) -> None:
    run = make_run(epochs=50)
    watched = watch(run)
    watched.next_result()
    end_early(run, by="ASHA", epoch=watched.next_result()["epoch"])
    watched.end()
    status = run.status()
    assert (status["state"], status["pruned"]) == ("stopped", True)
    assert status["reason"] == "stopped early by ASHA at epoch 2"
    assert status["attempts"] == 1
    assert was_ended_early(run)


def test_a_resumed_run_first_reports_its_earlier_epochs_and_each_epoch_once(make_run: Any) -> None:
    run = make_run(epochs=4)
    first = watch(run)
    first.next_result()
    first.next_result()
    first.end()
    (run.folder / "checkpoints" / "0.json").write_text('{"epoch": 1}')  # epoch 2 comes again
    second = watch(run)
    assert second.next_result()["epoch"] == 1
    assert second.process is None
    results = until_done(second)
    assert [r.get("epoch") for r in results] == [2, 3, 4, None]


def test_a_run_that_continues_is_no_longer_marked_as_ended_early(make_run: Any) -> None:
    run = make_run(epochs=3)
    watched = watch(run)
    watched.next_result()
    end_early(run, by="ASHA", epoch=1)
    watched.end()
    assert was_ended_early(run)
    again = watch(run)
    again.next_result()
    again.next_result()
    again.end()
    assert run.status()["state"] == "stopped"
    assert not was_ended_early(run)


def test_a_run_can_be_ended_by_what_it_had_reached_without_being_started(make_run: Any) -> None:
    run = make_run(epochs=9)
    first = watch(run)
    first.next_result()
    first.end()
    again = watch(run)
    again.next_result()
    end_early(run, by="ASHA", epoch=1)
    again.end()
    assert again.process is None
    assert was_ended_early(run)
    assert run.status()["attempts"] == 1


def test_a_complete_run_is_reported_again_and_not_started(make_run: Any) -> None:
    run = make_run(epochs=2)
    before = until_done(watch(run))
    watched = watch(run)
    assert until_done(watched) == before
    watched.end()
    assert watched.process is None
    assert run.status()["state"] == "complete"


@pytest.mark.parametrize(
    ("how", "error"),
    [("raise", "the toy broke"), ("kill", "killed by SIGKILL"), ("exit", "exit status 7")],
)
def test_a_run_that_fails_raises_the_error_in_its_folder(
    make_run: Any, how: str, error: str
) -> None:
    run = make_run(fail=how)
    watched = watch(run)
    with pytest.raises(TrialFailed, match=error):
        watched.next_result()
    watched.end()
    assert run.status()["state"] == "failed"
    assert error in run.status()["error"]


def test_a_run_in_other_hands_is_left_alone(make_run: Any) -> None:
    run = make_run(epochs=50)
    watched, other = watch(run), watch(run)
    watched.next_result()
    other.stored.clear()
    with pytest.raises(TrialFailed, match="another process"):
        other.next_result()
    assert run.status()["state"] == "running"
    watched.end()


def test_a_run_whose_watcher_is_killed_stops_at_once_and_has_saved(
    toy: ModuleType, make_run: Any
) -> None:
    run = make_run(epochs=100, epoch_s=40.0)
    program = (
        "import sys; from pathlib import Path; from harness.runs.run import Run\n"
        "from harness.cluster.rank_processes import RankGroup\n"
        "from harness.cluster.ray.watched_run import WatchedRun\n"
        f"watched = WatchedRun(Run(Path({str(run.folder)!r})),"
        f" log_file=Path({str(run.folder / 'out')!r}), group=RankGroup())\n"
        "while True: watched.next_result()\n"
    )
    watcher = subprocess.Popen([sys.executable, "-c", program])
    toy.until((run.folder / "seen-0.json").exists)
    watcher.kill()
    watcher.wait()
    toy.until(lambda: run.status()["state"] == "stopped", seconds=20)
    toy.until(lambda: lock_holder(run.lock_file) is None)
    reached = read_json(run.folder / "checkpoints" / "0.json")["epoch"]
    assert reached == len(epoch_lines(run))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_run_that_is_signalled_by_the_scheduler_saves_and_its_place_stays_taken(
    make_run: Any, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched_run, "HOLD_S", 1.5)
    run = make_run(epochs=100, epoch_s=5.0)
    watched = watch(run)
    killer = threading.Timer(2.0, lambda: os.kill(watched.process.pid, number))  # type: ignore[union-attr]
    killer.start()
    results = until_done(watched)
    assert [r.get("epoch") for r in results] == [1, None]
    assert run.status()["state"] == "stopped"
    assert time.time() - run.status()["time"] > 1.5


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_rank_is_noticed_at_once_and_named_though_the_other_hangs(
    toy: ModuleType, make_run: Any, monkeypatch: pytest.MonkeyPatch, killed: int
) -> None:
    monkeypatch.setattr(watched_run, "LOST_LIMIT_S", 1.0)
    run = make_run(epochs=100, epoch_s=60.0)
    watched = WatchedRun(run, log_file=run.folder.parent / "out.0.log",
                         group=RankGroup(ranks=2, world=2))
    seen = [run.folder / f"seen-{rank}.json" for rank in range(2)]
    pids: list[int] = []
    times: list[float] = []

    def kill() -> None:
        toy.until(lambda: all(file.exists() for file in seen))
        pids.extend(read_json(file)["pid"] for file in seen)
        os.kill(pids[1 - killed], signal.SIGSTOP)  # as in a collective, which has no end
        os.kill(pids[killed], signal.SIGKILL)
        times.append(time.monotonic())

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(TrialFailed, match=f"rank {killed}: killed by SIGKILL"):
        watched.next_result()
    assert time.monotonic() - times[0] < 15.0
    killer.join()
    status = run.status()
    assert (status["state"], status["hindered"]) == ("failed", True)
    assert status["error"] == f"rank {killed}: killed by SIGKILL (out of memory?)"
    assert status["log"] == str(run.folder.parent / f"out.{killed}.log")
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_trial_gets_the_gpus_of_its_actor_though_ray_leaves_the_variable_alone(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: ["GPU-b"])
    assert own_gpus(0.5) == "GPU-b"
    assert own_gpus(0.0) == ""


def test_a_run_sees_one_rank_its_cores_and_no_gpu_that_it_did_not_ask_for(
    make_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("MASTER_PORT", "1")
    monkeypatch.setenv("WORLD_SIZE", "7")
    run = make_run()
    until_done(watch(run))
    seen = read_json(run.folder / "seen-0.json")
    assert (seen["RANK"], seen["WORLD_SIZE"], seen["OMP_NUM_THREADS"]) == ("0", "1", "1")
    assert seen["CUDA_VISIBLE_DEVICES"] == ""
    assert "MASTER_PORT" not in seen
