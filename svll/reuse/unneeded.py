"""Shared files that only save time, and that no run needs: stage 1, features of the starting
encoder, drawn worlds. Each is made again when it is needed."""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from harness.base.errors import UserError
from harness.base.locks import lock_holder
from harness.base.unused import DAY_S
from harness.listing.reclaim import Reclaim, Spare, open_runs, said
from harness.runs.run import Run

KINDS = {"shared stage 1": ("prompts", "stage1"), "made data": ("data",)}
"""Folders in the cache by kind."""


def add_shared(runs_folder: Path, unfinished: Sequence[Run], result: Reclaim) -> None:
    """Add the shared files in a folder of runs. unfinished: its runs that are not complete; while
    there are any, all shared files stay, as a run may begin to read them at any moment."""
    cache = runs_folder / "cache"
    for kind, folders in KINDS.items():
        inside = [cache / name for name in folders]
        if not (paths := _spare(inside)):
            continue
        if unfinished:
            result.kept += said(unfinished, f"{cache}: {kind}")
        else:
            again = partial(_spare_now, inside, result.folders)
            result.spares.append(Spare(kind, cache, paths, again))


def _spare_now(folders: Sequence[Path], where: Sequence[Path]) -> list[Path]:
    """Return what is in folders of the cache. Raises UserError if a run in `where` may need it."""
    if begun := open_runs(where):
        raise UserError(said(begun, "it")[0])
    return _spare(folders)


def _spare(folders: Sequence[Path]) -> list[Path]:
    """Return what is in folders of the cache, without what is being made."""
    return [path for folder in folders if folder.is_dir() and not folder.is_symlink()
            for path in sorted(folder.iterdir()) if not _is_being_made(path)]


def _is_being_made(path: Path) -> bool:
    """Return whether a process may be writing a file or folder, or holds its lock."""
    if path.name.startswith("."):  # renamed once it is whole; a kill leaves it
        return time.time() - path.stat().st_mtime < DAY_S
    lock = path if path.suffix == ".lock" else path.with_name(f"{path.name}.lock")
    return lock_holder(lock) is not None
