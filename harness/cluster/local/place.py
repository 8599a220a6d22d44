"""This machine as a place where jobs run: workers that outlive the command that started them. A
worker (`worker.py`) is a detached process that runs one trial after the other."""

import os
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.base.errors import UserError
from harness.base.files import log_tail
from harness.base.locks import lock_holder, start_time
from harness.cluster.causes import cause_in_logs
from harness.cluster.local import slots
from harness.cluster.place import Job, Place, Room, Submission, Task
from harness.cluster.rank_processes import GRACE_S, POLL_S, Process, start_process
from harness.cluster.records import Cluster, Record, jobs_folder
from harness.cluster.snapshots import check_folders, search_path
from harness.runs.run import Run
from harness.sweeps.reading import Sweep

START_LIMIT_S = 60.0
_started: list[Process] = []
"""Kept for as long as this process lives: Python warns about a child that is dropped."""


@dataclass
class ThisMachine(Place):
    """The machine on which the command runs; see `place.Place` for the methods."""

    name: Cluster = "local"
    title: str = "on this machine"

    def check(self, sweep: Sweep, jobs: int) -> None:
        check_folders(sweep)

    def room(self, sweep: Sweep, limit: int | None, trials_per_gpu: int = 1) -> Room:
        resources = slots.with_gpus(sweep.resources)
        count = slots.slots_for(resources, limit, trials_per_gpu)
        return Room(resources, count, asdict(slots.pool_for(resources, count, trials_per_gpu)))

    def describe(self, sweep: Sweep, trials: int, limit: int | None) -> str:
        if sweep.ray.address is not None:
            return f"on the Ray at {sweep.ray.address}"
        together = sweep.ray.trials_per_gpu if sweep.backend == "ray" else 1
        return slots.plan(sweep.resources, trials, limit, together)

    # --- submission, states, cancellation ---

    def submit(self, submission: Submission, record: Record, after: Sequence[str] = ()) -> None:
        try:
            _start_workers(record)
        except UserError:
            record.file.unlink(missing_ok=True)  # the logs stay
            raise
        record.write("submitted")

    def settle(self, records: Sequence[Record]) -> None:
        for record in records:  # the workers that have started run its trials
            record.write("submitted")

    def jobs(self, records: Mapping[str, Sequence[Record]]) -> Mapping[str, Job]:
        every = {record.token: record for own in records.values() for record in own}
        notes = {token: _waits_for(record) for token, record in every.items()}
        jobs = {}
        for key, own in records.items():
            for record in own:
                note, [run] = notes[record.token], record.runs([key])
                # workers skip trials that were stopped or have failed; a search begins new ones
                waiting = {"submitted", *(["new"] if record.options.get("function") else [])}
                if note is not None and run.status()["state"] in waiting:
                    jobs[key] = Job("queued", note, record.token)
        return jobs

    def deaths(self, records: Mapping[str, Record]) -> Mapping[str, str]:
        return {key: cause_in_logs(Path(record.folder).glob(f"{key}.*.log"))
                or cause_in_logs(Path(record.folder).glob("worker-*.log"), about=key)
                for key, record in records.items()}

    def cancel(self, sweep: Sweep, records: Sequence[Record], runs: Sequence[Run]) -> None:
        end_workers(sweep.folder, [record.token for record in records])
        for run in runs:
            _end_run(run)

    # --- inside a job ---

    def task(self) -> Task:
        return Task(0, "local")


def _start_workers(record: Record) -> None:
    """Start a record's workers and return when each holds its lock.

    Each is in a separate session, so Ctrl-C on the command that started it does not reach it.
    Raises UserError when a worker did not start.
    """
    environment = {**os.environ, **search_path(record.options["code"], os.environ)}
    locks = [worker_lock(record.file, number) for number in range(record.options["workers"])]
    workers = [start_process("harness.cluster.local.worker", str(record.file), str(number),
                             log_file=lock.with_suffix(".log"), environment=environment)
               for number, lock in enumerate(locks)]
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


def _waits_for(record: Record) -> str | None:
    """Return what a submission's workers wait for, "" for nothing; None when none lives."""
    alive = living_workers(record.sweep_folder, record.token)
    if not any(worker["host"] == socket.gethostname() for worker in alive):
        return "" if alive else None  # another machine's GPUs cannot be seen from here
    return slots.waits_for(record, living_workers(record.sweep_folder))


def end_workers(sweep_folder: Path, tokens: Sequence[str] = ("*",)) -> None:
    """End the workers of submissions of a sweep and their trials, which get the time to save.
    Raises UserError when workers run on another machine, where they cannot be ended from here."""
    workers = [one for token in tokens for one in living_workers(sweep_folder, token)]
    here = [worker["pid"] for worker in workers if worker["host"] == socket.gethostname()]
    # until the processes end, not their locks, which they release a moment before
    _end(here, lambda: not any(map(start_time, here)), GRACE_S + 10.0)
    if elsewhere := {worker["host"] for worker in workers} - {socket.gethostname()}:
        raise UserError(f"workers run on {', '.join(sorted(elsewhere))}; cancel them there")


def _end_run(run: Run) -> None:
    """End the process of this machine that holds the run, if any."""
    holder = lock_holder(run.lock_file)
    if holder is not None and holder["host"] == socket.gethostname():
        _end([holder["pid"]], lambda: lock_holder(run.lock_file) is None, GRACE_S)


def _end(pids: Sequence[int], is_over: Callable[[], bool], patience_s: float) -> None:
    """End processes: TERM, time to save, then KILL."""
    for number, limit_s in ((signal.SIGTERM, patience_s), (signal.SIGKILL, 5.0)):
        if is_over():
            return
        for pid in filter(start_time, pids):
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + limit_s
        while not is_over() and time.monotonic() < deadline:
            time.sleep(POLL_S)
