"""The feature cache: one HDF5 file with the features of a dataset's images and their labels.

    /                  format = "svll-features", version, dataset, model, protocol, key, created,
                       complete: the checksum of all this, or True
    /query, /gallery, /train, or any other group:
        features [n, d]    float32 or float16, in chunks of rows, with checksums
        identity [n]       int64; -1 is junk
        camera [n]         int64; -1 is unknown
        view [n], path [n] int64, UTF-8; optional
        features_sums      checksums for fast readers, see `harness.features.rows`; optional

Anyone may write such a file: of a group only features, identity and camera are required, and they
must be in the file itself. A finished file is never changed, and readers take no lock.
`svll.features.parts` shares the writing among ranks.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from harness.base.errors import UserError
from harness.features import hdf5
from harness.features.content import SUMS, Arrays, absent, read_array
from harness.features.rows import StoredRows, put_features
from svll.base.labels import whole_numbers
from svll.base.records import Records

FORMAT, VERSION = "svll-features", 1
ATTRIBUTES = ("dataset", "model", "created", "protocol", "key")
LABELS = ("identity", "camera", "view", "path")

Integers = NDArray[np.int64]
StrPath = str | os.PathLike[str]


@dataclass(frozen=True, eq=False)
class FeatureGroup:
    """The features [n, d] of n images and their labels [n]."""

    features: Any
    """float32 or float16: an array, or `StoredRows`, which are read when they are sliced."""
    identities: Integers
    cameras: Integers
    views: Integers | None = None
    paths: Sequence[str] | None = None

    @classmethod
    def of(cls, features: Any, images: "Records | FeatureGroup") -> "FeatureGroup":
        """Return features [n, d] with the labels of their images."""
        return cls(features, images.identities, images.cameras, images.views, images.paths)


Labelled = Records | FeatureGroup
"""Images with labels."""


@dataclass(frozen=True, eq=False)
class FeatureFile:
    """The content of a cache; protocol and key are empty where the writer gave none."""

    path: Path
    dataset: str
    model: str
    """Signature of the model that made the features."""
    created: str
    protocol: str
    """The dataset's protocol, see `svll.base.protocol_names`."""
    key: str
    """A hash of everything that the features depend on."""
    first_camera: int | None
    """The dataset's own number for camera 0; None where the writer gave none."""
    groups: dict[str, FeatureGroup]


def write_features(
    path: StrPath, groups: Mapping[str, FeatureGroup], *, dataset: str, model: str,
    protocol: str = "", key: str = "", first_camera: int | None = None,
) -> None:
    """Write a cache; one that is at `path` already is replaced when the new one is complete.

    first_camera: the dataset's own number for camera 0. Features that are not in memory are read
    block by block. Raises UserError, with the bytes needed and free, when the disk lacks room.
    """
    for group in groups.values():
        assert group.features.dtype in (np.float32, np.float16), group.features.dtype
    with hdf5.new_file(Path(path), sum(map(_size, groups.values()))) as file:
        for name, group in groups.items():
            part = file.create_group(name)
            put_features(part, group.features)
            columns = {"identity": group.identities, "camera": group.cameras, "view": group.views}
            for label, values in columns.items():
                if values is not None:
                    hdf5.put_column(part, label, np.asarray(values, np.int64))
            if group.paths is not None:
                hdf5.put_paths(part, group.paths)
        created = datetime.now(UTC).isoformat(timespec="seconds")
        file.attrs.update(format=FORMAT, version=VERSION, dataset=dataset, model=model,
                          created=created, protocol=protocol, key=key)
        if first_camera is not None:
            file.attrs["first_camera"] = first_camera


def read_features(path: StrPath, groups: Sequence[str] | None = None) -> FeatureFile:
    """Read all groups of a cache, or the named ones; see `open_features`."""
    with open_features(path, groups) as file:
        return replace(file, groups={
            name: replace(group, features=group.features[:]) for name, group in file.groups.items()
        })


@contextmanager
def open_features(
    path: StrPath, groups: Sequence[str] | None = None, *, optional: Sequence[str] = ()
) -> Iterator[FeatureFile]:
    """Open a cache: labels are read, features stay in the file and are sliced by rows.

    groups: the required ones; None: all. `optional` groups are read where they exist. Raises
    UserError that names the file and every fault: missing, not HDF5, cut short, of another format
    or version, incomplete, datasets that are absent or do not fit together; and, while features are
    read, damaged rows.
    """
    path = Path(path)
    with ExitStack() as stack:
        with hdf5.as_user_error(path):
            file = stack.enter_context(hdf5.open_file(path))
            content = _get_file(path, file, groups, optional)
        yield content


