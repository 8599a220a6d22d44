"""Reading of files that other machines write, where a network file system may fail for a moment.

A file that was replaced just now may be stale (ESTALE) on another machine, or be read as NULs or
cut short; after a server's restart a read may fail once. Such a read is tried again.
"""

import errno
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
MOMENTARY = (errno.ESTALE, errno.EIO, errno.EREMOTEIO, errno.ETIMEDOUT, errno.EAGAIN,
             errno.ENOTCONN, errno.ESHUTDOWN)
"""Errors of a network file system that may pass."""
PAUSES_S = (0.05, 0.2, 0.75)
MOST_DIGITS = 300
"""Of an integer: a float holds 308."""


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


def from_json(text: str | bytes) -> Any:
    """Return the value of a JSON text. Raises ValueError, also for what Python alone accepts: NaN,
    infinity and larger numbers than a float holds; and for nesting that is too deep."""
    try:
        return json.loads(text, parse_constant=_refused, parse_float=_float, parse_int=_int)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refused(word: str) -> float:
    raise ValueError(f"{word} is not JSON")


def _float(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refused(text[:20])


def _int(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"{text[:20]}... is too large a number")
    return int(text)
