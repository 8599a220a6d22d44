"""The feature cache: one HDF5 file with the features of a dataset's images and their labels.

    /                  format = "svll-features", version, dataset, model, protocol, key, created,
                       complete
    /query, /gallery, /train, or any other group:
        features [n, d]    float32 or float16, in chunks of rows, with checksums
        identity [n]       int64; -1 is junk
        camera [n]         int64
        view [n], path [n] int64, UTF-8; optional
        features_sums      checksums for fast readers, see `harness.features.rows`; optional

Anyone may write such a file: of a group only features, identity and camera are required. A file is
never changed once it has its name, and readers take no lock. How ranks share the work of making one
is `svll.features.parts`.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np
from numpy.typing import NDArray

from harness.base.errors import UserError
from harness.features.hdf5 import (
    check_attributes,
    new_file,
    open_file,
    put_column,
    put_paths,
    stored_bytes,
    told,
)
from harness.features.rows import SUMS, StoredRows, put_features

FORMAT, VERSION = "svll-features", 1
ATTRIBUTES = ("dataset", "model", "created", "protocol", "key")

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
    """The features [n, d] of n images and their labels [n]."""

    features: Any
    """float32 or float16: an array, or rows that are read when they are sliced (`StoredRows`)."""
    identities: Integers
    cameras: Integers
    views: Integers | None = None
    paths: Sequence[str] | None = None

    @classmethod
    def of(cls, features: Any, images: Labelled) -> "FeatureGroup":
        """Return features [n, d] with the labels of their images."""
        return cls(features, images.identities, images.cameras, images.views, images.paths)


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
    key: str
    """A hash of all that the features depend on; empty where the writer did not say."""
    first_camera: int | None
    """The number that the dataset itself gives to camera 0; None where the writer did not say."""
    groups: dict[str, FeatureGroup]


def write_features(
    path: StrPath, groups: Mapping[str, FeatureGroup], *, dataset: str, model: str,
    protocol: str = "", key: str = "", first_camera: int | None = None,
) -> None:
    """Write a cache, replacing the one at `path` only when it is whole.

    first_camera: the number that the dataset itself gives to camera 0. Features that are not in
    memory are read block by block. Raises UserError, with the bytes needed and free, when the disk
    cannot take it.
    """
    for name, group in groups.items():
        _assert_fits(name, group)
    with new_file(Path(path), sum(map(_size, groups.values()))) as file:
        for name, group in groups.items():
            part = file.create_group(name)
            put_features(part, group.features)
            put_column(part, "identity", np.asarray(group.identities, np.int64))
            put_column(part, "camera", np.asarray(group.cameras, np.int64))
            if group.views is not None:
                put_column(part, "view", np.asarray(group.views, np.int64))
            if group.paths is not None:
                put_paths(part, group.paths)
        created = datetime.now(UTC).isoformat(timespec="seconds")
        file.attrs.update(
            format=FORMAT, version=VERSION, dataset=dataset, model=model, created=created,
            protocol=protocol, key=key,
        )
        if first_camera is not None:
            file.attrs["first_camera"] = first_camera


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
    while features are read, where they are damaged. What else the body raises passes as it is.
    """
    path = Path(path)
    with ExitStack() as stack:
        with told(path):
            file = stack.enter_context(open_file(path))
            found = _get_file(path, file, groups, optional)
        yield found


def _get_file(
    path: Path, file: h5py.File, groups: Sequence[str] | None, optional: Sequence[str]
) -> FeatureFile:
    check_attributes(path, file, FORMAT, VERSION)
    names = list(file) if groups is None else list(groups)
    names += [name for name in optional if name in file and name not in names]
    faults = [fault for name in names for fault in _faults(file, name)]
    if faults:
        listed = "\n".join(f"  {fault}" for fault in faults)
        raise UserError(f"{path}: not a usable feature cache:\n{listed}")
    described = {k: str(file.attrs.get(k, "")) for k in ATTRIBUTES}
    first = file.attrs.get("first_camera")
    return FeatureFile(
        path=path, groups={name: _get_group(path, file[name]) for name in names},
        first_camera=None if first is None else int(first), **described,
    )


def _get_group(path: Path, group: h5py.Group) -> FeatureGroup:
    views = group["view"][:] if "view" in group else None
    # File names need not be valid UTF-8; surrogates carry their bytes through.
    paths = group["path"].asstr("utf-8", "surrogateescape")[:] if "path" in group else None
    return FeatureGroup(
        features=StoredRows(path, group["features"], group.get(SUMS)),
        identities=group["identity"][:].astype(np.int64),
        cameras=group["camera"][:].astype(np.int64),
        views=None if views is None else views.astype(np.int64),
        paths=None if paths is None else tuple(paths),
    )


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


def _size(group: FeatureGroup) -> int:
    """About how many bytes a group takes: features, three integers a row, its path in a heap."""
    count, width = group.features.shape
    paths = sum(len(os.fsencode(path)) + 64 for path in group.paths or ())
    return stored_bytes(count, width * group.features.dtype.itemsize) + 26 * count + paths


def _assert_fits(name: str, group: FeatureGroup) -> None:
    shape, dtype = group.features.shape, group.features.dtype
    assert len(shape) == 2, (name, shape)
    assert dtype in (np.float32, np.float16), (name, dtype)
    for labels in (group.identities, group.cameras, group.views, group.paths):
        assert labels is None or len(labels) == shape[0], (name, shape)
