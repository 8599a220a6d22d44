"""Images of a benchmark as columns: where each one is, whom it shows, which camera took it."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]


class Row(NamedTuple):
    """One image; a reader of a benchmark lists these and hands them to `Records.from_rows`."""

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
        rows = list(rows)
        return cls(
            paths=tuple(row.path for row in rows),
            identities=np.array([row.identity for row in rows], dtype=np.int64),
            cameras=np.array([row.camera for row in rows], dtype=np.int64),
            views=np.array([row.view for row in rows], dtype=np.int64),
        )

    @classmethod
    def empty(cls) -> "Records":
        """Return no images."""
        return cls.from_rows([])

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, rows: Sequence[int] | NDArray[Any]) -> "Records":
        """Return the images at `rows` (positions, or a mask [n]), in that order."""
        positions = np.arange(len(self))[np.asarray(rows, dtype=None if len(rows) else np.int64)]
        return Records(
            paths=tuple(self.paths[position] for position in positions),
            identities=self.identities[positions],
            cameras=self.cameras[positions],
            views=self.views[positions],
        )

    @classmethod
    def concatenate(cls, parts: Sequence["Records"]) -> "Records":
        """Return the images of all parts, in order."""
        return cls(
            paths=tuple(path for part in parts for path in part.paths),
            identities=np.concatenate([part.identities for part in parts]),
            cameras=np.concatenate([part.cameras for part in parts]),
            views=np.concatenate([part.views for part in parts]),
        )

    def moved(self, *, identities: int, cameras: int) -> "Records":
        """Return the same images with higher numbers for identities and cameras."""
        return Records(self.paths, self.identities + identities, self.cameras + cameras, self.views)


@dataclass(frozen=True, eq=False)
class Dataset:
    """The three parts of a benchmark, and the rule by which it is evaluated."""

    name: str
    protocol: str
    train: Records
    query: Records
    gallery: Records
    validation: Records = field(default_factory=Records.empty)
    """For selection, where the dataset brings such a part of its own."""

    @property
    def parts(self) -> tuple[Records, ...]:
        return self.train, self.query, self.gallery, self.validation

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that change when a file is added, removed, renamed or resized.

        Names are taken relative to the folder that holds all images, so a moved or copied dataset
        keeps its fingerprint; contents are not read, for a benchmark has gigabytes of them.
        """
        paths = sorted({path for part in self.parts for path in part.paths})
        folder = os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else ""
        digest = hashlib.sha256()
        for path in paths:
            name = os.path.relpath(path, folder).replace(os.sep, "/")
            digest.update(f"{name}\t{os.path.getsize(path)}\n".encode())
        return digest.hexdigest()[:16]
