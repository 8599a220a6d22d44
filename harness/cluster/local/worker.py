"""Trials on this machine: a few workers, started by submitit, that take one trial after the other.

A worker takes any trial of its submission whose status is `submitted` and that nobody has claimed,
and runs each rank in a fresh process. Slots, shared by all submissions of a sweep, limit how many
trials run at once. Each trial's GPUs and cores are claimed against all other sweeps of the machine.
Everything a worker knows is on disk, so one that is killed loses nothing.
"""

import dataclasses
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from harness.base.errors import UserError
from harness.base.locks import Busy, held_lock, lock_holder
from harness.base.network import free_port
from harness.base.text import log_tail
from harness.cluster import pages
from harness.cluster.claims import Claim
from harness.cluster.rank import EXIT_STATUS, HINDERED_STATUS, IN_USE_STATUS
from harness.cluster.records import Record, jobs_folder, new_record, read_record
from harness.cluster.shares import pool_for, share_of, slots_for
from harness.cluster.snapshots import search_path
from harness.runs.run import CLAIM, Run
from harness.runs.stopping import request_stop, stop_requested
from harness.sweeps.reading import Sweep, Trial

log = logging.getLogger(__name__)

POLL_S = 0.2
GRACE_S = 30.0
"""How long a trial may take to save after it was told to stop."""
START_LIMIT_S = 60.0
YEARS_MIN = 10 * 365 * 24 * 60
"""submitit's local executor ends every job after a time; a worker has no limit."""


# --- the launcher's side ---


def submit(sweep: Sweep, trials: list[Trial], *, jobs: int | None = None) -> Record:
    """Start workers for `trials`, whose status is `submitted` already, and return at once.

    Raises UserError when the machine lacks what a trial needs, or when no worker came up.
    """
    slots = slots_for(sweep.resources, jobs)
    record = new_record(
        sweep.folder, "local", [trial.signature for trial in trials],
        slots=slots, workers=min(slots, len(trials)), cpus=sweep.resources.cpus,
        ranks=sweep.resources.ranks, code=str(sweep.code or ""),
        pool=dataclasses.asdict(pool_for(sweep.resources, slots)),
    )
    record.write()
    start(record)
    return record


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


# --- the helper process ---


def start_workers(record_file: Path) -> None:
    """Hand a submission's workers to submitit's local executor and see that they come up."""
    from submitit import LocalExecutor

    record = read_record(record_file)
    executor = LocalExecutor(folder=record_file.parent)
    executor.update_parameters(timeout_min=YEARS_MIN)
    if record.options.get("backend") == "ray":
        from harness.cluster.ray.driver import drive  # late: it imports this module

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


# --- the worker ---


def work(record_file: str, number: int) -> None:
    """Take trials of a submission until none is left or a signal comes; called by submitit."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    for signal_number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, request_stop)
    file = Path(record_file)
    record = read_record(file)
    with held_lock(worker_lock(file, number)), _slot(record) as slot:
        tried: set[Run] = set()
        while slot is not None and not stop_requested():
            with share_of(record, _open_trials) as claim, _claimed(record, tried) as run:
                if claim is None or run is None:
                    break
                tried.add(run)
                _run_ranks(run, record, claim)
        if not stop_requested():
            pages.write_if_over(Path(record.folder).parents[1])


@contextmanager
def _slot(record: Record) -> Iterator[int | None]:
    """Hold one of the sweep's slots; None when nothing was left to do while waiting for one."""
    jobs = Path(record.folder).parent
    with ExitStack() as stack:
        while not stop_requested() and _open_trials(record):
            for slot in range(record.options["slots"]):
                try:
                    stack.enter_context(held_lock(jobs / f"slot-{slot}.lock"))
                except Busy:
                    continue
                yield slot
                return
            time.sleep(POLL_S)
        yield None


def _open_trials(record: Record) -> list[Run]:
    """Return the submission's trials that still have to be taken; not those of other code."""
    runs = [Run(Path(record.folder).parents[1] / signature) for signature in record.trials]
    return [run for run in runs if _is_open(run, record) and not run.is_complete()]


def _is_open(run: Run, record: Record) -> bool:
    status = run.status()
    same_code = status.get("code", "") == record.options.get("code", "")
    return status["state"] == "submitted" and same_code


