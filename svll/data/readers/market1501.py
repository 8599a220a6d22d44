"""Market-1501, and its folder layout, which other datasets share.

An image's name gives its identity and camera: 0002_c1s1_000451_03.jpg.
"""

from collections.abc import Mapping
from pathlib import Path

from svll.base.records import Dataset
from svll.data.readers import common
from svll.data.readers.common import Benchmark, Counts, Published

FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}

BENCHMARK = Benchmark(
    name="market1501",
    title="Market-1501",
    folders=("Market-1501-v15.09.15", "Market-1501", "market1501"),
    source="To get it: the link on its authors' project page, "
    "zheng-lab.cecs.anu.edu.au/Project/project_reid.html (Market-1501-v15.09.15.zip).",
    published=Published(
        train=Counts(751, 12_936), query=Counts(750, 3_368), gallery=Counts(751, 15_913), cameras=6
    ),
)
OWN = Benchmark(
    name="folder",
    title="dataset in Market-1501's layout",
    folders=BENCHMARK.folders,
    source="Images without such folders are made into a list by: "
    "python launch/data.py split --root DIR --out FILE.csv",
)


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
    folder = common.find(root, benchmark, list(parts.values()))
    folders = {part: folder / below for part, below in parts.items()}
    read, first_camera = common.read_named(folders, views or {}, example=benchmark.example)
    dataset = Dataset(
        benchmark.name, "cross_camera", read["train"], read["query"], read["gallery"],
        first_camera=first_camera,
    )
    common.warn_of_counts(dataset, benchmark, folder)
    return dataset
