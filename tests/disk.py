"""A disk that forgets: what a crash of the machine may leave of a folder, at any moment.

Only what was fsynced is sure to stay: the content of files, and the names in folders. Of the rest
the kernel may have written anything, which images stand for.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

IMAGES = ("nothing more", "names", "contents")
"""What is left besides what was fsynced: nothing; all names, and zeros in place of contents, as
file systems show blocks that were reserved and never written; all contents, but not their names."""
INNER = "inner names"
"""A further image, of a moment when no file was just moved out of a folder below the root: names
there, but not those in the root itself."""


class Disk:
    """What is durable below `root`: what was there before, and what is synced during `watch`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.contents: dict[int, bytes] = {}  # of files, by inode
        self.names: dict[int, dict[str, int]] = {}  # inodes of a folder's entries, by its inode
        self.handles: dict[int, int] = {}  # open files: an inode in use gets no second file
        for place in (root, *root.rglob("*")):
            self._note(place)

    @contextmanager
    def watch(self, crash: Callable[[], None]) -> Iterator[None]:
        """Call `crash` before whatever makes something durable or changes a name."""
        lock = threading.Lock()
        before = {name: getattr(os, name) for name in ("fsync", "rename", "replace")}

        def watched(name: str) -> Callable[..., Any]:
            def call(*arguments: Any, **named: Any) -> Any:
                with lock:  # several threads write
                    crash()
                    result = before[name](*arguments, **named)
                    if name == "fsync":
                        self._note(Path(os.readlink(f"/proc/self/fd/{arguments[0]}")))
                    return result
            return call

        for name in before:
            setattr(os, name, watched(name))
        try:
            yield
        finally:
            for name, function in before.items():
                setattr(os, name, function)
            for handle in self.handles.values():
                os.close(handle)

    def image(self, kind: str, target: Path) -> None:
        """Write what a crash may leave now."""
        self._write(self._inode(self.root), kind, target)

    def _note(self, synced: Path) -> None:
        if not synced.is_relative_to(self.root):
            return
        inode = self._inode(synced)
        if synced.is_dir():
            self.names[inode] = {one.name: self._inode(one) for one in synced.iterdir()}
        else:
            self.contents[inode] = synced.read_bytes()

    def _inode(self, path: Path) -> int:
        inode = path.stat().st_ino
        if inode not in self.handles:
            self.handles[inode] = os.open(path, os.O_RDONLY)
        return inode

    def _write(self, inode: int, kind: str, target: Path) -> None:
        found = Path(f"/proc/self/fd/{self.handles[inode]}")
        if found.is_dir():
            target.mkdir(parents=True)
            names = self.names.get(inode, {})
            if kind == "names" or (kind == INNER and inode != self._inode(self.root)):
                names = {one.name: self._inode(one) for one in found.iterdir()}
            for name, entry in names.items():
                self._write(entry, kind, target / name)
            os.utime(target, ns=(found.stat().st_mtime_ns,) * 2)
            return
        now, durable = found.read_bytes(), self.contents.get(inode, b"")
        if kind == "names":
            durable += bytes(max(0, len(now) - len(durable)))
        target.write_bytes(now if kind == "contents" else durable)