@contextmanager
def _claimed(record: Record, tried: set[Run]) -> Iterator[Run | None]:
    """Claim the next open trial against other workers; None when there is none.

    What this worker tried before it leaves alone, whatever its status has come to say.
    """
    with ExitStack() as stack:
        for run in _open_trials(record):
            if run in tried:
                continue
            try:
                stack.enter_context(held_lock(run.folder / CLAIM))
            except Busy:
                continue
            except UserError as error:
                log.error("%s", error)
                tried.add(run)
                continue
            if _is_open(run, record):  # and not taken and ended meanwhile
                yield run
                return
            stack.pop_all().close()
        yield None


def _run_ranks(run: Run, record: Record, claim: Claim) -> None:
    """Run a trial, each rank in a process of its own, and settle the status of one that died."""
    ranks = record.options["ranks"]
    logs = [Path(record.folder) / f"{run.signature}.{rank}.log" for rank in range(ranks)]
    log.info("%s: starts on GPU %s", run.name, ",".join(claim.gpus) or "none")
    processes = []
    port = str(free_port())
    for rank, log_file in enumerate(logs):
        with log_file.open("ab") as output:
            processes.append(subprocess.Popen(
                [sys.executable, "-m", "harness.cluster.rank", str(run.folder)],
                env=_environment(record, claim, rank, port), start_new_session=True,
                pass_fds=claim.locks,
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            ))
    broken = _wait(processes)
    codes = [process.returncode for process in processes]
    log.info("%s: ended with %s", run.name, codes)
    settle(run, broken, codes, logs)


def _environment(record: Record, claim: Claim, rank: int, port: str) -> dict[str, str]:
    options = record.options
    return {
        **os.environ,
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(options["ranks"]),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        "OMP_NUM_THREADS": str(options["cpus"]), "CUDA_VISIBLE_DEVICES": ",".join(claim.gpus),
    }


def _wait(processes: list["subprocess.Popen[bytes]"]) -> int | None:
    """Wait for all ranks and return the first that failed, if any.

    When told to stop, or when one rank fails, the others are told to stop, and are ended with all
    that they started if they do not within the grace time.
    """
    deadline: float | None = None
    broken: int | None = None
    while any(process.poll() is None for process in processes):
        if broken is None:
            broken = _failed_rank(processes)
        if deadline is None and (stop_requested() or broken is not None):
            deadline = time.monotonic() + GRACE_S
            for process in processes:
                process.terminate()
        if deadline is not None and time.monotonic() > deadline:
            for process in processes:
                _kill_group(process)
        time.sleep(POLL_S)
    for process in processes:
        _kill_group(process)  # helpers that a killed rank left behind
    return broken if broken is not None else _failed_rank(processes)


def _failed_rank(processes: list["subprocess.Popen[bytes]"]) -> int | None:
    fine = (None, EXIT_STATUS["complete"], EXIT_STATUS["stopped"])
    return next((r for r, p in enumerate(processes) if p.poll() not in fine), None)


def _kill_group(process: "subprocess.Popen[bytes]") -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)  # each rank leads a session of its own
    except ProcessLookupError:
        return


def settle(run: Run, broken: int | None, codes: list[int], logs: list[Path]) -> None:
    """Write the status of a trial whose first rank could not, or did not know, what happened."""
    status = run.status()
    if run.is_complete() or status["state"] == "failed" or lock_holder(run.lock_file) is not None:
        return
    facts = {key: status[key] for key in ("attempts", "started") if key in status}
    try:
        if stop_requested():
            if status["state"] != "stopped":
                run.set_status("stopped", reason="cancelled before it could save", **facts)
        elif broken is not None:
            told = _end_in_words(codes[broken])
            if len(codes) > 1:
                told = f"rank {broken}: {told}"
            lines = log_tail(logs[broken]).splitlines()
            hindered = codes[broken] < 0 or codes[broken] in (IN_USE_STATUS, HINDERED_STATUS)
            run.set_status(
                "failed", error=told, lines=lines, log=str(logs[broken]), hindered=hindered, **facts
            )
    except OSError as error:  # the other trials go on
        log.error("%s: cannot be written: %s", run.status_file, error.strerror)


def _end_in_words(code: int) -> str:
    if code == -signal.SIGKILL:
        return "killed by SIGKILL (out of memory?)"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    if code == IN_USE_STATUS:
        return "another process was in the run folder"
    if code == HINDERED_STATUS:
        return "its run folder could not be written"
    return f"ended with exit status {code}"


if __name__ == "__main__":
    # by its full name: what submitit pickles must be a reference to this module, not a copy
    from harness.cluster.local import worker as local

    try:
        local.start_workers(Path(sys.argv[1]))
    except UserError as error:
        sys.exit(str(error))
