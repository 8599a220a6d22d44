"""Who holds a lock, and who may take it."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.base import locks
from harness.base.files import link_folder, write_json
from harness.base.locks import Busy, LockLost, check_held, held_lock, lock_holder
from harness.runs.run import Run

FORK = multiprocessing.get_context("fork")
HOLD = (
    "import signal, sys, time\n"
    "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in the background
    "from pathlib import Path\n"
    "from harness.runs.run import Run\n"
    "with Run(Path(sys.argv[1])).lock():\n"
    "    print('held', flush=True)\n"
    "    time.sleep(float(sys.argv[2]))\n"
)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "sweep" / "0123456789ab")


# --- files and state ---


# --- lock ---


@pytest.fixture
def hold(run: Run) -> Iterator[Any]:
    """Start a process that holds the run's lock for some seconds."""
    processes = []

    def start(seconds: float = 60) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(run.folder), str(seconds)],
            stdout=subprocess.PIPE, text=True,
        )
        processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_a_second_process_is_refused_with_the_holder_of_the_run(run: Run, hold: Any) -> None:
    process = hold()
    with pytest.raises(Busy) as caught, run.lock():
        pytest.fail("two processes hold one run")
    host = socket.gethostname()
    assert str(caught.value) == (
        f"{run.folder}: in use by process {process.pid} on {host}; wait until it has ended, or end "
        f"it (kill {process.pid} on {host}) and give the command again"
    )
    holder = lock_holder(run.lock_file)
    assert holder is not None
    assert holder["pid"] == process.pid
    assert os.listdir(run.folder) == ["lock.json"]


def test_the_holders_job_is_reported_too(
    run: Run, hold: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    process = hold()
    with (
        pytest.raises(Busy, match=rf"by process {process.pid} on .* \(job 4711\); .*scancel 4711"),
        run.lock(),
    ):
        pass


def test_a_lock_is_free_after_its_body_even_a_failing_one(run: Run) -> None:
    def fail() -> None:
        with pytest.raises(Busy), run.lock():
            pass
        raise ValueError("inside")

    for _ in range(2):
        with pytest.raises(ValueError, match="inside"), run.lock():
            fail()
    assert lock_holder(run.lock_file) is None
    assert os.listdir(run.folder) == []


@pytest.mark.parametrize("reaped", [True, False])
def test_a_killed_holder_is_noticed_at_once(run: Run, hold: Any, reaped: bool) -> None:
    process = hold()
    process.kill()
    if reaped:
        process.wait()
    else:  # its parent has not asked for it yet, so that its process id is still taken
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert lock_holder(run.lock_file) is None
    with run.lock():
        assert lock_holder(run.lock_file) is not None
    assert os.listdir(run.folder) == []


def written_lock(path: Path, **changes: Any) -> None:
    """Leave a lock file as another process might have."""
    holder = {
        "host": socket.gethostname(), "pid": os.getpid(), "started": "1", "job": None, "token": "x",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(holder | changes))


def test_a_process_id_that_was_given_to_another_process_is_no_holder(run: Run) -> None:
    written_lock(run.lock_file, started="1")
    assert lock_holder(run.lock_file) is None
    with run.lock():
        pass
    started = Path(f"/proc/{os.getpid()}/stat").read_text().rpartition(")")[2].split()[19]
    written_lock(run.lock_file, started=started)
    with pytest.raises(Busy), run.lock():
        pass


def test_a_holder_on_another_machine_is_dead_when_its_lock_has_not_been_touched(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "HEARTBEAT_S", 0.01)
    written_lock(run.lock_file, host="elsewhere", pid=5)
    with pytest.raises(Busy, match="in use by process 5 on elsewhere"), run.lock():
        pass
    old = time.time() - locks.STALE_S
    os.utime(run.lock_file, (old + 30, old + 30))
    with pytest.raises(Busy), run.lock():
        pass
    os.utime(run.lock_file, (old - 1, old - 1))
    with run.lock():
        pass


@pytest.mark.parametrize("ahead_s", [-3600, -120, 120, 3600])
def test_a_lock_has_the_same_age_for_a_host_whose_clock_is_wrong(
    run: Run, monkeypatch: pytest.MonkeyPatch, ahead_s: float
) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + ahead_s)
    monkeypatch.setattr(locks, "_clocks", {})
    written_lock(run.lock_file, host="elsewhere", pid=5)
    assert lock_holder(run.lock_file) is not None
    os.utime(run.lock_file, (now - locks.STALE_S - 1,) * 2)
    assert lock_holder(run.lock_file) is None
    assert os.listdir(run.folder) == ["lock.json"]


def test_the_clock_of_a_file_system_is_asked_once_for_all_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_clocks", {})
    asked: list[str] = []
    make = locks.tempfile.TemporaryFile
    monkeypatch.setattr(locks.tempfile, "TemporaryFile", lambda dir: asked.append(dir) or make())
    for number in range(1000):
        written_lock(tmp_path / str(number) / "lock.json", host="elsewhere")
        assert lock_holder(tmp_path / str(number) / "lock.json") is not None
    assert asked == [tmp_path / "0"]


def test_a_lock_that_looks_stale_is_not_taken_over_while_its_holder_still_touches_it(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "HEARTBEAT_S", 0.1)
    written_lock(run.lock_file, host="elsewhere", pid=5)
    ended = threading.Event()

    def beat() -> None:  # dated by the holder's own clock, which is 10 minutes behind
        while not ended.wait(0.1):
            os.utime(run.lock_file, (time.time() - 600,) * 2)

    os.utime(run.lock_file, (time.time() - 600,) * 2)
    holder = threading.Thread(target=beat)
    holder.start()
    try:
        with pytest.raises(Busy, match="in use by process 5 on elsewhere"), run.lock():
            pass
    finally:
        ended.set()
        holder.join()
    with run.lock():
        pass


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "{}", '{"host": "HERE"}'])
def test_a_damaged_lock_does_not_block_for_ever(run: Run, text: str) -> None:
    run.folder.mkdir(parents=True)
    run.lock_file.write_text(text.replace("HERE", socket.gethostname()))
    with run.lock():
        pass
    assert os.listdir(run.folder) == []


