"""Execution of one run, from its folder to its result, however it was started.

`launch/train.py`, submitit jobs and Ray trials all call `execute`, so status, log, lock and
failures are the same everywhere.
"""

import importlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from harness.base.caches import quick_imports
from harness.base.errors import UserError
from harness.base.files import read_json, write_json
from harness.base.locks import LockLost, check_held, job_id
from harness.base.units import counted
from harness.config.yaml_files import read_yaml
from harness.runs import peers
from harness.runs.environment import CODE, environment
from harness.runs.failures import describe
from harness.runs.logs import FORMAT, announce_torch, log_own_packages, log_package
from harness.runs.run import Run
from harness.runs.stopping import Stopped, stop_on_signals

log = logging.getLogger(__name__)
Outcome = Literal["complete", "stopped", "failed"]
Report = Callable[[dict[str, Any]], None]
COUNTS = ("preemptions", "time_outs", "idle_time_outs", "reached", "short_limit_s")
"""What a job notes in the status; carried from one attempt to the next."""


def execute(run: Run, *, report: Report | None = None) -> Outcome:
    """Execute the run in `run.folder` and return how it ended; its failure raises nothing.

    The experiment is the function that `run.experiment` in the run's config.yaml names. It is
    called on every rank, when all ranks have met, as `experiment(run, report)`; `report`, if given,
    gets rank 0's metrics after each epoch. A complete run returns at once; a stopped or failed one
    resumes from its last checkpoint. A failed run's status has `hindered: true` if the cause lies
    outside the run. When another rank fails, this one fails too, or its process is ended.
    Raises Busy when another process holds the run, LockLost when one took it over from this
    process (both leave the folder unchanged); UserError when the folder cannot be written.
    """
    if run.is_complete():
        return "complete"
    with peers.together(run.folder):
        if peers.own_place()[0] != 0:
            return _execute(run, None, leader=False)
        with run.lock(), _log_to(run.log_file):
            return _execute(run, report, leader=True)


def _execute(run: Run, report: Report | None, *, leader: bool) -> Outcome:
    started, before = time.time(), run.status()
    facts = {
        **{key: before[key] for key in COUNTS if key in before},
        "attempts": before.get("attempts", 0) + 1, "started": started, "host": os.uname().nodename,
        "pid": os.getpid(), "job": job_id(), "code": str(CODE),
    }

    def end_with(state: Outcome, **more: Any) -> Outcome:
        if leader:
            try:
                run.set_status(state, **more, **facts)
            except OSError as error:  # maybe the full disk that ended the run
                log.error("%s: cannot be written: %s", run.status_file, error.strerror)
        return state

    def end_as_another_failed(failure: peers.Failure) -> None:
        end_with("failed", log=str(run.log_file), **failure)
        if leader:
            check_held(run.lock_file)
            run.lock_file.unlink(missing_ok=True)
        _end_for_rank_0(run, failure)

    try:
        peers.on_loss(end_as_another_failed)
        if leader:
            run.set_status("running", **facts)
            job = f", job {facts['job']}" if facts["job"] else ""
            log.info("run %s: attempt %d on %s%s, %s, code in %s", run.name, facts["attempts"],
                     facts["host"], job, counted(peers.own_place()[1], "rank"), CODE)
            announce_torch(log)
            write_json(run.environment_file, environment(CODE))
        with stop_on_signals():
            peers.meet()
            load_function(run, "experiment")(run, report)
    except LockLost:  # status and log belong to another process now
        raise
    except (Exception, KeyboardInterrupt) as error:
        peers.end_here()
        if isinstance(error, Stopped) and peers.cause() is None:
            # the status first: LockLost must come before a line in another process's log
            outcome = end_with("stopped", reason=str(error))
            log.warning("stopped %s", error)
            return outcome
        failure, text, knows_cause = describe(error)
        outcome = end_with("failed", log=str(run.log_file), **failure)
        log.error("failed: %s", text)
        _end_for_rank_0(run, failure)
        peers.tell(failure, knows_cause=knows_cause)
        return outcome
    peers.end_here()
    return end_with("complete", seconds=time.time() - started)


def _end_for_rank_0(run: Run, failure: peers.Failure) -> None:
    """Write the status of a run whose rank 0 was killed, and remove its lock, which would look
    alive for a while from other machines."""
    dead = peers.dead_leader()
    with suppress(OSError, ValueError, KeyError):
        holder = read_json(run.lock_file)
        if dead == [holder["host"], holder["pid"]]:
            facts = {k: v for k, v in run.status().items() if k not in ("state", "time")}
            run.set_status("failed", **{**facts, **failure, "log": str(run.log_file)})
            run.lock_file.unlink()


def load_function(run: Run, key: Literal["experiment", "prepare", "report"]) -> Callable[..., Any]:
    """Return the function that the run's configuration names as `run.<key>`. Raises UserError when
    there is no such key, or when the function cannot be imported."""
    try:
        name = read_yaml(run.config_file)[0]["run"][key]
        present_name = name
        with suppress(ImportError, ValueError):  # older configurations may have another name
            package = importlib.import_module(name.partition(".")[0])
            present_name = getattr(package, "MOVED", {}).get(name, name)
        module, _, function = present_name.rpartition(".")
        log_package(module.partition(".")[0] or "__main__")
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{run.config_file}: run.{key} cannot be read: {error!r}") from None
    try:
        with quick_imports():  # torch and all that an experiment needs
            return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{run.config_file}: run.{key}={name} cannot be imported: "
                        f"{error}") from None


class _LogFile(logging.FileHandler):
    """A log file that drops lines on a full disk, without tracebacks on stderr."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Drop the line; stderr has it."""

    def close(self) -> None:
        with suppress(OSError):
            super().close()


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """Log to a file too, while the body runs."""
    try:
        handler = _LogFile(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
    handler.setFormatter(logging.Formatter(FORMAT))
    log_own_packages(handler)
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
        sys.stdout.flush()
