"""Workers of this machine: processes that outlive the command that started them."""

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from harness.base.errors import UserError
from harness.base.files import log_tail
from harness.base.locks import lock_holder
from harness.cluster.rank_group import GRACE_S, POLL_S
from harness.cluster.records import Record, jobs_folder
from harness.cluster.snapshots import search_path
from harness.runs.run import Run

log = logging.getLogger(__name__)

START_LIMIT_S = 60.0
_started: list["subprocess.Popen[bytes]"] = []
"""Kept for as long as this process lives: Python warns of a child that is forgotten."""


def start(record: Record) -> None:
    """Start a record's workers and return when each is seen to live.

    Each has a separate session: it belongs to no terminal, and Ctrl-C on the command that started
    it does not reach it. Raises UserError when a worker did not come up.
    """
    environment = {**os.environ, **search_path(record.options["code"], os.environ)}
    workers = []
    for number in range(record.options["workers"]):
        log_file = worker_lock(record.file, number).with_suffix(".log")
        with log_file.open("wb") as output:
            workers.append((number, log_file, subprocess.Popen(
                [sys.executable, "-m", "harness.cluster.local.worker", str(record.file),
                 str(number)],
                env=environment, start_new_session=True, stdin=subprocess.DEVNULL,
                stdout=output, stderr=output,
            )))
    _started.extend(process for _, _, process in workers)
    deadline = time.monotonic() + START_LIMIT_S
    for number, log_file, process in workers:
        while lock_holder(worker_lock(record.file, number)) is None:
            if process.poll() == 0:  # all was done already
                break
            if process.poll() is not None:
                raise UserError(f"worker {number} ended at once: {log_file}\n{log_tail(log_file)}")
            if time.monotonic() > deadline:
                raise UserError(f"worker {number} did not come up in {START_LIMIT_S:.0f} s: "
                                f"{log_file}")
            time.sleep(0.05)


def worker_lock(record_file: Path, number: int) -> Path:
    """The file that a worker holds as long as it lives."""
    return record_file.with_name(f"worker-{number}.lock")


def living_workers(sweep_folder: Path, token: str = "*") -> list[dict[str, Any]]:
    """Return who the living workers of a sweep (of one submission) are: host, pid, ..."""
    locks = jobs_folder(sweep_folder).glob(f"{token}/worker-*.lock")
    return [holder for lock in locks if (holder := lock_holder(lock)) is not None]


def cancel(sweep_folder: Path) -> None:
    """End the workers of a sweep and what they run; trials are given the time to save.

    Raises UserError when workers run on another machine, where they cannot be ended from here.
    """
    workers = living_workers(sweep_folder)
    here = [w for w in workers if w["host"] == socket.gethostname()]
    for worker in here:
        _signal(worker["pid"], signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S + 10.0
    # the process, not its lock: that is let go a moment before the end
    while any(_lives(w["pid"]) for w in here) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    for worker in here:
        if _lives(worker["pid"]):
            _signal(worker["pid"], signal.SIGKILL)
    elsewhere = {w["host"] for w in workers} - {socket.gethostname()}
    if elsewhere:
        raise UserError(f"workers run on {', '.join(sorted(elsewhere))}; cancel them there")


def end_run(run: Run) -> None:
    """End whatever process of this machine holds the run: TERM, time to save, then KILL."""
    for number, patience_s in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, 5.0)):
        holder = lock_holder(run.lock_file)
        if holder is None or holder["host"] != socket.gethostname():
            return
        _signal(holder["pid"], number)
        deadline = time.monotonic() + patience_s
        while lock_holder(run.lock_file) is not None and time.monotonic() < deadline:
            time.sleep(POLL_S)


def _lives(pid: int) -> bool:
    """Whether a process is there and more than a zombie that its parent has yet to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        log.debug("process %d has ended already", pid)
