"""What an HDF5 file holds: a checksum of it, and which values are not there.

HDF5 has checksums of chunks, where they are asked for, but none of names, attributes and texts. It
reads values that were never written, or that are missing in another file, as zeros.
"""

import hashlib
import math
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

SUMS = "features_sums"
"""The dataset beside `features` with the checksums of their blocks."""
DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, MemoryError)
"""What h5py raises for damaged files."""
Arrays = dict[str, NDArray[Any]]


def content_of(file: h5py.File) -> tuple[str, Arrays]:
    """Return a checksum of all names, attributes and values but the attribute `complete`, and the
    arrays read for it, by name: all but features, which count by the checksums of their blocks.
    Raises one of DAMAGE."""
    found: dict[str, Any] = {"": file}
    file.visititems(found.__setitem__)
    digest, arrays = hashlib.sha256(), Arrays()
    for name, item in sorted(found.items()):
        kept = sorted(key for key in item.attrs if (name, key) != ("", "complete"))
        about: list[Any] = [name, [(key, _plain(item.attrs[key])) for key in kept]]
        content = b""
        if isinstance(item, h5py.Dataset):
            about += [str(item.dtype), item.shape]
            place, _, own = name.rpartition("/")
            has_sums = own == "features" and f"{place}/{SUMS}".lstrip("/") in found
            if not has_sums:
                arrays[name] = read_array(item)
                content = _bytes(arrays[name])
        digest.update(ascii([*about, len(content)]).encode())
        digest.update(content)
    return digest.hexdigest(), arrays


def _plain(value: Any) -> Any:
    """Return an attribute as Python's own types: numpy's look different in each version."""
    return value if isinstance(value, str | bytes) else np.asarray(value).tolist()


def _bytes(values: NDArray[Any]) -> bytes:
    """Return an array as bytes; of texts, each with a NUL at its end."""
    if values.dtype.kind != "O":
        return values.tobytes()
    return b"\0".join(values.reshape(-1).tolist()) + b"\0"


def read_array(dataset: h5py.Dataset) -> NDArray[Any]:
    """Return all values of a dataset. Raises one of DAMAGE, also for values that are absent."""
    if why := absent(dataset):
        raise OSError(f"{dataset.name}: {why}")
    return np.asarray(dataset[()])


def absent(dataset: h5py.Dataset) -> str:
    """Say why some values of a dataset are not in its file; "" if all are. Reads none of them, as a
    small file may declare any number."""
    if dataset.shape is None:
        return "holds nothing"
    if dataset.is_virtual or dataset.external:
        return "its values are in other files; copy them into this one"
    if dataset.chunks is not None:
        there = dataset.id.get_num_chunks()
        needed = math.prod(-(-n // size) for n, size in zip(dataset.shape, dataset.chunks,
                                                            strict=True))
        return "" if there == needed else f"{there} of {needed} chunks are there"
    there = min(dataset.id.get_storage_size(), dataset.file.id.get_filesize())
    return "" if there >= dataset.nbytes else f"{there} of {dataset.nbytes} bytes are there"
