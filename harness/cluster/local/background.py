"""Workers of this machine: processes that outlive the command that started them."""

import os
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.base.errors import UserError
from harness.base.locks import lock_holder
from harness.base.text import log_tail
from harness.cluster.rank_group import GRACE_S, POLL_S, Process, start_process
from harness.cluster.records import Record, jobs_folder
from harness.cluster.snapshots import search_path
from harness.runs.run import Run

START_LIMIT_S = 60.0
_started: list[Process] = []
"""Kept for as long as this process lives: Python warns about a child that is dropped."""


def start(record: Record) -> None:
    """Start a record's workers and return when each holds its lock.

    Each is in a separate session, so Ctrl-C on the command that started it does not reach it.
    Raises UserError when a worker did not start.
    """
    environment = {**os.environ, **search_path(record.options["code"], os.environ)}
    locks = [worker_lock(record.file, number) for number in range(record.options["workers"])]
    workers = [
        start_process("harness.cluster.local.worker", str(record.file), str(number),
                      log_file=lock.with_suffix(".log"), environment=environment)
        for number, lock in enumerate(locks)
    ]
    _started.extend(workers)
    deadline = time.monotonic() + START_LIMIT_S
    for number, (lock, process) in enumerate(zip(locks, workers, strict=True)):
        file = lock.with_suffix(".log")
        while lock_holder(lock) is None:
            if process.poll() == 0:  # all trials were complete already
                break
            if process.poll() is not None:
                raise UserError(f"worker {number} ended at once: {file}\n{log_tail(file)}")
            if time.monotonic() > deadline:
                raise UserError(f"worker {number} did not start in {START_LIMIT_S:.0f} s: {file}")
            time.sleep(0.05)


def worker_lock(record_file: Path, number: int) -> Path:
    """Return the lock file that a worker holds as long as it lives."""
    return record_file.with_name(f"worker-{number}.lock")


def living_workers(sweep_folder: Path, token: str = "*") -> list[dict[str, Any]]:
    """Return the lock holders (host, pid, ...) of a sweep's or submission's living workers."""
    locks = jobs_folder(sweep_folder).glob(f"{token}/worker-*.lock")
    return [holder for lock in locks if (holder := lock_holder(lock)) is not None]


def cancel(sweep_folder: Path) -> None:
    """End the workers of a sweep and their trials, which get the time to save.

    Raises UserError when workers run on another machine, where they cannot be ended from here.
    """
    workers = living_workers(sweep_folder)
    here = [w["pid"] for w in workers if w["host"] == socket.gethostname()]
    for pid in here:
        _signal(pid, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S + 10.0
    # the process, not its lock, which it releases a moment before it ends
    while any(map(_lives, here)) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    for pid in filter(_lives, here):
        _signal(pid, signal.SIGKILL)
    if elsewhere := {w["host"] for w in workers} - {socket.gethostname()}:
        raise UserError(f"workers run on {', '.join(sorted(elsewhere))}; cancel them there")


def end_run(run: Run) -> None:
    """End the process of this machine that holds the run: TERM, time to save, then KILL."""
    for number, patience_s in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, 5.0)):
        holder = lock_holder(run.lock_file)
        if holder is None or holder["host"] != socket.gethostname():
            return
        _signal(holder["pid"], number)
        deadline = time.monotonic() + patience_s
        while lock_holder(run.lock_file) is not None and time.monotonic() < deadline:
            time.sleep(POLL_S)


def _lives(pid: int) -> bool:
    """Return whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
