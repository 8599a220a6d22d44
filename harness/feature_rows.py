"""Features [n, d] in an HDF5 file: written block by block, read at the file system's speed.

    features [n, d]         in chunks of rows, each with HDF5's own checksum (fletcher32)
    features_sums [blocks]  uint32, a faster checksum of every `rows` (an attribute) rows

HDF5 checks chunks one at a time, at a third of the speed at which the page cache gives them
(82,161 x 1,280 float32 on two cores: 0.31 s, a bare read 0.10 s). So a chunk's bytes are read where
they lie in the file, by several threads, and checked by `checksum` (0.14 s, all in all).
Files without `features_sums`, of older versions or other toolboxes, are read by
HDF5, which verifies its own checksums where there are any.
"""

import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np
from numpy.typing import NDArray

from harness.errors import UserError
from harness.hdf5 import chunk_rows

SUMS = "features_sums"
LINE = 4096
"""Bytes in a line of `checksum`."""
THREADS = 8
"""More readers than this do not make a file system faster."""


class Sliceable(Protocol):
    """Features [n, d] that may lie elsewhere than in memory: an array, StoredRows and others."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    def __getitem__(self, rows: slice, /) -> Any: ...


def checksum(block: Any) -> int:
    """Return the checksum of a block's bytes: CRC-32 of the sums along both axes.

    The bytes are laid out as lines of 512 little-endian 64-bit words, which are added up, modulo
    2^64, down the columns and along the lines; what is left of the last line comes as it is. A
    change within one line, or exchanged lines, always reach the CRC. Five times as fast as a CRC of
    all bytes.
    """
    flat = memoryview(block).cast("B")
    lines = len(flat) // LINE
    words = np.frombuffer(flat, "<u8", lines * (LINE // 8)).reshape(lines, LINE // 8)
    crc = zlib.crc32(np.add.reduce(words, axis=0))
    crc = zlib.crc32(np.add.reduce(words, axis=1), crc)
    return zlib.crc32(flat[lines * LINE :], crc)


def put_features(group: h5py.Group, features: Sliceable) -> None:
    """Add `features` [n, d], never holding more than one block of it."""
    count, width = features.shape
    if not count * width:
        group.create_dataset("features", shape=(count, width), dtype=features.dtype)
        return
    rows = chunk_rows(count, width * features.dtype.itemsize)
    dataset = group.create_dataset(
        "features", shape=(count, width), dtype=features.dtype, chunks=(rows, width),
        fletcher32=True,
    )
    sums = []
    for first in range(0, count, rows):
        block = np.ascontiguousarray(features[first : first + rows], features.dtype)
        dataset[first : first + len(block)] = block
        sums.append(checksum(block))
    group.create_dataset(SUMS, data=np.array(sums, np.uint32)).attrs["rows"] = rows


def sums_fit(dataset: h5py.Dataset, sums: h5py.Dataset) -> bool:
    """Whether checksums are as many as their blocks of `dataset`'s rows."""
    rows = sums.attrs.get("rows", 0)
    return bool(
        rows >= 1 and sums.dtype == np.uint32 and sums.shape == (-(-dataset.shape[0] // rows),)
    )


class StoredRows:
    """Features [n, d] that are read when they are sliced or indexed, while their file is open.

    Every read is checked as far as the file has checksums: one that is not as it was written raises
    UserError with the file and the rows. May be used from several threads.
    """

    def __init__(
        self, path: Path, dataset: h5py.Dataset, sums: h5py.Dataset | None, *,
        anew: str = "write the file again",
    ) -> None:
        """Take checked datasets; `anew` is what to do about damaged rows."""
        self._path, self._dataset, self._anew = path, dataset, anew
        self.shape: tuple[int, int] = dataset.shape
        self.dtype: np.dtype[Any] = dataset.dtype
        self.ndim = 2
        self._sums = None if sums is None or not dataset.size else sums[:]
        self._rows = int(sums.attrs["rows"]) if sums is not None else 0
        self._handle = dataset.file.id.get_vfd_handle()
        self._plain = _is_plain(dataset, self._rows)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        """Read rows: a slice of step 1, a mask [n], or row numbers in any order."""
        if isinstance(rows, slice):
            first, last, step = rows.indices(len(self))
            assert step == 1, rows
            return self._read(first, max(first, last))
        return self._take(np.arange(len(self))[np.asarray(rows)])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Read all rows."""
        assert copy is not False, "rows on disk are read into new memory"
        return self[:].astype(dtype or self.dtype, copy=False)

    def _take(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Read rows in any order; of each block once, and never more than one block at a time."""
        out = np.empty((*rows.shape, self.shape[1]), self.dtype)
        size = self._rows or chunk_rows(len(self) or 1, self.dtype.itemsize * self.shape[1] or 1)
        blocks = rows // size
        for block in np.unique(blocks):
            here = blocks == block
            first = int(rows[here].min())
            out[here] = self._read(first, int(rows[here].max()) + 1)[rows[here] - first]
        return out

    def _read(self, first: int, last: int) -> NDArray[Any]:
        assert self._dataset, f"{self._path}: read after it was closed"
        out = np.empty((last - first, self.shape[1]), self.dtype)
        if not out.size:
            return out
        if self._sums is None:
            self._read_unsummed(first, last, out)
            return out
        blocks = range(first // self._rows, -(-last // self._rows))
        if len(blocks) == 1:
            self._fill(out, first, blocks[0])
            return out
        with ThreadPoolExecutor(min(THREADS, len(os.sched_getaffinity(0)))) as pool:
            list(pool.map(lambda block: self._fill(out, first, block), blocks))
        return out

    def _fill(self, out: NDArray[Any], first: int, block: int) -> None:
        """Put the rows of a block that are wanted into `out`, whose first row is `first`."""
        start = block * self._rows
        end = min(start + self._rows, len(self))
        inside = first <= start and end <= first + len(out)
        whole = out[start - first : end - first] if inside else (
            np.empty((end - start, self.shape[1]), self.dtype)
        )
        try:
            self._get(start, whole)
            sound = checksum(whole) == self._sums[block]  # type: ignore[index]
        except (OSError, RuntimeError) as error:
            raise self._damaged(start, end) from error
        if not sound:
            raise self._damaged(start, end)
        if not inside:
            low, high = max(start, first), min(end, first + len(out))
            out[low - first : high - first] = whole[low - start : high - start]

    def _get(self, start: int, whole: NDArray[Any]) -> None:
        """Read a block of rows from `start` on into `whole`."""
        if not self._plain:
            self._dataset.read_direct(whole, np.s_[start : start + len(whole)])
            return
        place = self._dataset.id.get_chunk_info_by_coord((start, 0)).byte_offset
        target = memoryview(whole.data).cast("B")
        if place is None or os.preadv(self._handle, [target], place) != len(target):
            raise OSError("the chunk is not there")

    def _read_unsummed(self, first: int, last: int, out: NDArray[Any]) -> None:
        try:
            self._dataset.read_direct(out, np.s_[first:last])
        except (OSError, RuntimeError):
            step = self._dataset.chunks[0] if self._dataset.chunks else last - first
            for start in range(first // step * step, last, step):
                low, high = max(start, first), min(start + step, last)
                try:
                    self._dataset[low:high]
                except (OSError, RuntimeError) as error:
                    raise self._damaged(low, high) from error
            raise

    def _damaged(self, first: int, last: int) -> UserError:
        return UserError(
            f"{self._path}: rows {first} to {last - 1} of {self._dataset.name[1:]} are damaged: "
            f"they are not what was written (checksum); {self._anew}"
        )


def _is_plain(dataset: h5py.Dataset, rows: int) -> bool:
    """Whether a block of `rows` rows is a chunk whose bytes lie in the file as they are."""
    settings = dataset.id.get_create_plist()
    filters = {settings.get_filter(place)[0] for place in range(settings.get_nfilters())}
    return dataset.chunks == (rows, dataset.shape[1]) and filters <= {h5py.h5z.FILTER_FLETCHER32}
