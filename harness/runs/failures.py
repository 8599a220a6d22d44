"""Why a run failed: what its status keeps, and whether the cause lies outside the run."""

import errno
import os
import re
import time
import traceback
from contextlib import suppress
from typing import Any

from harness.base.errors import Hindered, UserError
from harness.base.files import read_json, write_json
from harness.base.locks import job_id
from harness.runs.run import Run

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


def describe(error: BaseException, run: Run, *, leader: bool) -> tuple[dict[str, Any], str]:
    """Return what a failed run's status keeps of the exception being handled, and its log text.

    The text of a user's mistake or a full disk is its message, of anything else the traceback.
    Rank 0 (`leader`), when it merely lost another rank, waits shortly for that rank's own words.
    """
    text = traceback.format_exc()
    if isinstance(error, UserError) or _is_of_the_file_system(error):
        text = str(error)
    failure = {
        "error": one_line(error), "lines": text.splitlines()[-ERROR_LINES:],
        "hindered": _is_hindered(error),
    }
    if not leader:
        _leave_word(run, failure)
    elif _is_lost_rank(error):
        failure |= _word_of_others(run)
    if failure["error"] != one_line(error):  # another rank's
        text = f"{text.rstrip()}\n{failure['error']}"
    return failure, text


def _is_of_the_file_system(error: BaseException) -> bool:
    """Whether a file could not be written or read for a reason that lies outside the program."""
    return isinstance(error, OSError) and error.errno in FILE_SYSTEM


def _is_hindered(error: BaseException) -> bool:
    """Whether the run would go on once what is around it is as it was."""
    return isinstance(error, Hindered) or _is_of_the_file_system(error) or _is_lost_rank(error)


def _is_lost_rank(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and re.search(LOST_RANK, str(error)) is not None


# --- why another rank was lost: only rank 0 writes the status, so others leave it a file ---


def _attempt() -> str:
    """Return what the ranks of one attempt have in common."""
    names = ("SLURM_RESTART_COUNT", "MASTER_ADDR", "MASTER_PORT")
    return "-".join([job_id() or "", *(os.environ.get(name, "") for name in names)])


def _leave_word(run: Run, failure: dict[str, Any]) -> None:
    """Write why this rank failed, unless it merely lost another."""
    if not re.search(LOST_RANK, failure["error"]):
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
