"""DukeMTMC-reID, in Market-1501's folder layout: 0002_c1_f0046182.jpg.

The gallery holds 408 identities more than are asked for: distractors with identities of their own.
"""

from pathlib import Path

from svll.base.records import Dataset
from svll.data.readers.common import Benchmark, Counts, Published
from svll.data.readers.market1501 import load_layout

EXAMPLE = "0002_c1_f0046182.jpg"

BENCHMARK = Benchmark(
    name="dukemtmc",
    title="DukeMTMC-reID",
    folders=("DukeMTMC-reID", "dukemtmc-reid", "dukemtmcreid", "DukeMTMC"),
    source="There is nothing to download: its authors withdrew it in 2019 to protect the privacy "
    "of the people shown. Every other dataset and command works without it.",
    published=Published(
        train=Counts(702, 16_522), query=Counts(702, 2_228), gallery=Counts(1_110, 17_661),
        cameras=8,
    ),
)  # fmt: skip


def load(root: str | Path) -> Dataset:
    """Read DukeMTMC-reID from `root` or a usual folder below; raises UserError as Market-1501."""
    return load_layout(root, BENCHMARK, example=EXAMPLE)
