"""The feature cache: an HDF5 file of features with what is known of their images.

Groups (`query`, `gallery`, `train`) hold `features` [n, D] and, [n] each, `identity` (-1: junk),
`camera`, `view` and `path`. Root attributes: `format`, `version`, `dataset`, `model`, `created`,
and `complete`, written last. Only `features`, `identity` and `camera` are required, so any toolbox
can write such a file.
"""

import datetime
import errno
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from harness.errors import UserError
from harness.files import atomic_write

FORMAT, VERSION = "svll-features", 1
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class FeatureGroup:
    """Features [n, D] and their images' labels [n]; views and paths may be unknown."""

    features: NDArray[Any]
    identities: NDArray[np.int64]
    cameras: NDArray[np.int64]
    views: NDArray[np.int64] | None = None
    paths: Sequence[str] | None = None


@dataclass(frozen=True)
class FeatureFile:
    """A whole feature cache, read."""

    path: Path
    dataset: str
    model: str
    groups: dict[str, FeatureGroup]


def write_features(
    path: str | os.PathLike[str], groups: Mapping[str, FeatureGroup], *, dataset: str, model: str
) -> None:
    """Write a feature cache, atomically. Raises UserError when the disk is full or refuses."""
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    needed = sum(group.features.nbytes for group in groups.values())
    free = shutil.disk_usage(final.parent).free
    if needed > free:
        raise UserError(
            f"{final}: needs {needed:,} bytes, {free:,} are free; make room, or keep runs elsewhere"
        )
    try:
        with atomic_write(final) as private, h5py.File(private, "w") as file:
            file.attrs.update({
                "format": FORMAT, "version": VERSION, "dataset": dataset, "model": model,
                "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            })
            for name, group in groups.items():
                _write_group(file.create_group(name), group)
            file.attrs["complete"] = True
    except OSError as error:
        if error.errno == errno.ENOSPC or "No space left" in str(error):
            raise UserError(f"{final}: no space left on the disk, {needed:,} bytes needed") from None
        raise UserError(f"{final}: cannot be written: {error}") from None


def _write_group(target: Any, group: FeatureGroup) -> None:
    count, width = group.features.shape
    rows = max(1, min(count, CHUNK_BYTES // max(1, group.features.itemsize * width)))
    chunks = (rows, width) if count else None
    target.create_dataset("features", data=group.features, chunks=chunks)
    columns = {"identity": group.identities, "camera": group.cameras, "view": group.views}
    for name, values in columns.items():
        if values is not None:
            assert len(values) == count, f"{name}: {len(values)} values for {count} rows"
            target.create_dataset(name, data=np.asarray(values, dtype=np.int64))
    if group.paths is not None:
        assert len(group.paths) == count, f"{len(group.paths)} paths for {count} rows"
        target.create_dataset("path", data=list(group.paths), dtype=h5py.string_dtype())


def read_features(path: str | os.PathLike[str]) -> FeatureFile:
    """Read a feature cache into memory, without locking it.

    Raises UserError naming the file: missing, truncated, not HDF5, of another format or version,
    not complete, or with columns that are missing or of unequal length.
    """
    place = Path(path)
    if not place.is_file():
        raise UserError(f"{place}: no such file")
    try:
        with h5py.File(place, "r", locking=False) as file:
            _check_head(place, dict(file.attrs))
            groups = {name: _read_group(place, name, file[name]) for name in file}
            dataset, model = (str(file.attrs.get(key, "")) for key in ("dataset", "model"))
    except OSError as error:
        raise UserError(f"{place}: no HDF5 file, or one cut short ({error})") from None
    return FeatureFile(place, dataset, model, groups)


def _check_head(path: Path, head: dict[str, Any]) -> None:
    if head.get("format") != FORMAT:
        raise UserError(f"{path}: the attribute `format` is {head.get('format')!r}, not {FORMAT!r}")
    if head.get("version") != VERSION:
        raise UserError(f"{path}: version {head.get('version')}; this program reads {VERSION}")
    if not head.get("complete"):
        raise UserError(f"{path}: not complete: its writer was stopped; make it again")


def _read_group(path: Path, name: str, group: Any) -> FeatureGroup:
    where = f"{path}, group {name}"
    missing = [key for key in ("features", "identity", "camera") if key not in group]
    if missing:
        raise UserError(f"{where}: lacks {', '.join(missing)}")
    features = group["features"]
    if features.ndim != 2:
        raise UserError(f"{where}: features must be [n, D], found {list(features.shape)}")
    for key in group:
        if group[key].shape[:1] != features.shape[:1]:
            raise UserError(
                f"{where}: {key} has {group[key].shape[0]} rows, features {features.shape[0]}"
            )
    return FeatureGroup(
        features=features[()],
        identities=group["identity"][()].astype(np.int64),
        cameras=group["camera"][()].astype(np.int64),
        views=group["view"][()].astype(np.int64) if "view" in group else None,
        paths=tuple(group["path"].asstr()[()]) if "path" in group else None,
    )
