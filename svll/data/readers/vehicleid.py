"""PKU VehicleID: lists of "name identity"; test sets of 800, 1600 and 2400 vehicles.

Cameras are not told, so all are 0. Query and gallery are the same images: for each of ten draws at
evaluation one image per vehicle, chosen at random, is the gallery and the others are the queries.
"""

import logging
from pathlib import Path

from svll.base.records import Dataset, Records, Row
from svll.data.readers.common import (
    Benchmark,
    Counts,
    Listed,
    Published,
    find,
    image_names,
    read_lists,
    say_skipped,
    warn_of_counts,
)

SIZES = (800, 1600, 2400)
IMAGES = "image"
TRAIN_LIST = "train_test_split/train_list.txt"

log = logging.getLogger(__name__)


def benchmark(size: int) -> Benchmark:
    """Return what is known of the benchmark with one size of test set.

    Sources differ in the number of test images, so none is given.
    """
    test = Counts(size, None)
    return Benchmark(
        name=f"vehicleid_{size}",
        title=f"VehicleID ({size})",
        folders=("VehicleID_V1.0", "VehicleID", "vehicleid"),
        source="To get it: on request from Peking University, www.pkuml.org.",
        published=Published(train=Counts(13_164, 113_346), query=test, gallery=test, cameras=1),
    )


BENCHMARKS = {size: benchmark(size) for size in SIZES}


def load(root: str | Path, size: int = SIZES[0]) -> Dataset:
    """Read VehicleID from `root` or a usual folder below, with `size` test vehicles.

    A listed image that is missing is none of this function's concern: checking names it. Raises
    UserError when the folder or a list is missing, or lists are malformed.
    """
    known = BENCHMARKS[size]
    test_list = f"train_test_split/test_list_{size}.txt"
    folder = find(root, known, [IMAGES, TRAIN_LIST, test_list])
    names = _by_stem(folder / IMAGES)
    train, test = (
        _records(read_lists(folder / name), folder / IMAGES, names)
        for name in (TRAIN_LIST, test_list)
    )
    dataset = Dataset(known.name, "random_gallery", train=train, query=test, gallery=test)
    left = set(names.values()) - {Path(path).name for path in dataset.files()}
    if left:  # most of the images belong to larger test sets
        log.info(
            "%s: %d images are neither in %s nor in %s", folder, len(left), TRAIN_LIST, test_list
        )
    warn_of_counts(dataset, known, folder)
    return dataset


def _by_stem(folder: Path) -> dict[str, str]:
    """Return the images' names by what precedes the ending; lists say no more than that."""
    skipped: list[str] = []
    names = image_names(folder, skipped)
    say_skipped(folder, skipped)
    return {name.rpartition(".")[0]: name for name in names}


def _records(lines: list[Listed], folder: Path, names: dict[str, str]) -> Records:
    rows = []
    for line in lines:
        stem = line.name.removesuffix(".jpg")
        rows.append(Row(str(folder / names.get(stem, f"{stem}.jpg")), line.identity, 0))
    return Records.from_rows(sorted(rows))
