"""Trials on this machine: a few workers, started by submitit, that take one trial after the other.

A worker takes any trial of its submission whose status is `submitted` and that nobody has claimed,
and runs each rank in a fresh process. Slots, shared by all submissions of a sweep, limit how many
trials run at once. Each trial's GPUs and cores are claimed against all other sweeps of the machine.
Everything a worker knows is on disk, so one that is killed loses nothing.
"""

import dataclasses
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from harness.base.errors import UserError
from harness.base.locks import Busy, held_lock
from harness.base.network import free_port
from harness.cluster import pages
from harness.cluster.local.background import start, worker_lock
from harness.cluster.local.claims import Claim
from harness.cluster.local.shares import pool_for, share_of, slots_for
from harness.cluster.rank_group import _environment, _wait, settle
from harness.cluster.records import Record, new_record, read_record
from harness.runs.run import CLAIM, Run
from harness.runs.stopping import request_stop, stop_requested
from harness.sweeps.reading import Sweep, Trial

log = logging.getLogger(__name__)

POLL_S = 0.2


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


# --- the helper process ---


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


if __name__ == "__main__":
    # by its full name: what submitit pickles must be a reference to this module, not a copy
    from harness.cluster.local import background

    try:
        background.start_workers(Path(sys.argv[1]))
    except UserError as error:
        sys.exit(str(error))
