"""One run, from its folder to its result, however it was started.

`launch/train.py`, a submitit job and a Ray trial all come here, so that status, log, lock and
failure look the same whoever asks.
"""

import importlib
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import yaml

from harness.errors import UserError
from harness.runs import Run
from harness.stopping import Stopped, stop_on_signals

log = logging.getLogger(__name__)
Outcome = Literal["complete", "stopped", "failed"]
Report = Callable[[dict[str, Any]], None]
COUNTS = ("preemptions", "time_outs")
"""What is counted of a job from one attempt to the next."""
ERROR_LINES = 20
"""How many last lines of a failure's traceback the status keeps."""


def execute(run: Run, *, report: Report | None = None) -> Outcome:
    """Carry out the run in `run.folder` and return how it ended; never raises for its failure.

    The experiment is the function that `run.experiment` in the run's config.yaml names; it is
    called on every rank as `experiment(run, report)`. `report`, if given, gets rank 0's metrics
    after each epoch. A complete run returns at once; a stopped or failed one goes on from its last
    checkpoint. Raises UserError only when another process holds the run.
    """
    if run.is_complete():
        return "complete"
    if int(os.environ.get("RANK", "0")) != 0:
        return _carry_out(run, None, leader=False)
    with run.lock(), _log_to(run.log_file):
        return _carry_out(run, report, leader=True)


def _carry_out(run: Run, report: Report | None, *, leader: bool) -> Outcome:
    def set_status(state: Any, **facts: Any) -> None:
        if leader:
            run.set_status(state, **facts)

    started = time.time()
    before = run.status()
    facts = {
        **{key: before[key] for key in COUNTS if key in before},
        "attempts": before.get("attempts", 0) + 1, "started": started,
        "host": os.uname().nodename, "pid": os.getpid(), "job": job_id(),
    }
    set_status("running", **facts)
    try:
        with stop_on_signals():
            load_experiment(run)(run, report)
    except Stopped as reason:
        log.warning("stopped: %s", reason)
        set_status("stopped", reason=str(reason), **facts)
        return "stopped"
    except (Exception, KeyboardInterrupt) as error:
        told = str(error) if isinstance(error, UserError) else traceback.format_exc()
        log.error("failed: %s", told)
        set_status(
            "failed", error=one_line(error), lines=told.splitlines()[-ERROR_LINES:],
            log=str(run.log_file), **facts,
        )
        return "failed"
    set_status("complete", seconds=time.time() - started, **facts)
    return "complete"


def load_experiment(run: Run) -> Callable[[Run, Report | None], Any]:
    """Return the function that the run's configuration names as its experiment."""
    try:
        settings = yaml.safe_load(run.config_file.read_text(encoding="utf-8"))
        name = settings["run"]["experiment"]
        module, _, function = name.rpartition(".")
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise UserError(f"{run.config_file}: no run.experiment to be read: {error!r}") from None
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"{run.config_file}: run.experiment={name} cannot be imported: {error}"
        ) from None


def job_id() -> str | None:
    """Return SLURM's id of the job that this process is in (array_task for an array), or None."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    if array:
        return f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID', '0')}"
    return os.environ.get("SLURM_JOB_ID")


def one_line(error: BaseException) -> str:
    """Say an exception in one line: a user's mistake by its message, others with their class."""
    text = str(error).strip().splitlines()
    first = text[0] if text else ""
    return first if isinstance(error, UserError) else f"{type(error).__name__}: {first}"


class _log_to:
    """Also write this process's log lines to a file, while the body runs."""

    def __init__(self, path: Path) -> None:
        self.handler = logging.FileHandler(path, encoding="utf-8")
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
