"""Checks of a dataset: counts, labels, files that do not decode."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

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


@dataclass(frozen=True)
class PartCounts:
    """The counts of one part, and the published ones."""

    name: str
    identities: int
    images: int
    cameras: int
    published: Counts | None = None


@dataclass(frozen=True)
class CheckResult:
    """What a check of a dataset found."""

    dataset: str
    protocol: str
    parts: tuple[PartCounts, ...]
    cameras: int
    """Of all parts together."""
    published_cameras: int | None
    fingerprint: str
    content_hash: str | None
    notes: tuple[str, ...]
    """Sentences about labels with surprising effects on training or ranking."""
    images: int
    """Number of files that were decoded."""
    faults: tuple[Fault, ...]
    """Files that are missing or do not decode, sorted by path."""

    @property
    def is_sound(self) -> bool:
        """Whether every image exists and decodes; counts may differ from the published ones."""
        return not self.faults


def check(
    name: str, root: str | Path, *, content: bool = False, threads: int = 0, bar: Bar | None = None
) -> CheckResult:
    """Read a dataset by name and decode all its images, with the decoder that training uses.

    `content`: also hash the images' bytes; `threads` 0: one per usable core. Raises UserError when
    the dataset is not found or its lists or names cannot be read.
    """
    bar = bar or (lambda title: nullcontext(lambda done, total: None))
    dataset = benchmarks.load_benchmark(name, root)
    known = benchmarks.describe(name)
    content_hash = None
    if content:
        with bar("hashing") as progress:
            content_hash = dataset.content_hash(progress)
    files = dataset.files()
    with bar("decoding") as progress:
        faults = decode(files, threads=threads, progress=progress)
    return CheckResult(
        dataset=dataset.title, protocol=dataset.protocol,
        parts=tuple(part_counts(dataset, known)), cameras=cameras(dataset.parts().values()),
        published_cameras=known.published.cameras if known and known.published else None,
        fingerprint=dataset.fingerprint, content_hash=content_hash, notes=tuple(notes(dataset)),
        images=len(files), faults=tuple(faults),
    )


def decode(files: Sequence[str], *, threads: int, progress: Progress | None) -> list[Fault]:
    """Return (path, reason) of the files that cannot be decoded."""
    from harness.images.decoding import check_images  # torch and DALI take seconds to import

    return check_images(files, threads=threads or len(usable_cores()), progress=progress)


def part_counts(dataset: Dataset, benchmark: Benchmark | None) -> list[PartCounts]:
    """Return the parts' counts; query and gallery count once where they are the same images."""
    names = {name: name for name in dataset.parts()}
    if dataset.query is dataset.gallery:
        names = {"train": "train", "query": "test"}
    published = benchmark.published if benchmark else None
    parts = {name: getattr(dataset, name) for name in names}
    return [
        PartCounts(names[name], *counts(part), cameras([part]), getattr(published, name, None))
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
    return (
        "all images are of one camera, so no query has a match under another one; to rank them "
        "all the same, set evaluation.protocol=all_gallery"
    )


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
