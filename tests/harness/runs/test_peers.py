"""Ranks meet, and all end soon after one has failed. Real processes, which nobody else ends."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from harness.base.errors import UserError
from harness.runs import connections, peers
from harness.runs.connections import Connections
from harness.runs.run import Run
from harness.runs.stopping import Stopped

SOON_S = 20.0
"""On a quiet machine they take 1 to 3 s; without what is tested here, half a minute or more."""
EXPERIMENT = """
import errno, os, signal, sys, threading, time
from harness.runs import peers
from harness.runs.run import Run

def abort_after_death(pid):
    while os.path.exists(f"/proc/{pid}/exe"):  # a zombie has none
        time.sleep(0.02)
    time.sleep(0.3)
    os.abort()

def run(run, report=None):
    rank = os.environ["RANK"]
    if os.environ["HOW"] == "NCCL":
        peers.end_at_once()
    (run.folder / f"begun-{rank}").write_text(str(os.getpid()))
    print("begun")
    if os.environ["WHO"] == rank:
        if os.environ["HOW"] == "full":
            raise OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl")
        if os.environ["HOW"] == "raise":
            raise ValueError("no such thing")
        if os.environ["HOW"] == "exit":
            sys.exit("no licence")  # as a library may
        if os.environ["HOW"] in ("kill", "NCCL"):
            os.kill(os.getpid(), signal.SIGKILL)
    if os.environ["HOW"] == "slow disk":
        set_status = Run.set_status
        Run.set_status = lambda *args, **facts: (time.sleep(1.5), set_status(*args, **facts))
    if os.environ["HOW"] == "NCCL":
        victim = run.folder / f"begun-{os.environ['WHO']}"
        while not (victim.exists() and victim.read_text()):
            time.sleep(0.01)
        threading.Thread(target=abort_after_death, args=(victim.read_text(),)).start()
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()  # like a collective: no signal handler gets through
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., dict[int, subprocess.Popen[str]]]]:
    """Return a function that starts ranks of a run in `tmp_path`; all are killed at the end."""
    (tmp_path / "blocked.py").write_text(EXPERIMENT)
    Run(tmp_path / "run").create("run:\n  experiment: blocked.run\n")
    started: list[subprocess.Popen[str]] = []

    def start(
        numbers: Any, world: int = 3, output: Any = subprocess.PIPE, **more: str
    ) -> dict[int, subprocess.Popen[str]]:
        path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
        env = {**os.environ, "PYTHONPATH": path, "WORLD_SIZE": str(world), "WHO": "", "HOW": "",
               peers.ATTEMPT: "one", **more}
        processes = {
            rank: subprocess.Popen(
                [sys.executable, "-m", "harness.cluster.rank_processes", str(tmp_path / "run")],
                env={**env, "RANK": str(rank)}, text=True, stdout=output,
                stderr=subprocess.STDOUT,
            )
            for rank in numbers
        }
        started.extend(processes.values())
        return processes

    yield start
    for process in started:
        process.kill()
        process.wait()


