"""A dataset's images copied once to a node's own disk, for all ranks and trials there.

    <data.stage>/svll-<user>-<fingerprint>/<names below the dataset's folder>

A shared file system answers each of 100,000 small files slowly, in every epoch again. Every file
is copied under a private name and renamed, and is taken again when its size is not the original's,
so a copy that was killed, or that a cleaner has thinned out, is completed by the next run.
"""

import logging
import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from harness.base.errors import Hindered, UserError
from harness.base.locks import Busy, held_lock
from harness.base.paths import expanded, unknown_in
from svll.base.records import Dataset

log = logging.getLogger(__name__)
THREADS = 16
"""Files copied at a time: the time goes into waiting for the file server."""
POLL_S = 0.5


def staged(datasets: Sequence[Dataset], place: str | None) -> dict[str, str]:
    """Copy the images to each node, if a place there is named; returns where each is, by path.

    Every rank must call it. Raises UserError on all of them when one node cannot take the copy.
    """
    from harness.training import ranks  # torch: importing this module stays cheap

    if place is None:
        return {}
    failure: Exception | None = None
    if os.environ.get("LOCAL_RANK", "0") == "0":
        try:
            stage(datasets, place)
        except Exception as error:  # the other ranks wait to hear of it
            failure = error
    # all ranks must take part in both questions
    failed = ranks.any_rank(failure is not None)
    hindered = ranks.any_rank(isinstance(failure, Hindered | OSError))
    if failed:
        told = f"data.stage={place}: failed on another node, see its log"
        raise failure or (Hindered(told) if hindered else UserError(told))
    return staged_paths(datasets, place)


def stage(datasets: Iterable[Dataset], place: str) -> None:
    """Copy what is not there yet; call in one process of each node.

    place: a folder, may name environment variables. Another process that is copying the same is
    waited for. Raises UserError for a variable that is not set, Hindered when the disk lacks room
    or cannot be written.
    """
    for dataset in datasets:
        folder = staged_folder(dataset, place)
        copied = _targets(dataset, folder)
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                raise UserError(f"data.stage: {folder} belongs to another user; name another one")
            _complete(dataset, copied, folder)
        except OSError as error:
            raise Hindered(
                f"data.stage: {error.filename or folder}: {error.strerror}; "
                "data.stage=null reads from the dataset's own folder"
            ) from None


def staged_paths(datasets: Iterable[Dataset], place: str) -> dict[str, str]:
    """Return where `stage` puts each image, by its path in the dataset."""
    return {
        path: str(target)
        for dataset in datasets
        for path, target in _targets(dataset, staged_folder(dataset, place)).items()
    }


def _targets(dataset: Dataset, folder: Path) -> dict[str, Path]:
    """Return where each image is copied to, by its path: one place each, below the folder."""
    names = dataset.names()
    outside = [name for name in names.values() if ".." in name.split("/") or name.startswith("/")]
    if outside or len(set(names.values())) < len(names):
        raise UserError(
            f"data.stage: {dataset.name} has images that cannot be copied below one folder "
            f"({', '.join(outside[:1]) or 'two have one name'}); set data.stage=null"
        )
    return {path: folder / name for path, name in names.items()}


def staged_folder(dataset: Dataset, place: str) -> Path:
    """Return the folder of a dataset's copies. Raises UserError for a variable that is not set."""
    return place_of(place) / f"svll-{os.getuid()}-{dataset.fingerprint}"


def place_of(place: str) -> Path:
    """Return the folder of all copies here. Raises UserError for a variable that is not set."""
    folder = expanded(place)
    if unknown := unknown_in(folder):
        raise UserError(
            f"data.stage={place}: {unknown} is not set on {os.uname().nodename}; name a folder "
            "that every node has, or data.stage=null to read from the dataset's own"
        )
    return Path(folder).absolute()


def _complete(dataset: Dataset, copied: Mapping[str, Path], folder: Path) -> None:
    lock = folder.with_name(f"{folder.name}.lock")
    told = False
    while missing := _missing(dataset, copied):
        try:
            with held_lock(lock):
                if missing := _missing(dataset, copied):  # and not completed just now
                    _copy(dataset, missing, folder)
                if left := _missing(dataset, copied):
                    raise UserError(f"data.stage: {next(iter(left))} changes while it is copied")
        except Busy as holder:
            if not told:
                log.info("waiting for the copy of %s (%s)", dataset.name, holder)
            told = True
            time.sleep(POLL_S)


def _missing(dataset: Dataset, copied: Mapping[str, Path]) -> dict[str, Path]:
    """Return the files that are not there as they should be, but for those the dataset lacks."""
    sizes = dataset.sizes
    return {
        path: target for path, target in copied.items()
        if sizes[path] >= 0 and _size(target) != sizes[path]
    }


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1


def _copy(dataset: Dataset, missing: Mapping[str, Path], folder: Path) -> None:
    needed = sum(dataset.sizes[path] for path in missing)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise Hindered(
            f"data.stage: no room for {dataset.name} in {folder}: {needed:,} bytes are needed, "
            f"{free:,} are free; data.stage=null reads from the dataset's own folder"
        )
    log.info("copying %d files of %s (%.2f GB) to %s", len(missing), dataset.name, needed / 1e9,
             folder)
    for parent in {target.parent for target in missing.values()}:
        parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    with ThreadPoolExecutor(THREADS) as threads:
        for _ in threads.map(_copy_one, missing.items()):
            pass
    log.info("copied in %.1f s", time.perf_counter() - started)


def _copy_one(pair: tuple[str, Path]) -> None:
    source, target = pair
    private = target.with_name(f".{target.name}.part")  # whoever copies holds the lock
    shutil.copyfile(source, private)
    os.replace(private, target)
