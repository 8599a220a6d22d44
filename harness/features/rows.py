"""Features [n, d] in an HDF5 file: written block by block, read at the file system's speed.

    features [n, d]         in chunks of rows, each with HDF5's own checksum (fletcher32)
    features_sums [chunks]  uint32, a faster checksum of each chunk's rows; optional

HDF5 checks chunks one at a time, at less than half the page cache's speed (82,161 x 1,280 float32
on two cores: 0.36 s, a bare read 0.16 s). So several threads read the chunks' bytes from the file
and `checksum` checks them (0.16 s in all). HDF5 reads chunks that do not match `features_sums`, and
files without it (older versions, other toolboxes), and verifies its own checksums if there are any.
"""

import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from harness.base.errors import UserError
from harness.base.machine import usable_cores
from harness.features.content import DAMAGE, SUMS
from harness.features.hdf5 import chunk_rows

LINE = 4096
"""Bytes in a line of `checksum`."""
THREADS = 8
"""Most readers; more do not make a file system faster."""


def checksum(block: Any) -> int:
    """Return the checksum of a block's bytes: CRC-32 of the sums along both axes.

    The bytes are lines of 512 little-endian 64-bit words, which are added up, modulo 2^64, down the
    columns and along the lines; an incomplete last line is not summed. A change within one line, or
    exchanged lines, always reach the CRC. Five times as fast as a CRC of all bytes.
    """
    flat = memoryview(block).cast("B")
    lines = len(flat) // LINE
    words = np.frombuffer(flat, "<u8", lines * (LINE // 8)).reshape(lines, LINE // 8)
    crc = zlib.crc32(np.add.reduce(words, axis=0))
    crc = zlib.crc32(np.add.reduce(words, axis=1), crc)
    return zlib.crc32(flat[lines * LINE :], crc)


def put_features(group: h5py.Group, features: Any) -> None:
    """Add `features` [n, d] block by block: an array or stored rows."""
    count, width = features.shape
    if not count * width:
        group.create_dataset("features", shape=(count, width), dtype=features.dtype)
        return
    rows = chunk_rows(count, width * features.dtype.itemsize)
    dataset = group.create_dataset(
        "features", (count, width), features.dtype, chunks=(rows, width), fletcher32=True
    )
    sums = []
    for first in range(0, count, rows):
        block = np.ascontiguousarray(features[first : first + rows], features.dtype)
        dataset[first : first + len(block)] = block
        sums.append(checksum(block))
    group.create_dataset(SUMS, data=np.array(sums, np.uint32))


class StoredRows:
    """Features [n, d] that are read when they are sliced or indexed, while their file is open.
    Thread-safe. Reads verify the file's checksums; damage raises UserError with file and rows."""

    def __init__(
        self, path: Path, dataset: h5py.Dataset, sums: h5py.Dataset | None, *,
        anew: str = "write the file again", sure: bool = False,
    ) -> None:
        """dataset: features [n, d]; sums: their checksums; anew: advice about damaged rows; sure:
        whether the checksums are known to be right, so that rows which differ are damaged."""
        self._path, self._dataset, self._anew, self._sure = path, dataset, anew, sure
        self.shape: tuple[int, int] = dataset.shape
        self.dtype: np.dtype[Any] = dataset.dtype
        self.ndim = 2
        self._is_plain = _is_plain(dataset)
        row_bytes = self.dtype.itemsize * self.shape[1]
        usual = chunk_rows(len(self) or 1, row_bytes or 1)
        self._rows = usual if sure else (dataset.chunks or (usual,))[0]
        """Rows of a block: a chunk, where there are any, unless the file was converted."""
        self._sums = self._usable(sums)
        self._handle = dataset.file.id.get_vfd_handle()
        self._last: tuple[int, NDArray[Any] | None] = -1, None
        """Number and rows of the block in which a read ended: the next often begins in it."""

    def _usable(self, sums: Any) -> NDArray[np.uint32] | None:
        """Return the checksums if they are those of this object's blocks."""
        if not (self._sure or self._is_plain) or not isinstance(sums, h5py.Dataset):
            return None
        fit = sums.shape == (-(-len(self) // self._rows),) and sums.dtype == np.uint32
        return sums[:] if fit else None

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        """Read rows: a slice, a mask [n], or row numbers in any order."""
        if isinstance(rows, slice) and rows.step in (None, 1):
            first, last, _ = rows.indices(len(self))
            return self._read(first, max(first, last))
        rows = np.arange(len(self))[rows]
        out = np.empty((*rows.shape, self.shape[1]), self.dtype)
        blocks = rows // self._rows
        for block in np.unique(blocks):  # each once, and one at a time
            here = blocks == block
            first = int(rows[here].min())
            out[here] = self._read(first, int(rows[here].max()) + 1)[rows[here] - first]
        return out

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Read all rows."""
        assert copy is not False, "rows on disk are read into new memory"
        return self[:].astype(dtype or self.dtype, copy=False)

    def _read(self, first: int, last: int) -> NDArray[Any]:
        assert self._dataset, f"{self._path}: read after it was closed"
        out = np.empty((last - first, self.shape[1]), self.dtype)
        if not out.size:
            return out
        blocks = range(first // self._rows, -(-last // self._rows))
        if self._sums is None:
            self._read_by_hdf5(first, out)
        elif len(blocks) == 1:
            self._fill(out, first, blocks[0])
        else:
            list(_threads().map(lambda block: self._fill(out, first, block), blocks))
        return out

    def _fill(self, out: NDArray[Any], first: int, block: int) -> None:
        """Put a block's rows into `out`, which holds the rows from `first` on."""
        start = block * self._rows
        end, last = min(start + self._rows, len(self)), first + len(out)
        if first <= start and end <= last:
            self._read_block(block, out[start - first : end - first])
            return
        number, whole = self._last
        if number != block or whole is None:
            whole = np.empty((end - start, self.shape[1]), self.dtype)
            self._read_block(block, whole)
        if last < end:
            self._last = block, whole
        low, high = max(start, first), min(end, last)
        out[low - first : high - first] = whole[low - start : high - start]

    def _read_block(self, block: int, whole: NDArray[Any]) -> None:
        """Read all rows of a block: its bytes in the file, or by HDF5 if these do not match."""
        assert self._sums is not None
        start = block * self._rows
        if self._is_plain and self._read_bytes(start, whole) and self._fits(block, whole):
            return
        self._read_by_hdf5(start, whole)
        if self._sure and not self._fits(block, whole):
            raise self._damage(start, start + len(whole))

    def _read_bytes(self, start: int, whole: NDArray[Any]) -> bool:
        """Read a chunk's bytes, which begin with row `start`; returns whether all were there."""
        target = memoryview(whole.data).cast("B")
        with suppress(*DAMAGE):
            place = self._dataset.id.get_chunk_info_by_coord((start, 0)).byte_offset
            while len(target) and place is not None:  # a file system may give less than requested
                count = os.preadv(self._handle, [target], place)
                target, place = target[count:], place + count if count else None
        return not len(target)

    def _fits(self, block: int, whole: NDArray[Any]) -> bool:
        assert self._sums is not None
        return bool(checksum(whole) == self._sums[block])

    def _read_by_hdf5(self, first: int, out: NDArray[Any]) -> None:
        try:
            self._dataset.read_direct(out, np.s_[first : first + len(out)])
        except DAMAGE as error:
            raise self._damage(*self._bad_rows(first, first + len(out))) from error

    def _damage(self, low: int, high: int) -> UserError:
        return UserError(f"{self._path}: rows {low} to {high - 1} of {self._dataset.name[1:]} are "
                         "damaged: they differ from what was written (checksum); "
                         f"{self._anew}")

    def _bad_rows(self, first: int, last: int) -> tuple[int, int]:
        """Return the first block of rows, from `first` to `last`, that cannot be read."""
        for start in range(first // self._rows * self._rows, last, self._rows):
            low, high = max(start, first), min(start + self._rows, last)
            try:
                self._dataset[low:high]
            except DAMAGE:
                return low, high
        return first, last


def _is_plain(dataset: h5py.Dataset) -> bool:
    """Return whether the bytes of chunks are whole rows, as put_features writes them."""
    settings = dataset.id.get_create_plist()
    filters = [settings.get_filter(place)[0] for place in range(settings.get_nfilters())]
    return (filters == [h5py.h5z.FILTER_FLETCHER32] and dataset.chunks is not None
            and dataset.chunks[1] == dataset.shape[1]
            and dataset.dtype in (np.float32, np.float16))


@cache
def _threads() -> ThreadPoolExecutor:
    """Return the reading threads of all files; starting them takes as long as a block of rows."""
    return ThreadPoolExecutor(min(THREADS, len(usable_cores())))


os.register_at_fork(after_in_child=_threads.cache_clear)  # a fork has none of its parent's threads
