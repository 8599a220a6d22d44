"""The feature cache: one HDF5 file with the features of a dataset's images and their labels.

    /                  format = "svll-features", version, dataset, model, protocol, created,
                       complete
    /query, /gallery, /train, or any other group:
        features [n, d]    float32 or float16, in chunks of rows, with checksums
        identity [n]       int64; -1 is junk
        camera [n]         int64
        view [n], path [n] int64, UTF-8; optional

Anyone may write such a file: of a group only features, identity and camera are required. A file is
never changed once it has its name, and readers take no lock. Ranks that share the work write part
files, whole or not at all, and `merge_parts` puts every row in its place exactly once.
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np
from numpy.typing import NDArray

from harness.errors import UserError
from harness.files import atomic_write

FORMAT, VERSION = "svll-features", 1
PART_FORMAT = "svll-features-part"
CHUNK_BYTES = 2**20
ATTRIBUTES = ("dataset", "model", "created", "protocol")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Integers = NDArray[np.int64]
StrPath = str | os.PathLike[str]


class Labelled(Protocol):
    """What is known of n images besides their features; a dataset's records fit."""

    @property
    def identities(self) -> Integers: ...
    @property
    def cameras(self) -> Integers: ...
    @property
    def views(self) -> Integers | None: ...
    @property
    def paths(self) -> Sequence[str] | None: ...


@dataclass(frozen=True, eq=False)
class FeatureGroup:
    """The features [n, d] of n images, float32 or float16, and their labels [n]."""

    features: NDArray[Any]
    identities: Integers
    cameras: Integers
    views: Integers | None = None
    paths: Sequence[str] | None = None


@dataclass(frozen=True, eq=False)
class FeatureFile:
    """What a cache holds."""

    path: Path
    dataset: str
    model: str
    """The signature of the model that made the features."""
    created: str
    protocol: str
    """The rule by which the dataset is tested; empty where the writer did not say."""
    groups: dict[str, FeatureGroup]


# ---- whole files ----


def write_features(
    path: StrPath, groups: Mapping[str, FeatureGroup], *, dataset: str, model: str,
    protocol: str = "",
) -> None:
    """Write a cache, replacing the one at `path` only when it is whole.

    Raises UserError, with the bytes needed and free, when the disk cannot take it.
    """
    for name, group in groups.items():
        _assert_fits(name, group)
    with _new_file(Path(path), sum(map(_size, groups.values()))) as file:
        for name, group in groups.items():
            part = file.create_group(name)
            _put_rows(part, "features", group.features)
            _put_rows(part, "identity", np.asarray(group.identities, np.int64))
            _put_rows(part, "camera", np.asarray(group.cameras, np.int64))
            if group.views is not None:
                _put_rows(part, "view", np.asarray(group.views, np.int64))
            if group.paths is not None:
                _put_paths(part, group.paths)
        created = datetime.now(UTC).isoformat(timespec="seconds")
        file.attrs.update(
            format=FORMAT, version=VERSION, dataset=dataset, model=model, created=created,
            protocol=protocol,
        )


def read_features(path: StrPath, groups: Sequence[str] | None = None) -> FeatureFile:
    """Read all groups of a cache, or those named, which must then be there; see `open_features`."""
    with open_features(path, groups) as file:
        read = {
            name: replace(group, features=group.features[:]) for name, group in file.groups.items()
        }
        return replace(file, groups=read)


@contextmanager
def open_features(
    path: StrPath, groups: Sequence[str] | None = None, *, optional: Sequence[str] = ()
) -> Iterator[FeatureFile]:
    """A cache whose features are still in the file, to be sliced by rows; labels are read.

    All groups, or those named, which must be there, and the `optional` ones that are.
    Raises UserError that names the file and every fault: missing, not HDF5, cut short, of another
    format or version, incomplete, or with datasets that are absent or do not fit together; also
    while features are read, where they are damaged.
    """
    path = Path(path)
    with _open(path) as file:
        _check_attributes(path, file, FORMAT)
        names = list(file) if groups is None else list(groups)
        names += [name for name in optional if name in file and name not in names]
        faults = [fault for name in names for fault in _faults(file, name)]
        if faults:
            listed = "\n".join(f"  {fault}" for fault in faults)
            raise UserError(f"{path}: not a usable feature cache:\n{listed}")
        described = {k: str(file.attrs.get(k, "")) for k in ATTRIBUTES}
        yield FeatureFile(
            path=path, groups={name: _get_group(file[name]) for name in names}, **described
        )


