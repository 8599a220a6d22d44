"""A dataset's images as columns: paths, identities, cameras, views."""

import errno
import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from svll.base.protocol_names import protocol_in_force

Int64 = NDArray[np.int64]
PARTS = ("train", "validation", "query", "gallery")
"""The parts of a dataset, in the order in which they are listed and hashed."""
MISSING = -1
"""The size of a listed file that does not exist."""
_NOWHERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


def usual_first_camera(dataset: str) -> int | None:
    """Return a dataset's own number for camera 0 of the records; None if unknown (folders)."""
    if dataset == "list" or dataset.startswith("vehicleid"):
        return 0
    named = ("synthetic", "market1501", "msmt17", "dukemtmc", "occluded_duke", "veri776")
    return 1 if dataset.startswith(named) else None


class Row(NamedTuple):
    """One image, for `Records.from_rows`."""

    path: str
    identity: int
    camera: int
    view: int = 0


@dataclass(frozen=True, eq=False)
class Records:
    """n images: paths (n), identities [n], cameras [n] from 0, views [n] (0 where unknown)."""

    paths: tuple[str, ...]
    identities: Int64
    cameras: Int64
    views: Int64

    def __post_init__(self) -> None:
        columns = (self.identities, self.cameras, self.views)
        assert all(c.shape == (len(self.paths),) and c.dtype == np.int64 for c in columns)

    @classmethod
    def from_rows(cls, rows: Iterable[Row]) -> "Records":
        """Return the rows as columns, in the order given."""
        paths, *columns = tuple(zip(*rows, strict=True)) or ((), (), (), ())
        return cls(paths, *(np.array(column, dtype=np.int64) for column in columns))

    @classmethod
    def empty(cls) -> "Records":
        """Return no images."""
        return cls.from_rows([])

    @classmethod
    def concatenate(cls, parts: Sequence["Records"]) -> "Records":
        """Return the images of all parts, in order."""
        columns = [(part.identities, part.cameras, part.views) for part in parts]
        paths = tuple(path for part in parts for path in part.paths)
        return cls(paths, *map(np.concatenate, zip(*columns, strict=True)))

    def moved(self, *, identities: int, cameras: int) -> "Records":
        """Return the same images with higher numbers for identities and cameras."""
        return Records(self.paths, self.identities + identities, self.cameras + cameras, self.views)

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, rows: Sequence[int] | NDArray[Any]) -> "Records":
        """Return the images at `rows` (positions, or a mask [n]), in that order."""
        positions = np.arange(len(self))[np.asarray(rows, dtype=None if len(rows) else np.int64)]
        paths = tuple(self.paths[position] for position in positions)
        columns = (self.identities, self.cameras, self.views)
        return Records(paths, *(column[positions] for column in columns))


@dataclass(frozen=True, eq=False)
class Dataset:
    """The parts of a dataset, and the protocol of its evaluation."""

    name: str
    protocol: str
    """See `svll.base.protocol_names`. Under `random_gallery`, query and gallery are the same
    images; evaluation draws one image per identity for the gallery."""
    train: Records
    query: Records
    gallery: Records
    validation: Records = field(default_factory=Records.empty)
    """The held-out part of a user's list; benchmarks have none."""
    version: str = ""
    """The edition of a dataset that has several: `v1` or `v2` of MSMT17."""
    first_camera: int = 0
    """The dataset's own number for camera 0 of the records; 1 in Market-1501."""

    @property
    def title(self) -> str:
        """The dataset's name, with its version where it has one."""
        return f"{self.name} ({self.version})" if self.version else self.name

    @property
    def has_views(self) -> bool:
        """Whether the views are known; unknown ones are all 0."""
        return any(part.views.any() for part in self.parts().values())

    def ranked_by(self, requested: str | None) -> str:
        """Return the requested protocol, or the dataset's own; see `protocol_in_force`."""
        is_one_set = self.query.paths == self.gallery.paths
        return protocol_in_force(requested, self.protocol, self.title, is_one_set=is_one_set)

    def side_columns(self, records: Records) -> tuple[str, Int64, Int64 | None]:
        """Return name, cameras [n] and views [n] or None of images, for `SideLabels.places`."""
        views = records.views if self.has_views else None
        return self.name, records.cameras + self.first_camera, views

    def parts(self) -> dict[str, Records]:
        """Return the parts that have images, by name."""
        return {name: part for name in PARTS if len(part := getattr(self, name))}

    def files(self) -> list[str]:
        """Return the path of every image once, sorted."""
        return sorted({path for part in self.parts().values() for path in part.paths})

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that change when a file is added, removed, renamed, resized or relabelled.

        Names are relative to the folder that holds all images, so a moved or copied dataset keeps
        its fingerprint; contents are not read, since a benchmark has gigabytes of them. Parts,
        labels and order count, since feature files are cached under this fingerprint, row by row.
        A missing file counts with size -1; the decoding check reports it.
        """
        names, sizes = self.names(), self.sizes
        digest = hashlib.sha256()
        for name, part in self.parts().items():
            columns = (part.identities.tolist(), part.cameras.tolist(), part.views.tolist())
            for path, *labels in zip(part.paths, *columns, strict=True):
                line = f"{name}\t{names[path]}\t{sizes[path]}\t{labels}\n"
                digest.update(os.fsencode(line))  # names of files need not be UTF-8
        return digest.hexdigest()[:16]

    @cached_property
    def sizes(self) -> dict[str, int]:
        """File sizes in bytes by path; MISSING for files that do not exist."""
        return {path: file_size(path) for path in self.files()}

    def content_hash(self, progress: Callable[[int, int], None] | None = None) -> str:
        """Return 64 hex digits over the names and bytes of all images; labels do not count.

        A missing file counts by its name. `progress(done, total)` is called after each file.
        """
        digest, names = hashlib.sha256(), self.names()
        for done, (path, name) in enumerate(names.items(), start=1):
            digest.update(os.fsencode(f"{name}\t{file_size(path)}\n"))
            if os.path.isfile(path):
                with open(path, "rb") as file:
                    while chunk := file.read(1 << 20):
                        digest.update(chunk)
            if progress is not None:
                progress(done, len(names))
        return digest.hexdigest()

    def names(self) -> dict[str, str]:
        """Return each image's name below the folder that holds all, by path, sorted by path."""
        paths = self.files()
        folder = os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else ""
        return {path: _below(folder, path).replace(os.sep, "/") for path in paths}


def _below(folder: str, path: str) -> str:
    # relpath would look up the working directory for each of 100,000 files
    if path.startswith(folder + os.sep):
        return path[len(folder) + 1 :]
    return os.path.relpath(path, folder)


def file_size(path: str | os.PathLike[str]) -> int:
    """Return a file's bytes, MISSING when there is none or can be none of that name."""
    try:
        return os.path.getsize(path)
    except OSError as error:
        if error.errno not in _NOWHERE:
            raise
        return MISSING
