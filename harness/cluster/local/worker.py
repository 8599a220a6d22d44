"""A worker: a process of this machine that takes one trial of a submission after the other.

A worker takes any trial of its submission whose status is `submitted` and that nobody has claimed,
and runs each rank in a fresh process. Slots, shared by all submissions of a sweep, limit how many
trials run at once. Each trial's GPUs and cores are claimed against all other sweeps of the machine.
Everything a worker knows is on disk, so one that is killed loses nothing.
"""

import logging
import pkgutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from harness.base.errors import UserError
from harness.base.locks import Busy, held_lock
from harness.base.machine import free_port
from harness.cluster import pages
from harness.cluster.local.background import worker_lock
from harness.cluster.local.claims import Claim
from harness.cluster.local.slots import share_of
from harness.cluster.rank import say_plainly
from harness.cluster.rank_group import POLL_S, RankGroup, settle, wait
from harness.cluster.records import Record, read_record
from harness.runs.run import CLAIM, Run
from harness.runs.stopping import request_stop, stop_requested

log = logging.getLogger(__name__)


def work(record_file: str, number: int) -> None:
    """Take trials of a submission until none is left or a signal comes."""
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
    """Run a trial, each rank in a fresh process, and settle the status of one that died."""
    ranks = record.options["ranks"]
    logs = [Path(record.folder) / f"{run.signature}.{rank}.log" for rank in range(ranks)]
    log.info("%s: starts on GPU %s", run.name, ",".join(claim.gpus) or "none")
    group = RankGroup(
        ranks=ranks, world=ranks, cpus=record.options["cpus"], gpus=",".join(claim.gpus),
        port=free_port(),
    )
    processes = [
        group.start(rank, "harness.cluster.rank", str(run.folder), log_file=log_file,
                    inherited=claim.locks)
        for rank, log_file in enumerate(logs)
    ]
    broken = wait(processes)
    codes = [process.returncode for process in processes]
    log.info("%s: ended with %s", run.name, codes)
    settle(run, broken, codes, logs)


def main(record_file: str, number: str) -> None:
    """Be a worker, or the job that runs all trials of the submission."""
    say_plainly()
    try:
        if function := read_record(Path(record_file)).options["function"]:
            pkgutil.resolve_name(function)(record_file)
        else:
            work(record_file, int(number))
    except UserError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(*sys.argv[1:])
