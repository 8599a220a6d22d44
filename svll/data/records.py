"""Images of a benchmark as columns: where each one is, whom it shows, which camera took it."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, eq=False)
class Dataset:
    """The three parts of a benchmark, and the rule by which it is evaluated."""

    name: str
    protocol: str
    train: Records
    query: Records
    gallery: Records

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that change when a file is added, removed, renamed or resized.

        Names are taken relative to the folder that holds all images, so a moved or copied dataset
        keeps its fingerprint; contents are not read, for a benchmark has gigabytes of them.
        """
        paths = sorted({*self.train.paths, *self.query.paths, *self.gallery.paths})
        folder = os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else ""
        digest = hashlib.sha256()
        for path in paths:
            name = os.path.relpath(path, folder).replace(os.sep, "/")
            digest.update(f"{name}\t{os.path.getsize(path)}\n".encode())
        return digest.hexdigest()[:16]
