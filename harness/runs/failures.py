"""Why a run failed: the error in its status, and whether the cause lies outside the run."""

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

LOST_RANK = (r"Connection closed by peer|Connection reset by peer|remote process exited|"
             r"[Tt]imed out waiting|collective (operation )?timeout")
"""Messages of gloo and NCCL when another rank has ended or hangs."""
FILE_SYSTEM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO,
               errno.ESTALE, errno.ESHUTDOWN, errno.ENOTCONN, errno.ETIMEDOUT, errno.EREMOTEIO)
"""Errors of a file system that is full, read-only, forbidden or disconnected."""
OTHERS_WAIT_S = 3.0
"""How long rank 0 waits for the message of a lost rank."""
ERROR_LINES = 20
"""Number of lines at the end of a traceback that the status keeps."""


def describe(error: BaseException, run: Run, *, leader: bool) -> tuple[dict[str, Any], str]:
    """Return the entries of a failed run's status for the current exception, and its log text.

    The text is the message of a user's mistake or a full disk, and the traceback of anything else.
    If rank 0 (`leader`) only lost another rank, it waits briefly for that rank's message.
    """
    is_file_system = _is_file_system(error)
    is_lost_rank = isinstance(error, RuntimeError) and re.search(LOST_RANK, str(error)) is not None
    is_plain = isinstance(error, UserError) or is_file_system
    text = str(error) if is_plain else traceback.format_exc()
    message = one_line(error)
    failure = {"error": message, "lines": text.splitlines()[-ERROR_LINES:],
               "hindered": isinstance(error, Hindered) or is_file_system or is_lost_rank}
    if not leader:
        _leave_message(run, failure)
    elif is_lost_rank:
        failure |= _message_of_others(run)
        if failure["error"] != message:
            text = f"{text.rstrip()}\n{failure['error']}"
    return failure, text


def _is_file_system(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in FILE_SYSTEM


# --- rank 0 writes the status, so other ranks leave it a message ---


def _attempt() -> str:
    """Return a text that only the ranks of one attempt share."""
    names = ("SLURM_RESTART_COUNT", "MASTER_ADDR", "MASTER_PORT")
    return "-".join([job_id() or "", *(os.environ.get(name, "") for name in names)])


def _leave_message(run: Run, failure: dict[str, Any]) -> None:
    """Write why this rank failed, unless it only lost another rank or knows that rank 0 failed."""
    if not re.search(rf"{LOST_RANK}|rank 0 failed", failure["error"]):
        with suppress(OSError):
            rank = int(os.environ["RANK"])
            write_json(run.folder / f"failure-{rank}.json", {**failure, "attempt": _attempt()})


def _message_of_others(run: Run) -> dict[str, Any]:
    """Return why another rank of this attempt failed; empty if none left a message."""
    deadline = time.monotonic() + OTHERS_WAIT_S
    while True:
        for path in sorted(run.folder.glob("failure-*.json")):
            with suppress(OSError, ValueError, KeyError):
                found = read_json(path)
                if found.pop("attempt") == _attempt():
                    rank = path.stem.rpartition("-")[2]
                    return {**found, "error": f"rank {rank}: {found['error']}"}
        if time.monotonic() > deadline:
            return {}
        time.sleep(0.1)


def one_line(error: BaseException) -> str:
    """Return an exception as one line: the message, after the class unless a user's mistake."""
    if isinstance(error, OSError) and _is_file_system(error):
        return f"{error.filename or 'writing'}: {error.strerror}"
    text = str(error).strip().splitlines()
    first = text[0] if text else ""
    return first if isinstance(error, UserError) else f"{type(error).__name__}: {first}"
