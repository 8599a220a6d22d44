"""Checks of a dataset: counts, labels, files that do not decode."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.base.machine import usable_cores
from harness.images.pixels import Fault
from svll.base.records import Dataset, Records
from svll.data import benchmarks
from svll.data.readers.common import Benchmark, Counts, cameras, counts

Progress = Callable[[int, int], None]
Bar = Callable[[str], AbstractContextManager[Progress]]
"""Makes a progress bar from a title."""


class PartCounts(NamedTuple):
    """The counts of one part, and the published ones."""

    name: str
    identities: int
    images: int
    cameras: int
    published: Counts | None = None


class CheckResult(NamedTuple):
    """What a check of a dataset found."""

    dataset: Dataset
    benchmark: Benchmark | None
    content_hash: str | None
    faults: list[Fault]
    """Files that are missing or do not decode, sorted by path."""


def check(name: str, root: str | Path, *, content: bool, threads: int, bar: Bar) -> CheckResult:
    """Read a dataset by name and decode all its images, with the decoder that training uses.

    `content`: also hash the images' bytes; `threads` 0: one per usable core. Raises UserError when
    the dataset is not found or its lists or names cannot be read.
    """
    dataset = benchmarks.load_benchmark(name, root)
    content_hash = None
    if content:
        with bar("hashing") as progress:
            content_hash = dataset.content_hash(progress)
    with bar("decoding") as progress:
        faults = decode(dataset.files(), threads=threads, progress=progress)
    return CheckResult(dataset, benchmarks.describe(name), content_hash, faults)


def decode(files: Sequence[str], *, threads: int, progress: Progress | None) -> list[Fault]:
    """Return (path, reason) of the files that do not decode, sorted by path."""
    from harness.images.decoding import check_images  # torch and DALI take seconds to import

    return check_images(files, threads=threads or len(usable_cores()), progress=progress)


def part_counts(dataset: Dataset, benchmark: Benchmark | None) -> list[PartCounts]:
    """Return the parts' counts; query and gallery count once where they are the same images."""
    parts, published = dataset.parts(), benchmark.published if benchmark else None
    is_one_set = dataset.query is dataset.gallery
    if is_one_set:
        del parts["gallery"]
    return [
        PartCounts(
            "test" if is_one_set and name == "query" else name,
            *counts(part), cameras([part]), getattr(published, name, None),
        )
        for name, part in parts.items()
    ]


# --- labels ---


def notes(dataset: Dataset) -> list[str]:
    """Return sentences about labels that a user should know before training or ranking."""
    sentences = [_one_camera(dataset), single_images(dataset.train)]
    if dataset.protocol == "random_gallery":
        sentences.append(_singles(dataset.query, "test", ", so no query asks for them"))
    else:
        sentences.append(unmatched(dataset.query, dataset.gallery, dataset.protocol))
    return [sentence for sentence in sentences if sentence]


def _one_camera(dataset: Dataset) -> str:
    if dataset.protocol != "cross_camera" or cameras(dataset.parts().values()) > 1:
        return ""
    return ("all images are of one camera, so no query has a match under another one; to rank them "
            "all the same, set evaluation.protocol=all_gallery")


def single_images(train: Records) -> str:
    """Return a sentence on training identities with a single image; empty when there are none."""
    return _singles(train, "training", "; the triplet loss compares it with itself only")


def _singles(records: Records, kind: str, effect: str) -> str:
    _, images = np.unique(records.identities, return_counts=True)
    single = int((images == 1).sum())
    if not single:
        return ""
    return f"{single} of {len(images)} {kind} identities have a single image{effect}"


def unmatched(query: Records, gallery: Records, protocol: str) -> str:
    """Return a sentence on queries without a match, and why; empty when all have a match."""
    left_out = ~has_match(query, gallery, protocol)
    if not left_out.any():
        return ""
    ids = np.unique(query.identities)
    absent = np.setdiff1d(ids, gallery.identities)
    near = len(np.setdiff1d(query.identities[left_out], absent))
    message = f"{len(absent)} of {len(ids)} query identities are absent from the gallery"
    by_camera = protocol != "all_gallery"
    if near:
        where = "under the query's own camera only" if by_camera else "as the query itself only"
        message += f", {near} are there {where}"
    message += f"; {left_out.sum()} of {len(query)} queries are left out of the metrics"
    if near and by_camera:
        message += "; to rank those, set evaluation.protocol=all_gallery"
    return message


def has_match(query: Records, gallery: Records, protocol: str) -> NDArray[np.bool_]:
    """Return for each query [Q] whether its identity is in the part of the gallery that it ranks.

    That part has the images of other cameras, or under all_gallery, the other files.
    """
    def pairs(records: Records) -> Iterator[tuple[int, object]]:
        sources = records.paths if protocol == "all_gallery" else records.cameras.tolist()
        return zip(records.identities.tolist(), sources, strict=True)

    sources: dict[int, set[object]] = {}
    for identity, source in pairs(gallery):
        sources.setdefault(identity, set()).add(source)
    matched = [bool(sources.get(identity, set()) - {source}) for identity, source in pairs(query)]
    return np.array(matched, dtype=bool)
