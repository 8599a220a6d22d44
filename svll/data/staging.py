"""Copies a dataset's images once to a node's local disk, for all ranks and trials there.

    <data.stage>/svll-<user>-<fingerprint>/<names below the dataset's folder>

A shared file system is slow for 100,000 small files, in every epoch. Every file is copied under a
private name and renamed, and copied again when its size differs from the original's, so the next
run completes a copy after a kill or a cleaning of the disk.
"""

import logging
import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from harness.base.errors import Hindered, UserError
from harness.base.locks import Busy, held_lock
from harness.base.paths import expanded, unknown_in
from harness.runs.stopping import Stopped, check_stop
from svll.base.records import MISSING, Dataset, file_size

log = logging.getLogger(__name__)
THREADS = 16
"""Files copied at a time: most of the time is waiting for the file server."""
POLL_S = 0.5
COPYING = "copying images to this node"


def staged(datasets: Sequence[Dataset], place: str | None) -> dict[str, str]:
    """Copy the images to each node unless `place` is None; returns the copies by original path.

    Every rank must call it. Raises UserError on all ranks when one node cannot store the copy, and
    Stopped on all when one was asked to stop; the next attempt goes on with the copy.
    """
    from harness.training import ranks  # imports torch

    if place is None:
        return {}
    failure: Exception | None = None
    if os.environ.get("LOCAL_RANK", "0") == "0":
        try:
            with suppress(Stopped):
                stage(datasets, place)
        except Exception as error:  # the other ranks wait for the outcome
            failure = error
    # collective calls: every rank must make all
    ranks.check_stop(COPYING)
    failed = ranks.any_rank(failure is not None)
    hindered = ranks.any_rank(isinstance(failure, Hindered | OSError))
    if failed:
        kind = Hindered if hindered else UserError
        raise failure or kind(f"data.stage={place}: failed on another node, see its log")
    return staged_paths(datasets, place)


def stage(datasets: Iterable[Dataset], place: str) -> None:
    """Copy the files that are missing; call in one process of each node.

    place: a folder, which may contain environment variables. Waits for other processes that copy
    the same dataset. Raises UserError for a variable that is not set, Hindered when the disk lacks
    room or cannot be written.
    """
    for dataset in datasets:
        targets, folder = _targets(dataset, place), staged_folder(dataset, place)
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                raise UserError(f"data.stage: {folder} belongs to another user; name another one")
            _complete(dataset, targets, folder)
        except OSError as error:
            raise Hindered(f"data.stage: {error.filename or folder}: {error.strerror}; "
                           "data.stage=null reads from the dataset's own folder") from None


def staged_paths(datasets: Iterable[Dataset], place: str) -> dict[str, str]:
    """Return the path of each image's copy, by its original path."""
    copies = (copy for dataset in datasets for copy in _targets(dataset, place).items())
    return {path: str(target) for path, target in copies}


def _targets(dataset: Dataset, place: str) -> dict[str, Path]:
    names = dataset.names()
    outside = [name for name in names.values() if ".." in name.split("/") or name.startswith("/")]
    if outside or len(set(names.values())) < len(names):
        raise UserError(f"data.stage: {dataset.name} has images that cannot be copied below one "
                        f"folder ({', '.join(outside[:1]) or 'two have one name'}); set "
                        "data.stage=null")
    folder = staged_folder(dataset, place)
    return {path: folder / name for path, name in names.items()}


def staged_folder(dataset: Dataset, place: str) -> Path:
    """Return the folder of a dataset's copies. Raises UserError for a variable that is not set."""
    return place_of(place) / f"svll-{os.getuid()}-{dataset.fingerprint}"


def place_of(place: str) -> Path:
    """Return the folder of all copies here. Raises UserError for a variable that is not set."""
    folder = expanded(place)
    if unknown := unknown_in(folder):
        raise UserError(f"data.stage={place}: {unknown} is not set on {os.uname().nodename}; name "
                        "a folder that every node has, or data.stage=null to read from the "
                        "dataset's own")
    return Path(folder).absolute()


def _complete(dataset: Dataset, targets: Mapping[str, Path], folder: Path) -> None:
    is_logged = False
    while _missing(dataset, targets):
        try:
            with held_lock(folder.with_name(f"{folder.name}.lock")):
                if missing := _missing(dataset, targets):  # another process may have finished
                    _copy(dataset, missing, folder)
                if left := _missing(dataset, targets):
                    raise UserError(f"data.stage: {next(iter(left))} changes while it is copied")
        except Busy as holder:
            if not is_logged:
                log.info("waiting for the copy of %s (%s)", dataset.name, holder.who)
            is_logged = True
            time.sleep(POLL_S)
            check_stop(COPYING)


def _missing(dataset: Dataset, targets: Mapping[str, Path]) -> dict[str, Path]:
    """Return the files to copy: absent ones and those of another size."""
    sizes = dataset.sizes
    return {
        path: target for path, target in targets.items()
        if sizes[path] != MISSING and file_size(target) != sizes[path]
    }


def _copy(dataset: Dataset, missing: Mapping[str, Path], folder: Path) -> None:
    needed = sum(dataset.sizes[path] for path in missing)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise Hindered(f"data.stage: no room for {dataset.name} in {folder}: {needed:,} bytes are "
                       f"needed, {free:,} are free; data.stage=null reads from the dataset's own "
                       "folder")
    log.info("copying %d files of %s (%.2f GB) to %s", len(missing), dataset.name, needed / 1e9,
             folder)
    for parent in {target.parent for target in missing.values()}:
        parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(_copy_one, missing, missing.values()))
    log.info("copied in %.1f s", time.perf_counter() - started)


def _copy_one(source: str, target: Path) -> None:
    check_stop(COPYING)
    private = target.with_name(f".{target.name}.part")  # the lock makes this name safe
    shutil.copyfile(source, private)
    os.replace(private, target)