def _get_file(
    path: Path, file: h5py.File, groups: Sequence[str] | None, optional: Sequence[str]
) -> FeatureFile:
    known = hdf5.check_attributes(path, file, FORMAT, VERSION)
    names = list(file) if groups is None else list(groups)
    names += [name for name in optional if name in list(file) and name not in names]
    faults: list[str] = []
    found = {name: _get_group(path, file, name, faults, known) for name in names}
    first = hdf5.text_of(file, "first_camera")
    if first is not None and not re.fullmatch(r"\d{1,9}", first):
        faults.append(f"the attribute first_camera is {first}; expected an integer, 0 or more")
    if faults:
        listed = "\n".join(f"  {fault}" for fault in faults)
        raise UserError(f"{path}: not a usable feature cache:\n{listed}")
    return FeatureFile(
        path=path, groups={name: group for name, group in found.items() if group is not None},
        first_camera=None if first is None else int(first),
        **{name: hdf5.text_of(file, name) or "" for name in ATTRIBUTES},
    )


def _get_group(
    path: Path, file: h5py.File, name: str, faults: list[str], known: Arrays | None
) -> FeatureGroup | None:
    """Return a group, or None and why it cannot be used. known: the arrays of a file as it was
    written; None: of any other, from which they are read."""
    group, before = _own(file, name, faults), len(faults)
    if not isinstance(group, h5py.Group):
        faults.append(f"there is no group {name} (groups: {', '.join(file) or 'none'})")
        return None
    items = {label: _own(group, label, faults, f"{name}/") for label in ("features", *LABELS, SUMS)}
    faults.extend(_faults(name, items))
    if len(faults) > before:
        return None
    arrays = {label: known[f"{name}/{label}"] if known is not None else read_array(items[label])
              for label in LABELS if items[label] is not None}
    paths, labels = arrays.pop("path", None), dict[str, Integers]()
    for label, values in arrays.items():
        try:
            labels[label] = whole_numbers(values)
        except ValueError as error:
            faults.append(f"{name}/{label}: {error}")
    if len(faults) > before:
        return None
    return FeatureGroup(
        StoredRows(path, items["features"], items[SUMS], sure=known is not None),
        labels["identity"], labels["camera"], labels.get("view"),
        # file names need not be valid UTF-8; surrogates carry their bytes through
        None if paths is None else tuple(text.decode("utf-8", "surrogateescape")
                                         for text in paths.tolist()),
    )


def _own(group: h5py.Group, name: str, faults: list[str], where: str = "") -> Any:
    """Return what a group has under a name, None for nothing or a link to another file."""
    link = group.get(name, getlink=True) if name in list(group) else None
    if isinstance(link, h5py.ExternalLink):  # that file may be gone, or a pipe
        faults.append(f"{where}{name} is a link to {link.filename}; copy it into this file")
        return None
    return None if link is None else group.get(name)


def _faults(name: str, items: Mapping[str, Any]) -> Iterable[str]:
    """Yield why the datasets of group `name` cannot be used."""
    features = items["features"]
    if not isinstance(features, h5py.Dataset):
        yield f"{name}/features is missing"
    elif features.ndim != 2 or features.dtype.kind != "f":
        yield f"{name}/features is {features.dtype} {list(features.shape)}; expected floats [n, d]"
    for label in LABELS:
        values = items[label]
        if values is None:
            if label in LABELS[:2]:
                yield f"{name}/{label} is missing"
        elif not isinstance(values, h5py.Dataset):
            yield f"{name}/{label} is no dataset"
        elif getattr(features, "ndim", 0) == 2 and values.shape != features.shape[:1]:
            yield f"{name}/{label} has shape {list(values.shape)}; expected {[features.shape[0]]}"
        elif label != "path" and values.dtype.kind not in "iu":
            yield f"{name}/{label} is {values.dtype}; expected integers"
        elif label == "path" and h5py.check_string_dtype(values.dtype) is None:
            yield f"{name}/path is {values.dtype}; expected UTF-8 text"
    for label in ("features", *LABELS):
        if isinstance(values := items[label], h5py.Dataset) and (why := absent(values)):
            yield f"{name}/{label}: {why}"


def _size(group: FeatureGroup) -> int:
    """Estimate a group's bytes: features, three integers per row, paths in a heap."""
    count, width = group.features.shape
    for labels in (group.identities, group.cameras, group.views, group.paths):
        assert labels is None or len(labels) == count, group.features.shape
    paths = sum(len(os.fsencode(path)) + 64 for path in group.paths or ())
    return hdf5.stored_bytes(count, width * group.features.dtype.itemsize) + 26 * count + paths