def _get_group(group: h5py.Group) -> FeatureGroup:
    views = group["view"][:] if "view" in group else None
    # File names need not be valid UTF-8; surrogates carry their bytes through.
    paths = group["path"].asstr("utf-8", "surrogateescape")[:] if "path" in group else None
    return FeatureGroup(
        features=group["features"],
        identities=group["identity"][:].astype(np.int64),
        cameras=group["camera"][:].astype(np.int64),
        views=None if views is None else views.astype(np.int64),
        paths=None if paths is None else tuple(paths),
    )


# ---- part files ----


def write_part(folder: StrPath, rank: int, rows: Integers, features: NDArray[Any]) -> None:
    """Write features [m, d] of the images `rows` [m], counted through all groups in their order.

    A rank may write any number of parts. The name depends on the rows, so that an attempt with
    other ranks, after a kill, adds to what is there and replaces only the same rows.
    """
    rows = np.ascontiguousarray(rows, np.int64)
    assert features.ndim == 2, features.shape
    assert rows.shape == features.shape[:1], (rows.shape, features.shape)
    name = f"part-{rank:05d}-{hashlib.sha256(rows.tobytes()).hexdigest()[:12]}.h5"
    with _new_file(Path(folder) / name, _stored(features) + 9 * len(rows)) as file:
        _put_rows(file, "features", features)
        _put_rows(file, "row", rows)
        file.attrs.update(format=PART_FORMAT, version=VERSION)


def missing_rows(folder: StrPath, total: int) -> Integers:
    """Which of `total` rows no part has yet, ascending: what is left to do after a kill."""
    missing = np.ones(total, bool)
    for path in _parts(folder):
        missing[_part_rows(path, total)] = False
    return np.flatnonzero(missing)


def merge_parts(
    folder: StrPath, path: StrPath, groups: Mapping[str, Labelled], *, dataset: str, model: str,
    protocol: str = "", rows: Mapping[str, Integers] | None = None,
) -> None:
    """Make a cache of all parts in `folder`, then remove them; call on one rank, after all wrote.

    Image i of a group is row rows[name][i]; without `rows`, the groups' images stand one after
    another. Rows that several parts have (a loader's padding, a second attempt) count once. Raises
    UserError when a row is in no part.
    """
    rows = rows or _one_after_another(groups)
    total = 1 + max((int(wanted.max()) for wanted in rows.values() if len(wanted)), default=-1)
    missing = missing_rows(folder, total)
    if len(missing):
        raise UserError(
            f"{folder}: {len(missing)} of {total} rows are in no part file (first: {missing[0]}); "
            "extract the features again"
        )
    features = _gather(folder, total)
    merged = {
        name: FeatureGroup(
            features[rows[name]], group.identities, group.cameras, group.views, group.paths
        )
        for name, group in groups.items()
    }
    write_features(path, merged, dataset=dataset, model=model, protocol=protocol)
    for part in _parts(folder):
        part.unlink()


def _one_after_another(groups: Mapping[str, Labelled]) -> dict[str, Integers]:
    ends = np.cumsum([0, *(len(group.identities) for group in groups.values())])
    return {
        name: np.arange(first, last)
        for name, first, last in zip(groups, ends[:-1], ends[1:], strict=True)
    }


def _gather(folder: StrPath, total: int) -> NDArray[Any]:
    """Every row of the parts in its place [total, d]."""
    features: NDArray[Any] | None = None
    for path in _parts(folder):
        rows = _part_rows(path, total)
        with _open(path) as file:
            part = file["features"][:]
        if features is None:
            features = np.empty((total, part.shape[1]), part.dtype)
        if part.shape[1:] != features.shape[1:] or part.dtype != features.dtype:
            raise UserError(
                f"{path}: features are {part.dtype} [{part.shape[1]}], those of other parts "
                f"{features.dtype} [{features.shape[1]}]; remove {folder} and start again"
            )
        features[rows] = part
    return np.empty((0, 0), np.float32) if features is None else features


def _parts(folder: StrPath) -> list[Path]:
    return sorted(Path(folder).glob("part-*.h5"))


def _part_rows(path: Path, total: int) -> Integers:
    with _open(path) as file:
        _check_attributes(path, file, PART_FORMAT)
        rows: Integers = file["row"][:]
    if len(rows) and not (rows.min() >= 0 and rows.max() < total):
        raise UserError(
            f"{path}: holds row {rows.max()}, the dataset has {total}; the folder belongs to "
            "another dataset: remove it and start again"
        )
    return rows


