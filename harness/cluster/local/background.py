"""Processes of this machine that outlive the command that started them."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from harness.base.errors import UserError
from harness.base.locks import lock_holder
from harness.base.text import log_tail
from harness.cluster.local.worker import POLL_S, log, work
from harness.cluster.rank_group import GRACE_S
from harness.cluster.records import Record, jobs_folder, read_record
from harness.cluster.snapshots import search_path
from harness.runs.run import Run

START_LIMIT_S = 60.0
YEARS_MIN = 10 * 365 * 24 * 60
"""submitit's local executor ends every job after a time; a worker has no limit."""


def start(record: Record) -> None:
    """Start a record's workers and return when each is seen to live.

    A helper process hands them to submitit, so that they belong to no terminal and Ctrl-C on the
    follower does not reach them. Raises UserError when a worker did not come up.
    """
    # not a pipe: the workers inherit it, and its end would come with theirs
    told = Path(record.folder) / "start.log"
    with told.open("wb") as output:
        started = subprocess.run(
            [sys.executable, "-m", "harness.cluster.local.worker", str(record.file)],
            env={**os.environ, **search_path(record.options["code"], os.environ)},
            start_new_session=True, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        )
    if started.returncode != 0:
        raise UserError(f"no worker could be started here:\n{log_tail(told)}")
    record.state = "submitted"
    record.write()


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


def start_workers(record_file: Path) -> None:
    """Hand a submission's workers to submitit's local executor and see that they come up."""
    from submitit import LocalExecutor

    record = read_record(record_file)
    executor = LocalExecutor(folder=record_file.parent)
    executor.update_parameters(timeout_min=YEARS_MIN)
    if record.options.get("backend") == "ray":
        from harness.cluster.ray.job import drive  # late: it imports this module

        jobs = [executor.submit(drive, str(record_file))]
    else:
        numbers = range(record.options["workers"])
        jobs = [executor.submit(work, str(record_file), number) for number in numbers]
    for number, job in enumerate(jobs):
        lock = worker_lock(record_file, number)
        deadline = time.monotonic() + START_LIMIT_S
        # a short submission may be over already: then the result is there
        while lock_holder(lock) is None and not job.paths.result_pickle.exists():
            if job.done():
                raise UserError(f"worker {number} ended at once: {job.paths.stderr}\n"
                                f"{log_tail(job.paths.stderr)}")
            if time.monotonic() > deadline:
                raise UserError(f"worker {number} did not come up in {START_LIMIT_S:.0f} s: "
                                f"{job.paths.stderr}")
            time.sleep(0.05)


def worker_lock(record_file: Path, number: int) -> Path:
    """The file that a worker holds as long as it lives."""
    return record_file.with_name(f"worker-{number}.lock")
