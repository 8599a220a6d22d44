"""One run, from its folder to its result, however it was started.

`launch/train.py`, a submitit job and a Ray trial all come here, so that status, log, lock and
failure look the same whoever asks.
"""

import importlib
import logging
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from harness.base.errors import UserError
from harness.base.files import write_json
from harness.base.locks import job_id
from harness.config.yaml_files import read_yaml
from harness.runs.environment import CODE, environment
from harness.runs.failures import describe
from harness.runs.run import Run
from harness.runs.stopping import Stopped, stop_on_signals

log = logging.getLogger(__name__)
Outcome = Literal["complete", "stopped", "failed"]
Report = Callable[[dict[str, Any]], None]
COUNTS = ("preemptions", "time_outs")
"""Counters of a job that the status carries from one attempt to the next."""


def execute(run: Run, *, report: Report | None = None) -> Outcome:
    """Carry out the run in `run.folder` and return how it ended; never raises for its failure.

    The experiment is the function that `run.experiment` in the run's config.yaml names; it is
    called on every rank as `experiment(run, report)`. `report`, if given, gets rank 0's metrics
    after each epoch. A complete run returns at once; a stopped or failed one goes on from its last
    checkpoint. The status of a failure says whether it was `hindered`, by what lies outside.
    Raises Busy when another process holds the run, UserError when its folder cannot be written.
    """
    if run.is_complete():
        return "complete"
    if int(os.environ.get("RANK", "0")) != 0:
        return _carry_out(run, None, leader=False)
    with run.lock(), _log_to(run.log_file):
        return _carry_out(run, report, leader=True)


def _carry_out(run: Run, report: Report | None, *, leader: bool) -> Outcome:
    def end_with(state: Outcome, **facts: Any) -> Outcome:
        if leader:
            try:
                run.set_status(state, **facts)
            except OSError as error:  # of the same full disk, perhaps, that ended the run
                log.error("%s: cannot be written: %s", run.status_file, error.strerror)
        return state

    started = time.time()
    before = run.status()
    facts = {
        **{key: before[key] for key in COUNTS if key in before},
        "attempts": before.get("attempts", 0) + 1, "started": started,
        "host": os.uname().nodename, "pid": os.getpid(), "job": job_id(),
        "code": str(CODE),
    }
    try:
        if leader:
            run.set_status("running", **facts)
            write_json(run.environment_file, environment(CODE))
        with stop_on_signals():
            load_function(run, "experiment")(run, report)
    except Stopped as reason:
        log.warning("stopped: %s", reason)
        return end_with("stopped", reason=str(reason), **facts)
    except (Exception, KeyboardInterrupt) as error:
        failure, text = describe(error, run, leader=leader)
        log.error("failed: %s", text)
        return end_with("failed", log=str(run.log_file), **failure, **facts)
    return end_with("complete", seconds=time.time() - started, **facts)


def load_function(
    run: Run, key: Literal["experiment", "prepare", "report"]
) -> Callable[..., Any]:
    """Return the function that the run's configuration names as `run.<key>`.

    Raises UserError when it names none, or one that cannot be imported.
    """
    try:
        name = read_yaml(run.config_file)[0]["run"][key]
        module, _, function = _now_called(name).rpartition(".")
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{run.config_file}: no run.{key} to be read: {error!r}") from None
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"{run.config_file}: run.{key}={name} cannot be imported: {error}"
        ) from None


def _now_called(name: str) -> str:
    """Return where a function is that an earlier run's configuration may name by its old place."""
    with suppress(ImportError, ValueError):
        package = importlib.import_module(name.partition(".")[0])
        return getattr(package, "MOVED", {}).get(name, name)
    return name


class _LogFile(logging.FileHandler):
    """A log that a full disk cuts short instead of filling stderr with tracebacks."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Leave the line out; it has gone to stderr anyway."""

    def close(self) -> None:
        with suppress(OSError):
            super().close()


class _log_to:
    """Also write this process's log lines to a file, while the body runs."""

    def __init__(self, path: Path) -> None:
        try:
            self.handler = _LogFile(path, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror}") from None
        self.handler.setFormatter(
            logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
        )

    def __enter__(self) -> None:
        root = logging.getLogger()
        root.addHandler(self.handler)
        if not logging.getLogger("harness").isEnabledFor(logging.INFO):
            for name in ("harness", "svll", "launch"):
                logging.getLogger(name).setLevel(logging.INFO)

    def __exit__(self, *_: object) -> None:
        logging.getLogger().removeHandler(self.handler)
        self.handler.close()
        sys.stdout.flush()
