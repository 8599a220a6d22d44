"""PKU VehicleID: lists of "name identity"; test sets of 800, 1600 and 2400 vehicles.

Cameras are unknown, so all are 0. Query and gallery are the same images: evaluation repeats ten
times a random draw of one image per vehicle as the gallery; the others are the queries.
"""

import logging
from pathlib import Path

from harness.base.errors import UserError
from harness.base.units import counted
from svll.base.records import Dataset, Records, Row
from svll.data.readers import common
from svll.data.readers.common import Benchmark, Counts, Listed, Published

IMAGES = "image"
TRAIN_LIST = "train_test_split/train_list.txt"

log = logging.getLogger(__name__)


def _benchmark(size: int) -> Benchmark:
    test = Counts(size, None)  # sources differ in the number of test images
    return Benchmark(
        name=f"vehicleid_{size}",
        title=f"VehicleID ({size})",
        folders=("VehicleID_V1.0", "VehicleID", "vehicleid"),
        source="To get it: on request from Peking University, www.pkuml.org.",
        published=Published(train=Counts(13_164, 113_346), query=test, gallery=test, cameras=1),
    )


BENCHMARKS = {size: _benchmark(size) for size in (800, 1600, 2400)}
"""By the number of test vehicles."""


def load(root: str | Path, size: int = 800) -> Dataset:
    """Read VehicleID from `root` or a usual folder below, with `size` test vehicles.

    A listed image may be missing; the decoding check reports it. Raises UserError when the folder
    or a list is missing, or lists are malformed.
    """
    benchmark, test_list = BENCHMARKS[size], f"train_test_split/test_list_{size}.txt"
    folder = common.find(root, benchmark, [IMAGES, TRAIN_LIST, test_list])
    skipped: list[str] = []
    names = common.image_names(folder / IMAGES, skipped)
    common.log_skipped(folder / IMAGES, skipped)
    by_stem = _by_stem(folder / IMAGES, names)
    train, test = (
        _records(common.read_lists(folder / name), folder / IMAGES, by_stem)
        for name in (TRAIN_LIST, test_list)
    )
    if both := sorted(set(train.paths) & set(test.paths)):
        raise UserError(f"{folder}: {counted(len(both), 'image')} in both {TRAIN_LIST} and "
                        f"{test_list} ({common.examples(both)})")
    dataset = Dataset(benchmark.name, "random_gallery", train=train, query=test, gallery=test)
    if unlisted := set(names) - {Path(path).name for path in dataset.files()}:
        # most of the images belong to larger test sets
        log.info("%s: %d images are neither in %s nor in %s (%s)", folder, len(unlisted),
                 TRAIN_LIST, test_list, common.examples(sorted(unlisted)))
    common.log_beside(folder, [IMAGES, Path(TRAIN_LIST).parts[0]])
    common.warn_of_counts(dataset, benchmark, folder)
    return dataset


def _by_stem(folder: Path, names: list[str]) -> dict[str, str]:
    """Return image names by what lists call them, without the ending; UserError for two that differ
    in the ending only."""
    by_stem: dict[str, str] = {}
    for name in names:
        if (before := by_stem.setdefault(name.rpartition(".")[0], name)) != name:
            raise UserError(f"{folder}: {before} and {name} have one name in the lists; remove one "
                            "of them")
    return by_stem


def _records(lines: list[Listed], folder: Path, by_stem: dict[str, str]) -> Records:
    rows = []
    for line in lines:
        stem = line.name.removesuffix(".jpg")
        rows.append(Row(str(folder / by_stem.get(stem, f"{stem}.jpg")), line.identity, 0))
    return Records.from_rows(sorted(rows))
