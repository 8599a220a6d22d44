"""Part files: how ranks share the work of making a feature cache, and resume it after a kill.

Images are numbered from 0. A rank writes the features of some of them as a part file, whole or not
at all; `merge_parts` puts every image in its place exactly once, whichever parts have it.
"""

import hashlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.base.errors import UserError
from harness.features.content import DAMAGE, SUMS
from harness.features.hdf5 import check_attributes, new_file, open_file, put_column, stored_bytes
from harness.features.rows import StoredRows, put_features
from svll.base.feature_file import FeatureGroup, Integers, Labelled, StrPath, write_features

FORMAT, VERSION = "svll-features-part", 1
AGAIN = "remove it and give the command again: only its images are encoded again"
OPEN = 64
"""Parts that are open at a time; each holds up to a block of rows."""


def write_part(folder: StrPath, rank: int, rows: Integers, features: NDArray[Any]) -> None:
    """Write features [m, d] of the images `rows` [m].

    A rank may write any number of parts. The name depends on the rows, so that an attempt with
    another number of ranks, after a kill, adds parts and replaces only those of equal rows.
    """
    rows = np.ascontiguousarray(rows, np.int64)
    assert features.ndim == 2, features.shape
    assert rows.shape == features.shape[:1], (rows.shape, features.shape)
    name = f"part-{rank:05d}-{hashlib.sha256(rows.tobytes()).hexdigest()[:12]}.h5"
    size = stored_bytes(len(rows), features.shape[1] * features.itemsize) + 9 * len(rows)
    with new_file(Path(folder) / name, size) as file:
        put_features(file, features)
        put_column(file, "row", rows)
        file.attrs.update(format=FORMAT, version=VERSION)


def missing_rows(folder: StrPath, total: int) -> Integers:
    """Return which of `total` images no part has yet, ascending."""
    return np.flatnonzero(_index(Path(folder), total).part < 0)


def merge_parts(
    folder: StrPath, path: StrPath, groups: Mapping[str, Labelled],
    rows: Mapping[str, Integers], **about: Any,
) -> None:
    """Make a cache of the parts in `folder`, then remove them; call on one rank, after all wrote.

    rows [n]: the images of a group; an image may be in several groups. about: arguments of
    `write_features`. Images that several parts have (a loader's padding, a second attempt) count
    once. No more than a block of features, and one of each open part, is in memory at a time.
    Raises UserError when an image is in no part.
    """
    folder = Path(folder)
    total = 1 + max((int(own.max(initial=-1)) for own in rows.values()), default=-1)
    index = _index(folder, total)
    missing = np.flatnonzero(index.part < 0)
    if len(missing):
        raise UserError(f"{folder}: {len(missing)} of {total} rows are in no part file (first: "
                        f"{missing[0]}); extract the features again")
    # ranks took batches in turn, so every block of rows is in a part of each rank
    features = lru_cache(OPEN)(lambda part: _read_part(index.paths[part])[1])
    try:
        merged = {
            name: FeatureGroup.of(_MergedRows(index, features, rows[name]), group)
            for name, group in groups.items()
        }
        write_features(path, merged, **about)
    finally:
        features.cache_clear()  # h5py closes a file with its last object
    for part in index.paths:
        part.unlink()


class _Index(NamedTuple):
    """Where the features [n, d] of n images are."""

    paths: list[Path]
    part: Integers
    """[n], the index in `paths` of the part that has an image, -1 where none has."""
    place: Integers
    """[n], the image's row in that part."""
    width: int
    dtype: np.dtype[Any]


class _MergedRows:
    """Features of the images `rows` [n], read from their parts when they are sliced."""

    def __init__(self, index: _Index, read: Callable[[int], StoredRows], rows: Integers) -> None:
        self._index, self._read, self._rows = index, read, rows
        self.shape, self.dtype = (len(rows), index.width), index.dtype

    def __getitem__(self, wanted: slice) -> NDArray[Any]:
        rows = self._rows[wanted]
        parts, places = self._index.part[rows], self._index.place[rows]
        out = np.empty((len(rows), self._index.width), self.dtype)
        for part in np.unique(parts).tolist():
            here = parts == part
            out[here] = self._read(part)[places[here]]
        return out


def _index(folder: Path, total: int) -> _Index:
    """Read every part's rows; UserError for parts of something else and damaged ones."""
    paths = sorted(folder.glob("part-*.h5"))
    part, place = np.full(total, -1), np.full(total, -1)
    kinds: dict[tuple[np.dtype[Any], int], Path] = {}
    for number, path in enumerate(paths):
        rows, features = _read_part(path)
        kinds.setdefault((features.dtype, features.shape[1]), path)
        if len(rows) and not (rows.min() >= 0 and rows.max() < total):
            raise UserError(f"{path}: holds row {rows.max()}, the dataset has {total}; the folder "
                            "belongs to another dataset: remove it and start again")
        part[rows], place[rows] = number, np.arange(len(rows))
    if len(kinds) > 1:
        (dtype, width), (other, its), *_ = kinds
        raise UserError(f"{kinds[other, its]}: features are {other} [{its}], those of other parts "
                        f"{dtype} [{width}]; remove {folder} and start again")
    dtype, width = next(iter(kinds), (np.dtype(np.float32), 0))
    return _Index(paths, part, place, width, dtype)


def _read_part(path: Path) -> tuple[Integers, StoredRows]:
    """Return the images [m] of a part and their features [m, d], which keep the file open."""
    try:
        file = open_file(path)
        known = check_attributes(path, file, FORMAT, VERSION, anew=AGAIN)
        return file["row"][:], StoredRows(path, file["features"], file.get(SUMS), anew=AGAIN,
                                          sure=known is not None)
    except DAMAGE as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{path}: a damaged part; {AGAIN} ({reason})") from error