def until(condition: Any, limit_s: float = 20.0) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)


def test_a_holder_keeps_touching_its_lock(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "HEARTBEAT_S", 0.01)
    with run.lock():
        os.utime(run.lock_file, (1, 1))
        until(lambda: run.lock_file.stat().st_mtime > 1)


def test_a_holder_still_touches_its_lock_after_a_file_system_that_failed_once(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "HEARTBEAT_S", 0.01)
    utime, failures = os.utime, []

    def failing(*arguments: Any) -> None:
        if len(arguments) == 1 and not failures:
            failures.append(1)
            raise OSError(116, "Stale file handle")
        utime(*arguments)

    monkeypatch.setattr(os, "utime", failing)
    with run.lock():
        until(lambda: failures)
        utime(run.lock_file, (1, 1))
        until(lambda: run.lock_file.stat().st_mtime > 1)


def test_a_lock_that_others_took_over_is_not_removed_by_its_first_holder(run: Run) -> None:
    with run.lock():
        written_lock(run.lock_file, token="another")
    assert json.loads(run.lock_file.read_text())["token"] == "another"


def test_a_holder_does_not_refresh_a_lock_that_others_took_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "HEARTBEAT_S", 0.01)
    losses: list[None] = []
    with held_lock(tmp_path / "lock", on_loss=lambda: losses.append(None)):
        time.sleep(0.05)
        assert not losses
        written_lock(tmp_path / "new", token="another")
        os.utime(tmp_path / "new", (1, 1))
        os.replace(tmp_path / "new", tmp_path / "lock")
        until(lambda: len(losses) > 1)
        assert (tmp_path / "lock").stat().st_mtime == 1


@pytest.mark.parametrize("ended", [False, True])
def test_a_process_that_lost_its_lock_writes_nothing_more_in_its_folder(
    run: Run, tmp_path: Path, ended: bool
) -> None:
    (tmp_path / "source").mkdir()
    host = socket.gethostname()
    with run.lock():
        run.set_status("running")
        run.log_metrics({"loss": 1.0})
        written_lock(run.lock_file, host="elsewhere", pid=5, job="47")
        if ended:
            run.lock_file.unlink()
        before = contents(run.folder)
        for write in (
            lambda: run.set_status("stopped"), lambda: run.log_metrics({"loss": 2.0}),
            lambda: run.keep_metrics(0), lambda: write_json(run.checkpoints / "latest.json", {}),
            lambda: link_folder(tmp_path / "source", run.checkpoints),
        ):
            with pytest.raises(LockLost) as caught:
                write()
        assert contents(run.folder) == before
        write_json(tmp_path / "elsewhere.json", {})
    now = (
        "lock.json was removed, or its new holder has ended; give the command again"
        if ended else
        "the folder is now in use by process 5 on elsewhere (job 47); wait until it has ended, or "
        "end it (scancel 47) and give the command again"
    )
    assert str(caught.value) == (
        f"{run.folder}: this process ({os.getpid()} on {host}) was suspended or cut off for too "
            f"long, lost the lock and writes nothing more; {now}"
    )
    run.set_status("stopped")  # who holds nothing has lost nothing


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_forked_process_does_not_answer_for_its_parents_lock(tmp_path: Path) -> None:
    with held_lock(tmp_path / "lock"):
        written_lock(tmp_path / "lock", token="another")
        with pytest.raises(LockLost):
            check_held(tmp_path / "file")
        child = FORK.Process(target=check_held, args=(tmp_path / "file",))
        child.start()
        child.join()
        assert child.exitcode == 0


def contend(path: Path, inside: Path, turns: int, results: Any) -> None:
    """Take the lock again and again; `inside` must never be there already."""
    held = overlaps = 0
    while held < turns:
        try:
            with held_lock(path):
                try:
                    os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
                except FileExistsError:
                    overlaps += 1
                time.sleep(0.0005)
                inside.unlink(missing_ok=True)
            held += 1
        except Busy:
            pass
    results.put(overlaps)


def test_of_many_that_want_a_lock_one_at_a_time_has_it(tmp_path: Path) -> None:
    written_lock(tmp_path / "lock", started="1")  # a dead holder's, to begin with
    results = FORK.Queue()
    processes = [
        FORK.Process(
            target=contend, args=(tmp_path / "lock", tmp_path / "inside", 40, results), daemon=True
        )
        for _ in range(5)
    ]
    for process in processes:
        process.start()
    overlaps = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert overlaps == [0] * len(processes)
    assert os.listdir(tmp_path) == []


def test_a_holder_that_is_asked_to_end_gives_the_lock_back(run: Run, hold: Any) -> None:
    process = hold()
    process.send_signal(signal.SIGINT)
    process.wait(timeout=30)
    assert not run.lock_file.exists()


@pytest.mark.parametrize("odd", [{"pid": "5"}, {"pid": None}, {"host": 5}, {"token": []}])
def test_a_lock_file_with_an_odd_value_is_nobodys(tmp_path: Path, odd: dict[str, object]) -> None:
    path = tmp_path / "lock.json"
    with held_lock(path):
        whole = json.loads(path.read_text())
        assert lock_holder(path) == whole
        path.write_text(json.dumps(whole | odd))
        assert lock_holder(path) is None
        path.write_text(json.dumps(whole))
