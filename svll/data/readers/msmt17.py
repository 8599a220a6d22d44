"""MSMT17, whose four lists name nested images: 0000/0000_000_01_0303morning_0008_0.jpg.

The third field of a name is the camera, counted from 1. Version 2 has the same images with masked
faces, in other folders; results of the two versions are not comparable.
"""

import logging
import os
import re
from pathlib import Path

from harness.base.errors import UserError
from svll.base.records import Dataset, Records, Row
from svll.data.readers import common
from svll.data.readers.common import Benchmark, Counts, Listed, Published

VERSIONS = {"v1": ("train", "test"), "v2": ("mask_train_v2", "mask_test_v2")}
"""The folders of training and test images by version."""
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
    published=Published(Counts(1_041, 32_621), Counts(3_060, 11_659), Counts(3_060, 82_161), 15),
)

_LIST_NAMES = tuple(name for names in LISTS.values() for name in names)
_NAME = re.compile(r"[^_]+_[^_]+_0*([1-9]\d{0,8})_.+", re.ASCII)

log = logging.getLogger(__name__)


def load(root: str | Path) -> Dataset:
    """Read MSMT17 from `root` or a usual folder below, whichever version is there.

    Both training lists make up the training part. A listed image may be missing; the decoding check
    reports it. Raises UserError when neither version is found, or both are, or lists are malformed.
    """
    folder, version = find_version(Path(root))
    folders = [folder / name for name in VERSIONS[version]]
    lists = {part: common.read_lists(*map(folder.joinpath, names)) for part, names in LISTS.items()}
    below = {"train": folders[0], "query": folders[1], "gallery": folders[1]}
    common.raise_faults([
        f"{line.where}: no camera is in the name of {line.name} (0000/0000_000_01_...jpg)"
        for lines in lists.values() for line in lines if _camera(line) == 0
    ])
    train, query, gallery = (_records(lines, below[part]) for part, lines in lists.items())
    dataset = Dataset("msmt17", "cross_camera", train, query, gallery, version=version,
                      first_camera=1)
    _log_unlisted(folder, folders, set(dataset.files()))
    common.warn_of_counts(dataset, BENCHMARK, folder)
    return dataset


def find_version(root: Path) -> tuple[Path, str]:
    """Return the dataset's folder and version; the root itself comes before folders below it."""
    needs = {version: [*folders, *_LIST_NAMES] for version, folders in VERSIONS.items()}
    places = [
        (folder, version) for folder in common.candidates(root, BENCHMARK)
        for version in VERSIONS if not common.lacking(folder, needs[version])
    ]
    if not places:
        raise common.not_found(root, BENCHMARK, list(needs.values()))
    nearest = [place for place in places if place[0] == root] or places
    if len({version for _, version in nearest}) > 1:
        lines = "\n".join(f"  {version.upper()} ({', '.join(VERSIONS[version])}) in {folder}"
                          for folder, version in nearest)
        raise UserError(f"{root} holds both versions of MSMT17, whose results are not "
                        f"comparable:\n{lines}\nGive the folder of the one that is meant; one "
                        "folder may hold one version only.")
    folder, version = nearest[0]
    log.info("%s: read version %s from %s", BENCHMARK.title, version[1:], folder)
    return folder, version


def _records(lines: list[Listed], folder: Path) -> Records:
    return Records.from_rows(sorted(
        Row(f"{folder}{os.sep}{line.name}", line.identity, _camera(line) - 1) for line in lines
    ))


def _camera(line: Listed) -> int:
    """Return the camera in an image's name, 0 when there is none."""
    match = _NAME.fullmatch(line.name.rpartition("/")[2])
    return int(match[1]) if match else 0


def _log_unlisted(folder: Path, parts: list[Path], listed: set[str]) -> None:
    """Log the images that no list names, and files that are no images."""
    skipped: list[str] = []
    images = sorted(
        os.path.relpath(path, folder) for part in parts for place, below in common.folders(part)
        for name in common.image_names(place, skipped, ignoring=below)
        if (path := f"{place}{os.sep}{name}") not in listed
    )
    if images:
        log.warning("%s: Skipped %d images that are in no list (%s)", folder, len(images),
                    common.examples(images))
    common.log_skipped(folder, skipped)
    common.log_beside(folder, [*(part.name for part in parts), *_LIST_NAMES])
