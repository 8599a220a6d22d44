"""DukeMTMC-reID and Occluded-DukeMTMC, in Market-1501's folder layout: 0002_c1_f0046182.jpg.

DukeMTMC-reID's gallery has 408 identities without a query, as distractors. Occluded-DukeMTMC splits
the same images so that every query is occluded.
"""

from svll.data.readers.common import Benchmark, Counts, Published

BENCHMARK = Benchmark(
    name="dukemtmc",
    title="DukeMTMC-reID",
    folders=("DukeMTMC-reID", "dukemtmc-reid", "dukemtmcreid", "DukeMTMC"),
    source="There is nothing to download: its authors withdrew it in 2019 to protect the privacy "
    "of the people shown. Every other dataset and command works without it.",
    published=Published(Counts(702, 16_522), Counts(702, 2_228), Counts(1_110, 17_661), 8),
    example="0002_c1_f0046182.jpg",
)
OCCLUDED = Benchmark(
    name="occluded_duke",
    title="Occluded-Duke",
    folders=(
        "Occluded_Duke", "Occluded-DukeMTMC-reID", "occluded_duke", "dukemtmcreid/Occluded_Duke"
    ),
    source="It is made from DukeMTMC-reID, which its authors have withdrawn, by the lists in "
    "github.com/lightas/Occluded-DukeMTMC-Dataset. Every other dataset and command works without.",
    published=Published(Counts(702, 15_618), Counts(519, 2_210), Counts(1_110, 17_661), 8),
    example=BENCHMARK.example,
)
