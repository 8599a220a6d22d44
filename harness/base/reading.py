"""Reading of files that other machines write, where a network file system may fail for a moment.

A file that was replaced just now may be stale (ESTALE) on another machine, or be read as NULs or
cut short; after a server's restart a read may fail once. Such a read is tried again.
"""

import errno
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
MOMENTARY = (errno.ESTALE, errno.EIO, errno.EREMOTEIO, errno.ETIMEDOUT, errno.EAGAIN,
             errno.ENOTCONN, errno.ESHUTDOWN)
"""Errors of a network file system that may pass."""
PAUSES_S = (0.05, 0.2, 0.75)


def retried(read: Callable[[], T], *also: type[Exception]) -> T:
    """Return what `read` returns, called again for a second after errors that may pass. also: other
    exceptions that may pass; they are raised after a shorter time."""
    for number, pause in enumerate(PAUSES_S):
        try:
            return read()
        except also:
            if number:
                raise
        except OSError as error:
            if error.errno not in MOMENTARY:
                raise
        time.sleep(pause)
    return read()


def exists(path: Path) -> bool:
    """Return whether there is a file or folder. Raises OSError when that is not known."""
    try:
        retried(path.stat)  # since Python 3.14 Path.exists answers False to every error
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True
