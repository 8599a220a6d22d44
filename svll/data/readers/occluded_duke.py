"""Occluded-DukeMTMC: DukeMTMC-reID's images, parted anew so that every query is occluded."""

from pathlib import Path

from svll.base.records import Dataset
from svll.data.readers.common import Benchmark, Counts, Published
from svll.data.readers.dukemtmc import EXAMPLE
from svll.data.readers.market1501 import load_layout

_NAMES = ("Occluded_Duke", "Occluded-DukeMTMC-reID", "occluded_duke")

BENCHMARK = Benchmark(
    name="occluded_duke",
    title="Occluded-Duke",
    folders=(*_NAMES, "dukemtmcreid/Occluded_Duke"),
    source="It is made from DukeMTMC-reID, which its authors have withdrawn, by the lists in "
    "github.com/lightas/Occluded-DukeMTMC-Dataset. Every other dataset and command works without.",
    published=Published(
        train=Counts(702, 15_618), query=Counts(519, 2_210), gallery=Counts(1_110, 17_661),
        cameras=8,
    ),
)  # fmt: skip


def load(root: str | Path) -> Dataset:
    """Read Occluded-Duke from `root` or a usual folder below; raises UserError as Market-1501."""
    return load_layout(root, BENCHMARK, example=EXAMPLE)
