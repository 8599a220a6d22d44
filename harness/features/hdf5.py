"""HDF5 files that are complete or absent, and errors that name the file.

The attribute `complete` is written last. In our files it is the checksum of everything else, see
`harness.features.content`; other writers may set it to True.
"""

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
from harness.features.content import DAMAGE, Arrays, content_of

CHUNK_BYTES = 2**20
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def new_file(path: Path, size: int) -> Iterator[h5py.File]:
    """Yield a new HDF5 file of about `size` bytes, under a private name until it is complete.

    Space is reserved first: on a full disk HDF5 2.0 crashes (segmentation fault on closing). If the
    estimate was too large, unused bytes stay at the end. Raises Hindered when it cannot be written.
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
                file.attrs["complete"] = content_of(file)[0]
    except OSError as error:
        if error.errno not in FULL:
            raise Hindered(f"{path}: cannot be written: {error.strerror or error}") from error
        free = shutil.disk_usage(next(p for p in path.parents if p.is_dir())).free
        raise Hindered(f"{path}: no room: {size:,} bytes are needed, {free:,} are free on that "
                       "disk (a quota may allow you less); make room, or write "
                       "elsewhere") from error


def open_file(path: Path) -> h5py.File:
    """Open a file for reading, unlocked; raises UserError if missing, OSError if damaged."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    return h5py.File(path, "r", locking=False)


@contextmanager
def as_user_error(path: Path) -> Iterator[None]:
    """Turn errors of reading `path` in the body into a UserError that names it."""
    try:
        yield
    except DAMAGE as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{path}: cannot be read as HDF5: another format, cut short or damaged; "
                        f"write it again ({reason})") from error


def check_attributes(
    path: Path, file: h5py.File, expected: str, version: int, *, anew: str = "write it again"
) -> Arrays | None:
    """Raise UserError unless the file is of this format and version, complete, and as its writer
    left it. Returns all arrays but features, None where there is no checksum to compare. anew:
    advice about damaged files. Raises one of DAMAGE."""
    name, written = (text_of(file, key) for key in ("format", "version"))
    if name != expected:
        raise UserError(f"{path}: the attribute format is {name!r}, expected {expected!r}: not a "
                        "file of this project, or converted without its attributes")
    if written != str(version):
        raise UserError(f"{path}: format version {written}, this program reads {version}; extract "
                        "the features again with this program, or use the one that wrote it")
    complete = file.attrs.get("complete", False)
    if isinstance(complete, str):
        found, arrays = content_of(file)
        if complete != found:
            raise UserError(f"{path}: damaged, or changed after it was written (checksum); {anew}; "
                            "after a change on purpose, set its attribute complete to True")
        return arrays
    if not np.all(complete):
        raise UserError(f"{path}: not complete: its writer was stopped; write it again")
    return None


def text_of(file: h5py.File, name: str) -> str | None:
    """Return an attribute of the file as text, also as C and MATLAB write it; None for none."""
    value = file.attrs.get(name)
    if value is None:
        return None
    found = np.asarray(value).reshape(-1).tolist()
    if len(found) != 1:
        raise ValueError(f"the attribute {name} holds {len(found)} values; one is needed")
    return found[0].decode() if isinstance(found[0], bytes) else str(found[0])


def put_column(group: h5py.Group, name: str, values: NDArray[Any]) -> None:
    """Add a dataset [n] in chunks, each with a checksum that every HDF5 reader verifies."""
    chunks = (chunk_rows(len(values), values.itemsize),) if values.size else None
    group.create_dataset(name, data=values, chunks=chunks, fletcher32=bool(values.size))


def put_paths(group: h5py.Group, paths: Sequence[str]) -> None:
    """Add a dataset `path` [n]; file names that are not UTF-8 keep their bytes."""
    encoded = np.empty(len(paths), object)
    encoded[:] = [os.fspath(path).encode("utf-8", "surrogateescape") for path in paths]
    group.create_dataset("path", data=encoded, dtype=h5py.string_dtype("utf-8"))


def chunk_rows(count: int, row_bytes: int) -> int:
    """Return rows per chunk: even shares of at most CHUNK_BYTES, as the last chunk is as large."""
    most = max(1, CHUNK_BYTES // row_bytes)
    return -(-count // -(-count // most))


def stored_bytes(count: int, row_bytes: int) -> int:
    """Return the bytes of all chunks of `count` rows, with their checksums."""
    if not count * row_bytes:
        return 0
    rows = chunk_rows(count, row_bytes)
    return -(-count // rows) * (rows * row_bytes + 8)
