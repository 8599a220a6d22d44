"""A worker: a process of this machine that runs the trials of a submission one after the other.

A worker takes any trial of its submission whose status is `submitted` and that no other worker has
claimed, and starts a fresh process for each rank. The slots, which all submissions of a sweep
share, limit how many trials run at once. Each trial's GPUs and cores are claimed against all other
sweeps of the machine. A worker keeps all its state on disk, so killing it loses nothing.
"""

import logging
import pkgutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from harness.base.caches import keep_caches_here
from harness.base.errors import UserError
from harness.base.locks import Busy, held_lock, lock_holder
from harness.cluster import pages
from harness.cluster.local import slots
from harness.cluster.local.claims import Claim
from harness.cluster.local.place import worker_lock
from harness.cluster.rank_processes import (
    RankGroup,
    log_to_stderr,
    settle,
    start_process,
    stop_on,
    wait,
)
from harness.cluster.records import Record, read_record
from harness.runs.run import CLAIM, Run
from harness.runs.stopping import stop_requested

log = logging.getLogger(__name__)

STOPS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
SLOT_EVERY_S = 1.0
"""How often a waiting worker looks for a free slot, in the end."""


def work(record_file: Path, number: int) -> None:
    """Run the trials of a submission until none is left or a signal arrives."""
    stop_on(*STOPS)
    record = read_record(record_file)
    trials = _OpenTrials(record)
    with held_lock(worker_lock(record_file, number)), _slot(record, trials) as has_slot:
        tried: set[Run] = set()
        while has_slot and not stop_requested():
            with (slots.claimed(record, lambda: trials) as claim,
                  _next_trial(trials, tried) as run):
                if claim is None or run is None:
                    break
                tried.add(run)
                _run_ranks(run, record, claim)
        for number in STOPS:  # a page takes a while, and there is nothing to save
            signal.signal(number, lambda *_: sys.exit())
        if not stop_requested():
            pages.write_if_over(record.sweep_folder)


class _OpenTrials:
    """The submission's trials that no worker has started; not those with other code.

    Each status is read when its turn comes. A trial that was once not open is not read again: only
    another submission could open it, and its own workers run it then.
    """

    def __init__(self, record: Record) -> None:
        self.record, self.left = record, dict.fromkeys(record.runs(record.trials))

    def __iter__(self) -> Iterator[Run]:
        for run in tuple(self.left):
            if self.has(run):
                yield run
            else:
                del self.left[run]

    def __bool__(self) -> bool:
        return any(True for _ in self)

    def has(self, run: Run) -> bool:
        """Return whether a trial is open now."""
        status = run.status()
        same_code = status.get("code", "") == self.record.options.get("code", "")
        return status["state"] == "submitted" and same_code and not run.is_complete()


@contextmanager
def _slot(record: Record, trials: _OpenTrials) -> Iterator[bool]:
    """Hold one of the sweep's slots; yields False when no trial was left to wait for."""
    locks = [Path(record.folder).parent / f"slot-{n}.lock" for n in range(record.options["slots"])]
    pauses = slots.pauses(SLOT_EVERY_S)
    with ExitStack() as stack:
        while not stop_requested() and trials:
            for lock in locks:
                if lock_holder(lock) is None:  # trying to lock it would write files
                    with suppress(Busy):
                        stack.enter_context(held_lock(lock))
                        yield True
                        return
            time.sleep(next(pauses))
        yield False


@contextmanager
def _next_trial(trials: _OpenTrials, tried: set[Run]) -> Iterator[Run | None]:
    """Claim the next open trial that this worker has not tried before; None when there is none."""
    with ExitStack() as stack:
        for run in trials:
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
            if trials.has(run):  # another worker may have run it meanwhile
                yield run
                return
            stack.pop_all().close()
        yield None


def _run_ranks(run: Run, record: Record, claim: Claim) -> None:
    """Run a trial, each rank in a fresh process, and settle its status if it died."""
    count, gpus = record.options["ranks"], ",".join(claim.gpus)
    logs = [Path(record.folder) / f"{run.signature}.{rank}.log" for rank in range(count)]
    log.info("%s: starts on GPU %s", run.name, gpus or "none")
    group = RankGroup(ranks=count, world=count, cpus=record.options["cpus"], gpus=gpus)
    processes = [
        start_process("harness.cluster.rank_processes", str(run.folder), log_file=log_file,
                      environment=group.environment(rank), inherited=claim.locks)
        for rank, log_file in enumerate(logs)
    ]
    broken = wait(processes)
    codes = [process.returncode for process in processes]
    log.info("%s: ended with %s", run.name, codes)
    settle(run, broken, codes, logs)


def main(record_file: str, number: str) -> None:
    """Run as a worker, or as the one job of the submission's `function`."""
    log_to_stderr()
    keep_caches_here()
    try:
        if function := read_record(Path(record_file)).options["function"]:
            pkgutil.resolve_name(function)(record_file)
        else:
            work(Path(record_file), int(number))
    except UserError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(*sys.argv[1:])