def until(check: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ended(processes: dict[int, subprocess.Popen[str]]) -> dict[int, tuple[int, str]]:
    """Wait until all have ended; returns exit status and output of each, by rank."""
    deadline = time.monotonic() + SOON_S
    return {
        rank: (process.wait(max(0.1, deadline - time.monotonic())), process.communicate()[0])
        for rank, process in processes.items()
    }


@pytest.mark.parametrize(
    ("who", "how", "error", "hindered"),
    [
        (0, "full", "metrics.jsonl: No space left on device", True),
        (2, "raise", "rank 2: ValueError: no such thing", False),
        (1, "exit", "rank 1: SystemExit: no licence", False),
        (0, "kill", "rank 0: its process on HOST ended without a message", True),
        (1, "kill", "rank 1: its process on HOST ended without a message", True),
    ],
)
def test_all_ranks_end_soon_after_one_has_failed_and_the_status_names_it(
    start: Any, tmp_path: Path, who: int, how: str, error: str, hindered: bool
) -> None:
    processes = start(range(3), WHO=str(who), HOW=how)
    until((tmp_path / "run" / f"begun-{who}").exists)
    results = ended(processes)
    status = Run(tmp_path / "run").status()
    error = error.replace("HOST", socket.gethostname())
    assert (status["state"], status["error"], status["hindered"]) == ("failed", error, hindered)
    assert [results[rank][0] for rank in range(3) if rank != who] == [1, 1]
    assert all(error.partition(": ")[2] in results[rank][1] for rank in range(3) if rank != who)
    assert not Run(tmp_path / "run").lock_file.exists()
    assert not list((tmp_path / "run").glob(".ranks-*"))


@pytest.mark.parametrize("who", [0, 2])
def test_a_lost_rank_is_recorded_before_nccls_watchdog_aborts_all_others(
    start: Any, tmp_path: Path, who: int
) -> None:
    processes = start(range(3), WHO=str(who), HOW="NCCL")
    ended(processes)
    status = Run(tmp_path / "run").status()
    assert status["state"] == "failed"
    assert status["error"].startswith(f"rank {who}: its process on ")
    assert not Run(tmp_path / "run").lock_file.exists()


def test_no_rank_ends_before_the_status_is_written(start: Any, tmp_path: Path) -> None:
    # srun --kill-on-bad-exit then ends rank 0 too
    processes = start([0, 2], HOW="slow disk") | start([1], WHO="1", HOW="raise")
    until(lambda: any(process.poll() is not None for process in processes.values()))
    status = Run(tmp_path / "run").status()
    assert (status["state"], status.get("error")) == ("failed", "rank 1: ValueError: no such thing")
    ended(processes)


def test_a_rank_whose_output_is_on_a_full_disk_ends_too(start: Any, tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        processes = start([0], world=2, output=full, PYTHONUNBUFFERED="")
    processes |= start([1], world=2, WHO="1", HOW="raise")
    until((tmp_path / "run" / "begun-1").exists)
    assert [code for code, _ in ended(processes).values()] == [1, 1]
    assert Run(tmp_path / "run").status()["error"] == "rank 1: ValueError: no such thing"


def test_ranks_end_soon_with_the_message_of_rank_0_that_found_its_folder_in_use(
    start: Any, tmp_path: Path
) -> None:
    run = Run(tmp_path / "run")
    with run.lock():
        early = start([1])
        until(lambda: catches_term(early[1]))
        results = ended(early | start([0, 2]))
    assert [results[rank][0] for rank in range(3)] == [2, 1, 1]
    for rank in range(3):
        assert f"in use by process {os.getpid()} on {socket.gethostname()}" in results[rank][1]
    assert run.status() == {"state": "new"}
    assert not list(run.folder.glob("begun-*"))
    assert not list(run.folder.glob(".ranks-*"))


def catches_term(process: subprocess.Popen[str]) -> bool:
    """Whether a rank has come so far that it catches TERM."""
    text = Path(f"/proc/{process.pid}/status").read_text()
    caught = int(text.partition("SigCgt:\t")[2].split()[0], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


def test_a_wait_for_other_ranks_ends_at_a_signal(start: Any, tmp_path: Path) -> None:
    numbers = {0: signal.SIGUSR2, 1: signal.SIGINT}
    run, waiting = Run(tmp_path / "run"), start(numbers, world=5)
    until(lambda: all(catches_term(process) for process in waiting.values()))
    for rank, number in numbers.items():
        waiting[rank].send_signal(number)
    assert [code for code, _ in ended(waiting).values()] == [3, 3]
    assert run.status()["state"] == "stopped"
    assert run.status()["reason"] == "on request, while it waited for other ranks"
    # TERM is what starters of ranks send when one of them could not start
    waiting = start([0], world=3)
    until(lambda: catches_term(waiting[0]) and run.status()["state"] == "running")
    waiting[0].terminate()
    assert [code for code, _ in ended(waiting).values()] == [1]
    assert run.status()["error"].startswith("ended by SIGTERM while it waited for 2 of 3 ranks at ")
    assert run.status()["hindered"]


def connected(folder: Path, world: int = 2) -> list[Connections]:
    """Return ranks, in this process, that are connected and have not met."""
    ranks = [Connections(folder / "ranks.json", rank, world, False) for rank in range(world)]
    ranks[0].open()
    for one in ranks[1:]:
        one._connect()
    until(lambda: len(ranks[0].links) == world - 1)
    return ranks


def test_a_rank_that_is_told_to_stop_leaves_only_if_rank_0_has_not_met_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "stop_requested", lambda: True)
    seen, hears = threading.Event(), Connections._read
    with monkeypatch.context() as patch:  # rank 1 is slow to hear what rank 0 says
        patch.setattr(Connections, "_read", lambda *args: seen.wait() and hears(*args))
        first, second = connected(tmp_path)
        first.meet(10.0)
        threading.Timer(0.3, seen.set).start()
        second.meet(10.0)  # otherwise rank 0 would wait for it in a collective
    assert first.has_met
    assert second.has_met
    for one in (first, second):
        one.close()

    first, second = connected(tmp_path)
    ends: list[str] = []

    def meet() -> None:
        with suppress(Stopped):
            second.meet(10.0)
            ends.append("met")
        ends.append("over")

    other = threading.Thread(target=meet)
    other.start()
    until(lambda: first.asked_to_stop)
    monkeypatch.setattr(connections, "stop_requested", lambda: False)
    with pytest.raises(Stopped, match="another rank was stopped before all ranks had met"):
        first._check()
    first.close()
    other.join(10.0)
    assert ends == ["over"]
    second.close()


def test_a_rank_that_ends_first_is_no_failure_of_the_others(tmp_path: Path) -> None:
    ranks = connected(tmp_path, world=3)
    ranks[0].meet(10.0)
    ranks[0].close()
    until(lambda: all(one.left == {0} for one in ranks[1:]))
    for one in ranks[1:]:
        one.close()
    time.sleep(0.2)
    assert [one.failures for one in ranks] == [{}, {}, {}]


def test_a_rank_that_waits_says_for_whom_and_gives_up_after_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connections, "NOTICE_S", (0.2, 60.0))
    for name, value in {"RANK": "0", "WORLD_SIZE": "4", peers.ATTEMPT: "two"}.items():
        monkeypatch.setenv(name, value)
    program = (
        "import pathlib, sys\n"
        "from harness.runs import peers\n"
        "with peers.together(pathlib.Path(sys.argv[1])): peers.meet()\n"
    )
    second = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)],
                              env=os.environ | {"RANK": "2"}, stderr=subprocess.PIPE, text=True)
    ports = []

    def meet() -> None:
        with peers.together(tmp_path):
            ports.append(json.loads((tmp_path / ".ranks-two.json").read_text())["port"])
            until(lambda: peers._own is not None and 2 in peers._own.links)
            peers.meet(limit_s=0.5)

    with pytest.raises(UserError) as caught:
        meet()
    [port] = ports
    missing = f"2 of 4 ranks at 127.0.0.1:{port} (rank 1, 3)"
    assert caplog.messages == [f"waiting for {missing}; gives up after 0.00833 min"]
    assert str(caught.value).startswith(f"{missing}: not there after 0.00833 min")
    assert "RankLost" in second.communicate(timeout=SOON_S)[1]


def test_a_file_of_an_earlier_attempt_misleads_nobody(start: Any, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as another:  # got the port of the killed attempt
        stale = {"host": "127.0.0.1", "port": another.getsockname()[1], "token": "old"}
        (tmp_path / "run" / ".ranks-one.json").write_text(json.dumps(stale))
        waiting = start([1], world=2)
        connection, _ = another.accept()
        connection.close()
        processes = waiting | start([0], world=2, WHO="0", HOW="full")
        until((tmp_path / "run" / "begun-1").exists)
    ended(processes)
    assert "No space left" in Run(tmp_path / "run").status()["error"]


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 is set and RANK is not; unset both"),
        ({"RANK": "1"}, "RANK=1 does not go with WORLD_SIZE=1; unset both"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 does not go with WORLD_SIZE=2"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK=x does not go with WORLD_SIZE=2"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a"}, "MASTER_PORT is not; unset them"),
    ],
)
def test_variables_of_ranks_that_do_not_fit_together_are_a_mistake(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variables: dict[str, str], message: str
) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", peers.ATTEMPT):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message), peers.together(tmp_path):
        pass
