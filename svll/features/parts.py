"""Part files: how ranks share the work of making a feature cache, and go on with it after a kill.

Images are counted from 0. A rank writes the features of some of them as a part file, whole or not
at all; `merge_parts` puts every image in its place exactly once, whichever parts have it.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from harness.base.errors import UserError
from harness.features.hdf5 import check_attributes, new_file, open_file, put_column, stored_bytes
from harness.features.rows import SUMS, StoredRows, put_features
from svll.base.feature_file import FeatureGroup, Integers, Labelled, StrPath, write_features

FORMAT, VERSION = "svll-features-part", 1
ANEW = "remove it and give the command again: its images alone are encoded again"
OPEN = 64
"""Parts that are open at a time; each holds up to a block of rows."""


def write_part(folder: StrPath, rank: int, rows: Integers, features: NDArray[Any]) -> None:
    """Write features [m, d] of the images `rows` [m].

    A rank may write any number of parts. The name depends on the rows, so that an attempt with
    other ranks, after a kill, adds to what is there and replaces only the same rows.
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
    """Which of `total` images no part has yet, ascending: what is left to do after a kill."""
    return np.flatnonzero(_find(folder, total).part < 0)


def merge_parts(
    folder: StrPath, path: StrPath, groups: Mapping[str, Labelled], *,
    rows: Mapping[str, Integers] | None = None, **about: Any,
) -> None:
    """Make a cache of the parts in `folder`, then remove them; call on one rank, after all wrote.

    about: what the cache says of itself, see `write_features`.
    `rows` [n] says which image each row of a group is, so that one may be in several groups;
    without it images are counted through all groups in their order. Images that several parts have
    (a loader's padding, a second attempt) count once. No more than a block of features, and one of
    each open part, is held at a time. Raises UserError when an image is in no part.
    """
    folder = Path(folder)
    rows = _consecutive(groups) if rows is None else rows
    total = 1 + max((int(own.max(initial=-1)) for own in rows.values()), default=-1)
    found = _find(folder, total)
    missing = np.flatnonzero(found.part < 0)
    if len(missing):
        raise UserError(
            f"{folder}: {len(missing)} of {total} rows are in no part file (first: {missing[0]}); "
            "extract the features again"
        )
    with _OpenParts(found.paths) as parts:
        merged = {
            name: FeatureGroup(
                _Gathered(found, parts, rows[name]), group.identities, group.cameras, group.views,
                group.paths,
            )
            for name, group in groups.items()
        }
        write_features(path, merged, **about)
    for part in _parts(folder):
        part.unlink()


def _consecutive(groups: Mapping[str, Labelled]) -> dict[str, Integers]:
    first, rows = 0, {}
    for name, group in groups.items():
        rows[name] = np.arange(first, first + len(group.identities))
        first += len(group.identities)
    return rows


@dataclass(frozen=True)
class _Found:
    """Where the features [n, d] of n images are."""

    paths: list[Path]
    part: Integers
    """[n], the place in `paths` of the part that has an image, -1 where none has."""
    place: Integers
    """[n], the image's row in that part."""
    width: int
    dtype: np.dtype[Any]


class _Gathered:
    """Features of the images `rows` [n], taken from their parts when they are sliced."""

    def __init__(self, found: _Found, parts: "_OpenParts", rows: Integers) -> None:
        self._found, self._parts, self._rows = found, parts, rows
        self.shape, self.dtype = (len(rows), found.width), found.dtype

    def __getitem__(self, wanted: slice) -> NDArray[Any]:
        rows = self._rows[wanted]
        parts, places = self._found.part[rows], self._found.place[rows]
        out = np.empty((len(rows), self._found.width), self.dtype)
        for part in np.unique(parts):
            here = parts == part
            out[here] = self._parts.features(part)[places[here]]
        return out


class _OpenParts:
    """Parts that stay open while rows of them are asked for, the last OPEN of them.

    Ranks took batches in turn, so every block of rows is in a part of each rank.
    """

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths
        self._open: dict[int, tuple[ExitStack, StoredRows]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for opened in self._open.values():
            opened[0].close()

    def features(self, part: int) -> StoredRows:
        """The features of a part, by its place in `paths`."""
        if part not in self._open:
            if len(self._open) == OPEN:
                self._open.pop(next(iter(self._open)))[0].close()
            stack = ExitStack()
            self._open[part] = stack, stack.enter_context(_open_part(self._paths[part]))[1]
        self._open[part] = self._open.pop(part)  # the one used last is closed last
        return self._open[part][1]


def _parts(folder: StrPath) -> list[Path]:
    return sorted(Path(folder).glob("part-*.h5"))


def _find(folder: StrPath, total: int) -> _Found:
    """Look into every part; UserError for those that belong to something else or are damaged."""
    paths = _parts(folder)
    part, place = np.full(total, -1), np.full(total, -1)
    kinds: dict[tuple[np.dtype[Any], int], Path] = {}
    for number, path in enumerate(paths):
        with _open_part(path) as (rows, features):
            kinds.setdefault((features.dtype, features.shape[1]), path)
        if len(rows) and not (rows.min() >= 0 and rows.max() < total):
            raise UserError(
                f"{path}: holds row {rows.max()}, the dataset has {total}; the folder belongs to "
                "another dataset: remove it and start again"
            )
        part[rows], place[rows] = number, np.arange(len(rows))
    if len(kinds) > 1:
        (dtype, width), (other, its), *_ = kinds
        raise UserError(
            f"{kinds[other, its]}: features are {other} [{its}], those of other parts {dtype} "
            f"[{width}]; remove {folder} and start again"
        )
    dtype, width = next(iter(kinds), (np.dtype(np.float32), 0))
    return _Found(paths, part, place, width, dtype)


@contextmanager
def _open_part(path: Path) -> Iterator[tuple[Integers, StoredRows]]:
    """Which images a part has [m], and their features [m, d], to be sliced in the body.

    What is wrong with it becomes a UserError that says what is lost.
    """
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open_file(path))
            check_attributes(path, file, FORMAT, VERSION)
            part = file["row"][:], StoredRows(path, file["features"], file.get(SUMS), anew=ANEW)
        except (OSError, RuntimeError, KeyError) as error:
            reason = " ".join(str(error).split())[:160]
            raise UserError(f"{path}: a damaged part; {ANEW} ({reason})") from error
        yield part
