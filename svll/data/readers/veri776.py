"""VeRi-776: vehicles under twenty cameras, 0001_c001_00016450_0.jpg, with optional viewpoints.

Viewpoints (0 to 7) come from third-party lists: each line has the image first, then key points, and
the viewpoint last.
"""

import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from harness.images.pixels import IMAGE_ENDINGS
from svll.base.records import Dataset, Records
from svll.data.readers import common, market1501
from svll.data.readers.common import Benchmark, Counts, Published

FOLDERS = {"train": "image_train", "query": "image_query", "gallery": "image_test"}
VIEW_LISTS = ("keypoint_train.txt", "keypoint_test.txt")
VIEWS = 8

BENCHMARK = Benchmark(
    name="veri776",
    title="VeRi-776",
    folders=("VeRi", "VeRi-776", "VeRi_776", "veri776"),
    source="To get it: on request from its authors, vehiclereid.github.io/VeRi.",
    published=Published(Counts(576, 37_778), Counts(200, 1_678), Counts(200, 11_579), 20),
    note="some copies of VeRi-776 have 37746 train images",
    example="0001_c001_00016450_0.jpg",
)

_ENDINGS = "|".join(map(re.escape, IMAGE_ENDINGS))
_IMAGE = re.compile(rf"([^\s/\\]+(?:{_ENDINGS}))\s(?:.*\s)?(\S+)", re.IGNORECASE)

log = logging.getLogger(__name__)


def load(root: str | Path, *, drop_unlisted: bool = False) -> Dataset:
    """Read VeRi-776 from `root` or a usual folder below.

    Images that no viewpoint list names get one further view after the largest one; without any list
    all views are 0. drop_unlisted: leave such images out instead. Raises UserError as Market-1501,
    for malformed lists, and where dropping leaves a part without images.
    """
    folder = common.find(root, BENCHMARK, list(FOLDERS.values()))
    dataset = market1501.load(folder, BENCHMARK, parts=FOLDERS)
    lists = [folder / name for name in VIEW_LISTS if (folder / name).is_file()]
    if not lists and not drop_unlisted:
        log.info("%s: no %s, so every view is 0", folder, " or ".join(VIEW_LISTS))
        return dataset
    views = read_views(lists)
    other = None if drop_unlisted else max(views.values(), default=-1) + 1
    names = (Path(path).name for part in dataset.parts().values() for path in part.paths)
    if unlisted := [name for name in names if name not in views]:
        log.warning("%s: %d images are in no viewpoint list; they are %s (%s)", folder,
                    len(unlisted), "dropped" if other is None else f"kept, as view {other}",
                    common.examples(unlisted))
    parts: dict[str, Any] = {
        name: _with_views(part, views, other) for name, part in dataset.parts().items()
    }
    common.raise_faults([
        f"data.unlisted_views=drop: no image of {folder / FOLDERS[name]} is in a viewpoint list; "
        f"put {' and '.join(VIEW_LISTS)} into {folder}, or set data.unlisted_views=keep"
        for name, part in parts.items() if not len(part)
    ])
    return replace(dataset, **parts)


def read_views(lists: list[Path]) -> dict[str, int]:
    """Return the viewpoint of each image that the lists name, by the image's name.

    An image may be listed twice, as query images may be gallery images too. Raises UserError naming
    all malformed lines, and those that contradict an earlier one.
    """
    views: dict[str, int] = {}
    places: dict[str, str] = {}
    faults: list[str] = []
    for path in lists:
        for number, line in common.read_lines(path):
            where, match = f"{path}, line {number}", _IMAGE.search(line)
            if match is None or match[2] not in map(str, range(VIEWS)):
                faults.append(f"{where}: expected an image's path first and a view of 0 to "
                              f"{VIEWS - 1} last, found {line[:80]!r}")
                continue
            name, view = match[1], int(match[2])
            before = places.setdefault(name, where)
            if views.setdefault(name, view) != view:
                faults.append(f"{where}: {name} has view {view}, and {views[name]} in {before}")
    common.raise_faults(faults)
    return views


def _with_views(records: Records, views: dict[str, int], other: int | None) -> Records:
    """Return the images with their views; unlisted ones get `other`, or are left out if None."""
    sides = np.array([views.get(Path(path).name, -1) for path in records.paths], dtype=np.int64)
    if other is None:
        return replace(records.take(sides >= 0), views=sides[sides >= 0])
    return replace(records, views=np.where(sides < 0, other, sides))
