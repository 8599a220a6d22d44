"""HDF5 files that are whole or not there at all, and whose faults are told by the file's name."""

import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from harness.base.errors import Hindered, UserError
from harness.base.files import atomic_write

CHUNK_BYTES = 2**20
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def new_file(path: Path, size: int) -> Iterator[h5py.File]:
    """A new HDF5 file of about `size` bytes, under a private name until it is whole.

    Space is reserved first, because HDF5 that meets a full disk while writing takes the process
    down (seen with HDF5 2.0: segmentation fault when the file is closed). Where the estimate was
    too large, unused bytes stay at the file's end.
    """
    size += size // 64 + 2**16  # chunk index, headers
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(path.parent).free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with atomic_write(path) as private:
            with private.open("r+b") as trial:
                os.posix_fallocate(trial.fileno(), 0, size)
            with h5py.File(private, "w", locking=False) as file:
                os.posix_fallocate(file.id.get_vfd_handle(), 0, size)
                yield file
                file.flush()
                file.attrs["complete"] = True
    except OSError as error:
        if error.errno not in FULL:
            raise Hindered(f"{path}: cannot be written: {error.strerror or error}") from error
        free = shutil.disk_usage(next(p for p in path.parents if p.is_dir())).free
        raise Hindered(
            f"{path}: no room: {size:,} bytes are needed, {free:,} are free on that disk (a quota "
            "may allow you less); make room, or write elsewhere"
        ) from error


def open_file(path: Path) -> h5py.File:
    """Open a file for reading, without lock; its faults come as OSError, see `told`."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    return h5py.File(path, "r", locking=False)


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Make what goes wrong while `path` is read in the body a UserError that names it."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # h5py raises either for damaged files
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"{path}: cannot be read as HDF5: not such a file, cut short or damaged; write it "
            f"again ({reason})"
        ) from error


def check_attributes(path: Path, file: h5py.File, expected: str, version: int) -> None:
    """Raise UserError unless the file is of this format and version, and complete."""
    found, its = file.attrs.get("format"), file.attrs.get("version")
    if isinstance(found, bytes):  # text as C and MATLAB write it
        found = found.decode()
    if found != expected:
        raise UserError(
            f"{path}: the attribute format is {found!r}, expected {expected!r}: not a file of this "
            "project, or converted without its attributes"
        )
    if its != version:
        raise UserError(
            f"{path}: format version {its}, this program reads {version}; extract the features "
            "again with this program, or use the one that wrote it"
        )
    if not file.attrs.get("complete", False):
        raise UserError(f"{path}: not complete: its writer was stopped; write it again")


def put_column(group: h5py.Group, name: str, values: NDArray[Any]) -> None:
    """Add a dataset [n] in chunks, each with a checksum that every HDF5 reader verifies."""
    if not values.size:
        group.create_dataset(name, data=values)
        return
    chunks = (chunk_rows(len(values), values.itemsize),)
    group.create_dataset(name, data=values, chunks=chunks, fletcher32=True)


def put_paths(group: h5py.Group, paths: Sequence[str]) -> None:
    """Add a dataset `path` [n]; file names that are not UTF-8 keep their bytes."""
    encoded = np.empty(len(paths), object)
    encoded[:] = [os.fspath(path).encode("utf-8", "surrogateescape") for path in paths]
    group.create_dataset("path", data=encoded, dtype=h5py.string_dtype("utf-8"))


def chunk_rows(count: int, row_bytes: int) -> int:
    """Rows per chunk: even shares of at most CHUNK_BYTES, since the last chunk takes as much."""
    most = max(1, CHUNK_BYTES // row_bytes)
    return -(-count // -(-count // most))


def stored_bytes(count: int, row_bytes: int) -> int:
    """Bytes of all chunks of `count` rows, the last one whole, with their checksums."""
    if not count * row_bytes:
        return 0
    rows = chunk_rows(count, row_bytes)
    return -(-count // rows) * (rows * row_bytes + 8)
