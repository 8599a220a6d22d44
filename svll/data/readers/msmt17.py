"""MSMT17, whose four lists name nested images: 0000/0000_000_01_0303morning_0008_0.jpg.

The third field of a name is the camera, counted from 1. Version 2 has the same images with faces
masked, in folders of other names; results of the two are not comparable, so they are told apart.
"""

import logging
import os
import re
from itertools import chain
from pathlib import Path

from harness.base.errors import UserError
from svll.base.records import Dataset, Records, Row
from svll.data.readers.common import (
    Benchmark,
    Counts,
    Listed,
    Published,
    candidates,
    examples,
    is_image,
    lacking,
    not_found,
    raise_faults,
    read_lists,
    say_skipped,
    warn_of_counts,
)

VERSIONS = {"v1": ("train", "test"), "v2": ("mask_train_v2", "mask_test_v2")}
"""The folders of training and test images, by version."""
LISTS = {
    "train": ("list_train.txt", "list_val.txt"),
    "query": ("list_query.txt",),
    "gallery": ("list_gallery.txt",),
}

BENCHMARK = Benchmark(
    name="msmt17",
    title="MSMT17",
    folders=("MSMT17", "MSMT17_V1", "MSMT17_V2", "msmt17"),
    source="To get it: on request from its authors, www.pkuvmc.com.",
    published=Published(
        train=Counts(1_041, 32_621), query=Counts(3_060, 11_659), gallery=Counts(3_060, 82_161),
        cameras=15,
    ),
)  # fmt: skip

_LIST_NAMES = tuple(name for names in LISTS.values() for name in names)
_NAME = re.compile(r"[^_]+_[^_]+_0*([1-9]\d{0,8})_.+", re.ASCII)

log = logging.getLogger(__name__)


def load(root: str | Path) -> Dataset:
    """Read MSMT17 from `root` or a usual folder below, whichever version is there.

    Both training lists make up the training part. A listed image that is missing is none of this
    function's concern: checking names it. Raises UserError when neither version is found, or both
    are, or lists are malformed.
    """
    folder, version = find_version(Path(root))
    train, test = (folder / name for name in VERSIONS[version])
    lists = {
        part: read_lists(*(folder / name for name in names)) for part, names in LISTS.items()
    }
    below = {"train": train, "query": test, "gallery": test}
    raise_faults([
        f"{line.where}: no camera is in the name of {line.name} (0000/0000_000_01_...jpg)"
        for lines in lists.values() for line in lines if _camera(line) is None
    ])  # fmt: skip
    parts = {part: _records(lines, below[part]) for part, lines in lists.items()}
    dataset = Dataset(
        BENCHMARK.name, "cross_camera", parts["train"], parts["query"], parts["gallery"],
        version=version, first_camera=1,
    )
    _say_unlisted(folder, (train, test), set(dataset.files()))
    warn_of_counts(dataset, BENCHMARK, folder)
    return dataset


def find_version(root: Path) -> tuple[Path, str]:
    """Return the dataset's folder and version; the root itself comes before folders below it."""
    found = [
        (folder, version)
        for folder in candidates(root, BENCHMARK)
        for version, folders in VERSIONS.items()
        if not lacking(folder, [*folders, *_LIST_NAMES])
    ]
    if not found:
        raise not_found(
            root, BENCHMARK, [[*folders, *_LIST_NAMES] for folders in VERSIONS.values()]
        )
    nearest = [place for place in found if place[0] == root] or found
    if len({version for _, version in nearest}) > 1:
        lines = "\n".join(
            f"  {version.upper()} ({', '.join(VERSIONS[version])}) in {folder}"
            for folder, version in nearest
        )
        raise UserError(
            f"{root} holds both versions of MSMT17, whose results are not comparable:\n{lines}\n"
            "Give the folder of the one that is meant; one folder may hold one version only."
        )
    folder, version = nearest[0]
    log.info("%s: read version %s from %s", BENCHMARK.title, version[1:], folder)
    return folder, version


def _records(lines: list[Listed], folder: Path) -> Records:
    rows = [
        Row(f"{folder}{os.sep}{line.name}", line.identity, (_camera(line) or 0) - 1)
        for line in lines
    ]
    return Records.from_rows(sorted(rows))


def _camera(line: Listed) -> int | None:
    match = _NAME.fullmatch(line.name.rpartition("/")[2])
    return int(match[1]) if match else None


def _say_unlisted(folder: Path, parts: tuple[Path, Path], listed: set[str]) -> None:
    """Log the images that no list names, and files that are no images: nobody will see them."""
    images: list[str] = []
    others: list[str] = []
    for place, _, names in chain.from_iterable(map(os.walk, parts)):
        for name in sorted(names):
            path = os.path.join(place, name)
            if not is_image(name):
                others.append(name)
            elif path not in listed:
                images.append(os.path.relpath(path, folder))
    if images:
        log.warning("%s: Skipped %d images that are in no list (%s)", folder, len(images),
                    examples(sorted(images)))  # fmt: skip
    say_skipped(folder, others)
