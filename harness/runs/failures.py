"""Why a run failed: the error in its status, and whether the cause lies outside the run."""

import errno
import re
import traceback
from typing import Any

from harness.base.errors import Hindered, UserError
from harness.runs import peers
from harness.runs.connections import RankLost
from harness.runs.stopping import Stopped

LOST_RANK = (r"Connection closed by peer|Connection reset by peer|remote process exited|"
             r"[Tt]imed out waiting|collective (operation )?timeout|"
             r"rank \d+: its process .*ended without a message")
"""Messages when another rank has ended or hangs: of gloo, of NCCL and of `harness.runs.peers`."""
FOLLOWS = rf"{LOST_RANK}|rank 0 failed"
"""Messages of a rank that noticed another one's failure."""
TAKEN_PORT = r"EADDRINUSE|[Aa]ddress already in use"
FILE_SYSTEM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO,
               errno.ESTALE, errno.ESHUTDOWN, errno.ENOTCONN, errno.ETIMEDOUT, errno.EREMOTEIO)
"""Errors of a file system that is full, read-only, forbidden or disconnected."""
OTHERS_WAIT_S = 3.0
"""How long a rank waits for the message of a lost one."""
ERROR_LINES = 20
"""Number of lines at the end of a traceback that the status keeps."""


def describe(error: BaseException) -> tuple[dict[str, Any], str, bool]:
    """Return the entries of a failed run's status for the current exception, its log text, and
    whether this rank knows the cause.

    The text is the message of a user's mistake or a full disk, and the traceback of anything else.
    If this rank only noticed the failure of another one, it waits briefly for that one's message,
    which then is the error.
    """
    is_file_system = _is_file_system(error)
    is_lost = isinstance(error, Stopped | RankLost) or (
        isinstance(error, RuntimeError) and re.search(FOLLOWS, str(error)) is not None
    )
    is_plain = isinstance(error, UserError | RankLost | Stopped) or is_file_system
    text = str(error) if is_plain else traceback.format_exc()
    message = one_line(error)
    outside = isinstance(error, Hindered) or is_file_system or is_lost
    failure = {"error": message, "lines": text.splitlines()[-ERROR_LINES:],
               "hindered": outside or re.search(TAKEN_PORT, message) is not None}
    if is_lost and (cause := peers.cause(OTHERS_WAIT_S)) is not None:
        failure |= cause
        text = f"{text.rstrip()}\n{failure['error']}"
    return failure, text, not is_lost


def _is_file_system(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in FILE_SYSTEM


def one_line(error: BaseException) -> str:
    """Return an exception as one line: the message, after the class unless a user's mistake."""
    if isinstance(error, OSError) and _is_file_system(error):
        return f"{error.filename or 'writing'}: {error.strerror}"
    text = str(error).strip().splitlines()
    first = text[0] if text else ""
    return first if isinstance(error, UserError) else f"{type(error).__name__}: {first}"
