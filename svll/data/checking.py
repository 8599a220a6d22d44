"""Whether a dataset is whole and fit to train on: counts, labels, files that do not decode."""

from collections.abc import Callable, Sequence
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
"""Makes a display of progress from a title."""

@dataclass(frozen=True)
class Part:
    """How much one part holds, beside what is published."""

    name: str
    identities: int
    images: int
    cameras: int
    published: Counts | None = None


@dataclass(frozen=True)
class Check:
    """What was found."""

    dataset: str
    protocol: str
    parts: tuple[Part, ...]
    cameras: int
    """Of all parts together."""
    published_cameras: int | None
    fingerprint: str
    content_hash: str | None
    notes: tuple[str, ...]
    """Sentences about labels that make training or ranking differ from what one may expect."""
    images: int
    """Number of files that were decoded."""
    faults: tuple[Fault, ...]
    """Files that are missing or do not decode, in the order of their names."""

    @property
    def is_sound(self) -> bool:
        """Whether every image is there and decodes; other numbers than published are no fault."""
        return not self.faults


def check(
    name: str, root: str | Path, *, content: bool = False, threads: int = 0, bar: Bar | None = None
) -> Check:
    """Read a dataset by name and decode all its images, with the decoder that training uses.

    `content`: hash the images' bytes, too; `threads` 0: as many as there are cores to use. Raises
    UserError when the dataset is not found or its lists or names cannot be read.
    """
    bar = bar or _silent
    dataset = benchmarks.load_benchmark(name, root)
    known = benchmarks.describe(name)
    content_hash = None
    if content:
        with bar("hashing") as progress:
            content_hash = dataset.content_hash(progress)
    files = dataset.files()
    with bar("decoding") as progress:
        faults = decode(files, threads=threads, progress=progress)
    return Check(
        dataset=dataset.title, protocol=dataset.protocol,
        parts=tuple(count(dataset, known)), cameras=cameras(dataset.parts().values()),
        published_cameras=known.published.cameras if known and known.published else None,
        fingerprint=dataset.fingerprint, content_hash=content_hash, notes=tuple(notes(dataset)),
        images=len(files), faults=tuple(faults),
    )  # fmt: skip


def decode(files: Sequence[str], *, threads: int, progress: Progress | None) -> list[Fault]:
    """Return (path, reason) of the files that cannot be decoded."""
    # torch and DALI: seconds that a typo need not wait
    from harness.images.decoding import check_images

    threads = threads or len(usable_cores())
    return check_images(files, threads=threads, progress=progress)


def count(dataset: Dataset, benchmark: Benchmark | None) -> list[Part]:
    """Return the parts' numbers; query and gallery once where they are the same images."""
    parts = dataset.parts()
    if dataset.query is dataset.gallery:
        parts = {"train": dataset.train, "test": dataset.query}
    published = benchmark.published if benchmark else None
    return [
        Part(
            name, *counts(part), cameras([part]),
            getattr(published, "query" if name == "test" else name, None),
        )
        for name, part in parts.items()
    ]  # fmt: skip


# --- labels ---


def notes(dataset: Dataset) -> list[str]:
    """Return sentences about labels that a user should know of before training or ranking."""
    found = [_one_camera(dataset), single_images(dataset.train)]
    if dataset.protocol == "random_gallery":
        found.append(_single_test_images(dataset.query))
    else:
        found.append(unmatched(dataset.query, dataset.gallery, dataset.protocol))
    return [note for note in found if note]


def _one_camera(dataset: Dataset) -> str:
    parts = list(dataset.parts().values())
    if dataset.protocol != "cross_camera" or cameras(parts) > 1:
        return ""
    return (
        "all images are of one camera, so no query has a match under another one; to rank them "
        "all the same, set evaluation.protocol=all_gallery"
    )


def single_images(train: Records) -> str:
    """Say how many training identities have one image, if any."""
    single, known = _singles(train)
    if not single:
        return ""
    return (
        f"{single} of {known} training identities have a single image; the triplet loss compares "
        "it with itself only"
    )


def _single_test_images(test: Records) -> str:
    single, known = _singles(test)
    if not single:
        return ""
    return f"{single} of {known} test identities have a single image, so no query asks for them"


def _singles(records: Records) -> tuple[int, int]:
    """Return how many identities have one image, and how many there are."""
    _, images = np.unique(records.identities, return_counts=True)
    return int((images == 1).sum()), len(images)


def unmatched(query: Records, gallery: Records, protocol: str) -> str:
    """Say which queries nothing in the gallery can match, and why; empty when all have a match."""
    ids = np.unique(query.identities)
    absent = np.setdiff1d(ids, gallery.identities)
    left_out = ~has_match(query, gallery, protocol)
    near = len(np.setdiff1d(query.identities[left_out], absent))
    if not left_out.any():
        return ""
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
    """Return for each query [Q] whether its identity is in what it ranks of the gallery.

    That is what other cameras took, or under all_gallery, what other files hold.
    """
    columns: tuple[Sequence[object], ...] = query.cameras.tolist(), gallery.cameras.tolist()
    if protocol == "all_gallery":
        columns = query.paths, gallery.paths
    seen: dict[int, set[object]] = {}
    for identity, one in zip(gallery.identities.tolist(), columns[1], strict=True):
        seen.setdefault(identity, set()).add(one)
    pairs = zip(query.identities.tolist(), columns[0], strict=True)
    found = [bool(seen.get(identity, set()) - {one}) for identity, one in pairs]
    return np.array(found, dtype=bool)


def _silent(title: str) -> AbstractContextManager[Progress]:
    return nullcontext(lambda done, total: None)
