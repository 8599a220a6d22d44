"""Sizes of folders on disk. A file with several names (hard links) counts once."""

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

BLOCK = 512
"""Bytes of a block in `st_blocks`, whatever the file system."""


class _File(NamedTuple):
    size: int
    names: int
    """Its names on the whole file system."""


def size_of(*paths: Path) -> int:
    """Return the bytes on disk of files and folders. Links are not followed; what cannot be read
    counts nothing."""
    return sum(file.size for file, _ in _counted(paths))


def freed_by(paths: Iterable[Path]) -> int:
    """Return the bytes that deleting files and folders frees: of files without other names."""
    return sum(file.size for file, found in _counted(paths) if found >= file.names)


def _counted(paths: Iterable[Path]) -> Iterable[tuple[_File, int]]:
    """Return each file once, with how many of its names are in the paths."""
    found: dict[tuple[int, int], tuple[_File, int]] = {}
    for about in _below([os.fspath(path) for path in paths]):
        key = about.st_dev, about.st_ino
        names = 1 if stat.S_ISDIR(about.st_mode) else about.st_nlink
        file = _File(about.st_blocks * BLOCK, names)
        found[key] = file, found.get(key, (file, 0))[1] + 1
    return found.values()


def _below(waiting: list[str]) -> Iterator[os.stat_result]:
    while waiting:
        path = waiting.pop()
        try:
            about = os.lstat(path)
            yield about
            if stat.S_ISDIR(about.st_mode):
                with os.scandir(path) as entries:
                    waiting += [entry.path for entry in entries]
        except OSError:  # it is gone by now, or another user's
            continue
