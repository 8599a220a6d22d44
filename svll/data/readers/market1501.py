"""Market-1501, and its folder layout, which other datasets share.

An image's name gives its identity and camera: 0002_c1s1_000451_03.jpg.
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from harness.base.errors import UserError
from harness.base.units import counted
from svll.base.records import Dataset, Records, Row
from svll.data.readers import common
from svll.data.readers.common import Benchmark, Counts, Published

FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}

BENCHMARK = Benchmark(
    name="market1501",
    title="Market-1501",
    folders=("Market-1501-v15.09.15", "Market-1501", "market1501"),
    source="To get it: the link on its authors' project page, "
    "zheng-lab.cecs.anu.edu.au/Project/project_reid.html (Market-1501-v15.09.15.zip).",
    published=Published(Counts(751, 12_936), Counts(750, 3_368), Counts(751, 15_913), 6),
)
OWN = Benchmark(
    name="folder",
    title="dataset in Market-1501's layout",
    folders=BENCHMARK.folders,
    source="Images without such folders are made into a list by: "
    "python launch/data.py split --root DIR --out FILE.csv",
)

log = logging.getLogger(__name__)


def load(
    root: str | Path, benchmark: Benchmark = BENCHMARK, *, parts: Mapping[str, str] = FOLDERS,
    views: Mapping[str, int] | None = None,
) -> Dataset:
    """Read a benchmark from `root`, or from a usual folder below it.

    Its `parts`, one folder each, hold images whose names begin with identity and camera; `views`
    gives the visible side by "folder/name". Junk images (identity -1) are left out; distractors
    (0000) stay in the gallery. Numbers that differ from the published ones are a warning. Raises
    UserError when there is no such dataset, or an image has another kind of name.
    """
    skipped: list[str] = []
    folder = common.find(root, benchmark, list(parts.values()))
    rows = {
        part: _rows(folder / below, benchmark.example, views or {}, skipped)
        for part, below in parts.items()
    }
    common.log_skipped(folder, skipped)
    if views is None:  # a drawn world has nothing else
        common.log_beside(folder, parts.values())
    if benchmark.published:
        _log_distractors({folder / parts[part]: rows[part] for part in ("train", "query")})
    # names count cameras from 1, or from 0 where any name has a camera 0
    first = min(1, min(row.camera for part in rows.values() for row in part))
    train, query, gallery = (
        Records.from_rows(rows[part]).moved(identities=0, cameras=-first) for part in FOLDERS
    )
    dataset = Dataset(benchmark.name, "cross_camera", train, query, gallery, first_camera=first)
    common.warn_of_counts(dataset, benchmark, folder)
    return dataset


def _log_distractors(rows: Mapping[Path, list[Row]]) -> None:
    """Warn of identity 0 outside of a gallery, where benchmarks have it for many people."""
    for folder, images in rows.items():
        if found := sum(image.identity == 0 for image in images):
            log.warning("%s: %s of identity 0, which stands for distractors in a gallery; here "
                        "it is one identity", folder, counted(found, "image"))


def _rows(folder: Path, example: str, views: Mapping[str, int], skipped: list[str]) -> list[Row]:
    """Return the images of a part, without junk, with cameras as in their names."""
    rows, strange = common.parse_names(folder, skipped)
    if strange:
        raise UserError(f"{folder}: {len(strange)} images are not named like {example}: "
                        f"{common.examples(strange)}")
    rows = common.without_junk(folder, rows)
    if not rows:
        raise common.no_images(folder, skipped)
    names = (f"{folder.name}/{os.path.basename(row.path)}" for row in rows)
    return [row._replace(view=views.get(name, 0)) for row, name in zip(rows, names, strict=True)]
