"""One run, from its folder to its result, however it was started.

`launch/train.py`, a submitit job and a Ray trial all come here, so that status, log, lock and
failure look the same whoever asks.
"""

import errno
import importlib
import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from harness.base.errors import Hindered, UserError
from harness.base.files import read_json, write_json
from harness.base.locks import LockLost, job_id
from harness.config.yaml_files import read_yaml
from harness.runs.environment import CODE, environment
from harness.runs.run import Run
from harness.runs.stopping import Stopped, stop_on_signals

log = logging.getLogger(__name__)
Outcome = Literal["complete", "stopped", "failed"]
Report = Callable[[dict[str, Any]], None]
COUNTS = ("preemptions", "time_outs")
"""What is counted of a job from one attempt to the next."""
LOST_RANK = (
    r"Connection closed by peer|Connection reset by peer|remote process exited|"
    r"[Tt]imed out waiting|collective (operation )?timeout"
)
"""How gloo and NCCL say that another rank has gone or hangs."""
FILE_SYSTEM = (
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO,
    errno.ESTALE, errno.ESHUTDOWN, errno.ENOTCONN, errno.ETIMEDOUT, errno.EREMOTEIO,
)
"""What a file system says that is full, closed to us, or cut off."""
OTHERS_WORD_S = 3.0
"""How long rank 0 waits for the word of a rank that it lost."""
ERROR_LINES = 20
"""How many last lines of a failure's traceback the status keeps."""


def execute(run: Run, *, report: Report | None = None) -> Outcome:
    """Carry out the run in `run.folder` and return how it ended; never raises for its failure.

    The experiment is the function that `run.experiment` in the run's config.yaml names; it is
    called on every rank as `experiment(run, report)`. `report`, if given, gets rank 0's metrics
    after each epoch. A complete run returns at once; a stopped or failed one goes on from its last
    checkpoint. The status of a failure says whether it was `hindered`, by what lies outside.
    Raises Busy when another process holds the run or takes it over from this one (LockLost), which
    then leaves the folder as it is; UserError when the folder cannot be written.
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
        # the status first: a folder that was lost to another process gets no line of the log either
        outcome = end_with("stopped", reason=str(reason), **facts)
        log.warning("stopped: %s", reason)
        return outcome
    except LockLost:  # status and log are another process's now
        raise
    except (Exception, KeyboardInterrupt) as error:
        told = traceback.format_exc()
        if isinstance(error, UserError) or _is_of_the_file_system(error):
            told = str(error)
        failure = {
            "error": one_line(error), "lines": told.splitlines()[-ERROR_LINES:],
            "hindered": _is_hindered(error),
        }
        if not leader:
            _leave_word(run, failure)
        elif _is_lost_rank(error):
            failure |= _word_of_others(run)
        if failure["error"] != one_line(error):  # another rank's
            told = f"{told.rstrip()}\n{failure['error']}"
        outcome = end_with("failed", log=str(run.log_file), **failure, **facts)
        log.error("failed: %s", told)
        return outcome
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


def _is_of_the_file_system(error: BaseException) -> bool:
    """Whether a file could not be written or read for a reason that lies outside the program."""
    return isinstance(error, OSError) and error.errno in FILE_SYSTEM


def _is_hindered(error: BaseException) -> bool:
    """Whether the run would go on once what is around it is as it was."""
    return isinstance(error, Hindered) or _is_of_the_file_system(error) or _is_lost_rank(error)


def _is_lost_rank(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and re.search(LOST_RANK, str(error)) is not None


# --- why another rank was lost: only the first writes the status, so others leave it a word ---


def _attempt() -> str:
    """Return what the ranks of one attempt have in common."""
    names = ("SLURM_RESTART_COUNT", "MASTER_ADDR", "MASTER_PORT")
    return "-".join([job_id() or "", *(os.environ.get(name, "") for name in names)])


def _leave_word(run: Run, failure: dict[str, Any]) -> None:
    """Write why this rank failed, unless it merely lost another or was told that rank 0 failed."""
    if not re.search(rf"{LOST_RANK}|rank 0 failed", failure["error"]):
        with suppress(OSError):
            rank = int(os.environ["RANK"])
            write_json(run.folder / f"failure-{rank}.json", {**failure, "attempt": _attempt()})


def _word_of_others(run: Run) -> dict[str, Any]:
    """Return why another rank of this attempt failed, nothing when none has said so."""
    deadline = time.monotonic() + OTHERS_WORD_S
    while True:
        for path in sorted(run.folder.glob("failure-*.json")):
            with suppress(OSError, ValueError, KeyError):
                said = read_json(path)
                if said.pop("attempt") == _attempt():
                    rank = path.stem.rpartition("-")[2]
                    return {**said, "error": f"rank {rank}: {said['error']}"}
        if time.monotonic() > deadline:
            return {}
        time.sleep(0.1)


def one_line(error: BaseException) -> str:
    """Say an exception in one line: a user's mistake by its message, others with their class."""
    if isinstance(error, OSError) and _is_of_the_file_system(error):
        return f"{error.filename or 'writing'}: {error.strerror}"
    text = str(error).strip().splitlines()
    first = text[0] if text else ""
    return first if isinstance(error, UserError) else f"{type(error).__name__}: {first}"


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
