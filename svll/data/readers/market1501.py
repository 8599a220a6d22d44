"""Market-1501, and its folder layout, which others have taken over.

The identity and camera of an image stand in its name: 0002_c1s1_000451_03.jpg.
"""

from collections.abc import Mapping
from pathlib import Path

from svll.base.records import Dataset
from svll.data.readers.common import (
    Benchmark,
    Counts,
    Published,
    find,
    read_named,
    warn_of_counts,
)

FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
EXAMPLE = "0002_c1s1_000451_00.jpg"

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


def load(root: str | Path) -> Dataset:
    """Read Market-1501 from `root`, or from the folder below it that the download unpacks to.

    Junk images (identity -1) are left out; distractors (0000) stay in the gallery. Other numbers
    than the published ones are a warning: some people have subsets. Raises UserError when there is
    no such dataset, or images are named otherwise.
    """
    return load_layout(root, BENCHMARK)


def load_folder(root: str | Path) -> Dataset:
    """Read anybody's dataset in Market-1501's layout, whatever its numbers."""
    return load_layout(root, OWN)


def load_layout(
    root: str | Path,
    benchmark: Benchmark,
    *,
    parts: Mapping[str, str] = FOLDERS,
    views: Mapping[str, int] | None = None,
    example: str = EXAMPLE,
) -> Dataset:
    """Read a benchmark whose `parts`, one folder each, hold images named by identity and camera.

    `views` gives the side seen, by "folder/name".
    """
    folder = find(root, benchmark, list(parts.values()))
    folders = {part: folder / below for part, below in parts.items()}
    read, first_camera = read_named(folders, views=views, example=example)
    dataset = Dataset(
        benchmark.name, "cross_camera", read["train"], read["query"], read["gallery"],
        first_camera=first_camera,
    )
    warn_of_counts(dataset, benchmark, folder)
    return dataset


def read_layout(root: str | Path, *, name: str, views: Mapping[str, int] | None = None) -> Dataset:
    """Read any dataset in Market-1501's layout under a name of its own; see `load_layout`."""
    return load_layout(root, Benchmark(name, OWN.title, OWN.folders, OWN.source), views=views)
