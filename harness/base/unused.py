"""The age limit of files that only save time, such as caches: unused for so long, they are deleted.

What uses a file or folder marks it (`mark_used`): its time of change is its last use.
"""

import math
import os
import shutil
import time
import uuid
from contextlib import suppress
from pathlib import Path

from harness.base.locks import now_at

UNUSED_DAYS = 30
DAY_S = 86_400.0


def mark_used(path: Path) -> None:
    """Note that a file or folder is in use, once a day. Ignores one that is gone or another's."""
    with suppress(FileNotFoundError, PermissionError):
        if time.time() - path.stat().st_mtime > DAY_S:
            os.utime(path)


def unused(folder: Path, days: float = UNUSED_DAYS) -> list[Path]:
    """Return what in a folder has not been used for so long, by the file system's clock: this
    machine's may be wrong. days: 0 returns all."""
    if not folder.is_dir():
        return []
    now = now_at(folder)
    oldest = now - days * DAY_S if days else math.inf
    return sorted(path for path in folder.iterdir() if _last_use(path, now) < oldest)


def _last_use(path: Path, gone: float) -> float:
    try:
        return path.lstat().st_mtime
    except FileNotFoundError:  # another process has just deleted it
        return gone


def remove(path: Path) -> None:
    """Delete a file or folder, which no reader finds in part."""
    if path.is_dir() and not path.is_symlink():
        with suppress(FileNotFoundError):  # another process was faster
            aside = path.rename(path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp"))
            shutil.rmtree(aside, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