# ---- HDF5 ----


@contextmanager
def _new_file(path: Path, size: int) -> Iterator[h5py.File]:
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
            raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error
        free = shutil.disk_usage(next(p for p in path.parents if p.is_dir())).free
        raise UserError(
            f"{path}: no room: {size:,} bytes are needed, {free:,} are free on that disk (a quota "
            "may allow you less); make room, or write elsewhere"
        ) from error


@contextmanager
def _open(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file for reading, without lock; what is wrong with it becomes a UserError."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except (OSError, RuntimeError) as error:  # h5py raises either for damaged files
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"{path}: cannot be read as HDF5: not such a file, cut short or damaged; write it "
            f"again ({reason})"
        ) from error


def _check_attributes(path: Path, file: h5py.File, expected: str) -> None:
    found, version = file.attrs.get("format"), file.attrs.get("version")
    if isinstance(found, bytes):  # text as C and MATLAB write it
        found = found.decode()
    if found != expected:
        raise UserError(
            f"{path}: the attribute format is {found!r}, expected {expected!r}: not a file of this "
            "project, or converted without its attributes"
        )
    if version != VERSION:
        raise UserError(
            f"{path}: format version {version}, this program reads {VERSION}; extract the features "
            "again with this program, or use the one that wrote it"
        )
    if not file.attrs.get("complete", False):
        raise UserError(f"{path}: not complete: its writer was stopped; write it again")


def _faults(file: h5py.File, name: str) -> Iterable[str]:
    """What keeps group `name` from being used."""
    group = file.get(name)
    if not isinstance(group, h5py.Group):
        yield f"there is no group {name} (groups: {', '.join(file) or 'none'})"
        return
    features = group.get("features")
    if not isinstance(features, h5py.Dataset):
        yield f"{name}/features is missing"
    elif features.ndim != 2 or features.dtype.kind != "f":
        yield f"{name}/features is {features.dtype} {list(features.shape)}; expected floats [n, d]"
    for label in ("identity", "camera", "view", "path"):
        values = group.get(label)
        if values is None:
            if label in ("identity", "camera"):
                yield f"{name}/{label} is missing"
        elif isinstance(features, h5py.Dataset) and values.shape != features.shape[:1]:
            yield f"{name}/{label} has shape {list(values.shape)}; expected {[features.shape[0]]}"
        elif label != "path" and values.dtype.kind not in "iu":
            yield f"{name}/{label} is {values.dtype}; expected integers"
        elif label == "path" and h5py.check_string_dtype(values.dtype) is None:
            yield f"{name}/path is {values.dtype}; expected UTF-8 text"


def _put_rows(group: h5py.Group, name: str, values: NDArray[Any]) -> None:
    """Add a dataset in chunks of rows, each with a checksum that every HDF5 reader verifies."""
    if not values.size:
        group.create_dataset(name, data=values)
        return
    chunks = (_chunk_rows(values), *values.shape[1:])
    group.create_dataset(name, data=values, chunks=chunks, fletcher32=True)


def _chunk_rows(values: NDArray[Any]) -> int:
    """Rows per chunk: even shares of at most CHUNK_BYTES, since the last chunk takes as much."""
    most = max(1, CHUNK_BYTES // (values.nbytes // len(values)))
    return -(-len(values) // -(-len(values) // most))


def _put_paths(group: h5py.Group, paths: Sequence[str]) -> None:
    encoded = np.empty(len(paths), object)
    encoded[:] = [os.fspath(path).encode("utf-8", "surrogateescape") for path in paths]
    group.create_dataset("path", data=encoded, dtype=h5py.string_dtype("utf-8"))


def _size(group: FeatureGroup) -> int:
    """About how many bytes a group takes: features, three integers a row, its path in a heap."""
    paths = sum(len(os.fsencode(path)) + 64 for path in group.paths or ())
    return _stored(group.features) + 26 * len(group.features) + paths


def _stored(values: NDArray[Any]) -> int:
    """Bytes of all chunks of `values`, the last one whole."""
    if not values.size:
        return 0
    rows = _chunk_rows(values)
    return -(-len(values) // rows) * rows * (values.nbytes // len(values))


def _assert_fits(name: str, group: FeatureGroup) -> None:
    features = group.features
    assert features.ndim == 2, (name, features.shape)
    assert features.dtype in (np.float32, np.float16), (name, features.dtype)
    for labels in (group.identities, group.cameras, group.views, group.paths):
        assert labels is None or len(labels) == len(features), (name, len(features))
