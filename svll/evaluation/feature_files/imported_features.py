"""Feature files of other toolboxes, read as the groups of a feature cache.

    npz    numpy.savez(query_features=..., ...)
    mat    MATLAB's, up to version 7 and 7.3; Person_reID_baseline_pytorch writes such files
    pt     torch.save({"qf": tensor, ...}), also nested as {"query": {"features": tensor, ...}}

A key is a group and a field in any of the spellings below, joined by anything or nested; case does
not matter, and other keys are ignored. Nothing in a file is executed: a file that needs a pickle of
Python objects is refused.

Letters: n images of a group, d width.
"""

import lzma
import pickle
import re
import struct
import subprocess
import sys
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from harness.base.errors import UserError
from harness.base.paths import typed
from harness.features.content import DAMAGE, absent
from svll.base.feature_file import FeatureGroup
from svll.base.labels import SAVE, whole_numbers

GROUPS = {"query": ("query", "q", "probe"),
          "gallery": ("gallery", "g"),
          "multi_query": ("multi_query", "multiquery", "mquery", "mq")}
FIELDS = {"features": ("features", "feature", "feats", "feat", "f"),
          "identities": ("identities", "identity", "ids", "id", "pids", "pid", "labels", "label"),
          "cameras": ("cameras", "camera", "camids", "camid", "cams", "cam")}
EXPECTED = ("query_features [n, d], query_identities [n], query_cameras [n], and also of gallery; "
            "or query_f, query_label, query_cam, gallery_f, ...; or qf, q_pids, q_camids, gf, ...")
WEIGHTS = "{path}: these are weights, not features: use --weights {typed} --recipe NAME"
KINDS = {".npz": "npz", ".mat": "mat", ".pt": "pt", ".pth": "pt"}
BLOCK = 4096
BROKEN = (OSError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, EOFError,
          ArithmeticError, MemoryError, AssertionError, SyntaxError, struct.error, zlib.error,
          lzma.LZMAError, zipfile.BadZipFile, tokenize.TokenError, pickle.UnpicklingError)
"""What zipfile, numpy, scipy and torch raise for damaged files."""

TRIAL_S, SLOWEST = 20.0, 10e6
"""How long another process may take to read a file of HDF5, and how many bytes a second it reads at
least."""
TRIAL = """
import contextlib, sys, h5py

def read(name, item):
    with contextlib.suppress(Exception):
        item[()]

h5py.File(sys.argv[1], "r", locking=False).visititems(read)
"""

Entries = dict[str, Callable[[], NDArray[Any]]]
"""The arrays of a file, each read when called; ValueError if it cannot be read."""


def read_foreign(path: Path, kind: str | None = None) -> dict[str, FeatureGroup]:
    """Read the groups query and gallery, and multi_query if there is one.

    A file may hold multi_query alone, as its toolbox writes it. `kind` is npz, mat or pt, by
    default from the suffix. Features become float16 or float32, labels int64. Raises UserError with
    every fault, the keys found and those expected.
    """
    if path.is_dir():
        raise UserError(f"{path}: a folder; give a file in it, such as {path / 'features.h5'}")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    kind = kind or KINDS.get(path.suffix.lower())
    if path.suffix == ".safetensors":
        raise UserError(WEIGHTS.format(path=path, typed=typed(path)))
    if kind not in READERS:
        raise UserError(f"{path}: unknown kind of file; features of another toolbox: python "
                        f"launch/features.py {typed(path)} --format {'|'.join(READERS)} --save "
                        f"FEATURES.h5; weights: --weights {typed(path)} --recipe NAME")
    faults: list[str] = []
    with READERS[kind](path) as entries:
        keys = _keys(entries, faults)
        if not any(keys.values()) and any(key.endswith(".weight") for key in entries):
            raise UserError(WEIGHTS.format(path=path, typed=typed(path)))
        read = {name: _group(of_group, entries, faults) for name, of_group in keys.items()}
        groups = {name: group for name, group in read.items() if group is not None}
        listed_keys = ", ".join(entries) or "none"
    widths = {name: group.features.shape[1] for name, group in groups.items()}
    if len(set(widths.values())) > 1:
        listed = ", ".join(f"{name} {width}" for name, width in widths.items())
        faults.append(f"features differ in width: {listed}; all must come from one model")
    if faults:
        listed = "\n".join(f"  {fault}" for fault in faults)
        raise UserError(f"{path}: not usable as features of another toolbox:\n{listed}\n"
                        f"keys found: {listed_keys}\nkeys expected: {EXPECTED}")
    return groups


# ---- keys ----


def _keys(entries: Entries, faults: list[str]) -> dict[str, dict[str, str]]:
    """Return the key of each field that is there, by group."""
    plain = {key: re.sub(r"[^a-z0-9]", "", key.lower()) for key in entries}
    found: dict[str, dict[str, str]] = {}
    for group, field in product(GROUPS, FIELDS):
        names = {(g + f).replace("_", "") for g in GROUPS[group] for f in FIELDS[field]}
        keys = [key for key, name in plain.items() if name in names]
        if keys:
            found.setdefault(group, {})[field] = keys[0]
        if len(keys) > 1:
            faults.append(f"{group} {field} appear more than once: {', '.join(keys)}")
    if found.keys() != {"multi_query"}:
        found = {"query": {}, "gallery": {}} | found
    for group, fields in found.items():
        if missing := [field for field in FIELDS if field not in fields]:
            faults.append(f"{group} {', '.join(missing)} not found")
    return found


def _group(keys: Mapping[str, str], entries: Entries, faults: list[str]) -> FeatureGroup | None:
    """Return a group, or None and its faults; missing keys are among the faults already."""
    values: dict[str, NDArray[Any]] = {}
    for field, key in keys.items():
        try:
            values[field] = (_features if field == "features" else _labels)(entries[key]())
        except ValueError as error:
            faults.append(f"{key}: {error}")
    features = values.pop("features", None)
    if features is None:
        return None
    if not len(features):
        faults.append(f"{keys['features']}: there is no image in it")
        return None
    count, width = features.shape
    wrong = [field for field, labels in values.items() if len(labels) != count]
    if wrong and all(len(labels) == width for labels in values.values()):
        faults.append(f"{keys['features']}: {[count, width]} is [d, n], one image per column; save "
                      "it transposed, [n, d]")
        return None
    faults += [f"{keys[field]}: {len(values[field])} of them, but {count} rows of "
               f"{keys['features']}" for field in wrong]
    if wrong or len(values) < len(FIELDS) - 1:
        return None
    return FeatureGroup(features, values["identities"], values["cameras"])


# ---- values ----


def _labels(values: NDArray[Any]) -> NDArray[np.int64]:
    """Return integers [n] from [n], [1, n] or [n, 1] of any number type, or of texts like 0002."""
    if values.dtype.kind in "US":
        values = _written(np.char.strip(values.astype(str)))
    if values.dtype.kind not in "iuf":
        raise ValueError(f"holds {_kind(values)}; integers are needed")
    if values.size != max(values.shape, default=1):
        raise ValueError(f"has shape {list(values.shape)}; expected [n], [1, n] or [n, 1]")
    return whole_numbers(values.reshape(-1))


def _written(texts: NDArray[Any]) -> NDArray[np.int64]:
    """Return the integers that texts are. Raises ValueError for other texts, which would have to be
    numbered for query and gallery together."""
    if wrong := [text for text in texts.flat if not re.fullmatch(r"-1|\d{1,18}", text, re.ASCII)]:
        raise ValueError(f"holds text that is no integer, such as {str(wrong[0])!r}; number "
                         "the texts, alike in query and gallery")
    values: NDArray[np.int64] = texts.astype(np.int64)
    if len(np.unique(values)) < len(np.unique(texts)):
        raise ValueError("holds texts that are one number, such as 7 and 07; save integers")
    return values


def _features(values: NDArray[Any]) -> NDArray[Any]:
    """Return rows [n, d] as float16 or float32."""
    if values.dtype.kind != "f":
        raise ValueError(f"holds {_kind(values)}; floating-point numbers are needed")
    if values.ndim != 2:
        raise ValueError(f"has shape {list(values.shape)}; expected [n, d]")
    if values.dtype.type in (np.float16, np.float32):
        return np.ascontiguousarray(values, values.dtype.newbyteorder("="))
    out = np.empty(values.shape, np.float32)
    for first in range(0, len(values), BLOCK):
        with np.errstate(over="ignore"):
            block = values[first : first + BLOCK].astype(np.float32)
        bad = np.flatnonzero(~np.isfinite(block).all(axis=1))
        if len(bad):
            raise ValueError(f"row {first + bad[0]} holds NaN, infinity or numbers beyond float32; "
                             "extract the features of this image again")
        out[first : first + BLOCK] = block
    return out


def _kind(values: NDArray[Any]) -> str:
    kinds = {"U": "text", "S": "text", "O": "objects", "b": "booleans", "c": "complex numbers"}
    return kinds.get(values.dtype.kind, str(values.dtype))


# ---- files ----


def _damaged(path: Path, kind: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:160]
    return UserError(f"{path}: cannot be read as {kind}: another format, truncated or damaged "
                     f"({reason})")


@contextmanager
def _open_npz(path: Path) -> Iterator[Entries]:
    try:
        archive = zipfile.ZipFile(path)
    except BROKEN as error:
        raise _damaged(path, "npz", error) from error
    with archive:
        yield {name.removesuffix(".npy"): partial(_npz_entry, archive, name)
               for name in archive.namelist()}


def _npz_entry(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """Read an array to the end of its entry, where zipfile compares the checksum."""
    if archive.namelist().count(name) > 1:
        raise ValueError("appears more than once")
    try:
        with archive.open(name) as entry:
            values = np.lib.format.read_array(entry, allow_pickle=False)
            rest = entry.read(1)
    except BROKEN as error:
        if "allow_pickle" in str(error):
            raise ValueError("holds Python objects (a pickle), which could run code and is not "
                             "opened; save it as an array of numbers") from None
        raise ValueError(f"is damaged, or not a numpy array ({error})") from error
    if rest:
        raise ValueError("is damaged: something follows the array")
    return values


@contextmanager
def _open_mat(path: Path) -> Iterator[Entries]:
    if not h5py.is_hdf5(path):
        yield _matlab_5(path)
        return
    entries: Entries = {}

    def add(name: str, item: h5py.Dataset | h5py.Group) -> None:
        if isinstance(item, h5py.Dataset) and not name.startswith("#"):
            entries[name] = partial(_matlab_73_entry, item)

    _try_elsewhere(path)
    with ExitStack() as stack:
        try:
            file = stack.enter_context(h5py.File(path, "r", locking=False))
            file.visititems(add)
        except DAMAGE as error:
            raise _damaged(path, "mat", error) from error
        yield entries


def _try_elsewhere(path: Path) -> None:
    """Raise UserError for a file on which HDF5 crashes or goes round in circles, as it does on some
    damaged ones: only a process can be ended then. What else is wrong the reader tells."""
    limit = TRIAL_S + path.stat().st_size / SLOWEST
    words = [sys.executable, "-P", "-c", TRIAL, str(path)]
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=limit)
    except subprocess.TimeoutExpired as error:
        reason = TimeoutError(f"HDF5 has not read it within {limit:.0f} s")
        raise _damaged(path, "mat", reason) from error
    if done.returncode < 0:
        raise _damaged(path, "mat", RuntimeError("HDF5 crashes on it"))


def _matlab_73_entry(item: h5py.Dataset) -> NDArray[Any]:
    """Read a dataset of a version 7.3 file, which stores matrices transposed."""
    try:
        stored = item.attrs.get("MATLAB_class")
        name = stored.decode() if isinstance(stored, bytes) else str(stored)
        is_empty, why = bool(item.attrs.get("MATLAB_empty", 0)), absent(item)
        if stored is not None and name not in ("cell", "char", "logical") and not (is_empty or why):
            return np.asarray(item[()]).T
    except DAMAGE as error:
        raise ValueError(f"is damaged ({error})") from error
    if stored is None:
        raise ValueError("was not written by MATLAB, so rows and columns cannot be told apart")
    if is_empty:
        return np.zeros((0, 0))  # the file stores the shape
    raise ValueError(why or f"is of MATLAB's class {name}; numbers are needed")


def _matlab_5(path: Path) -> Entries:
    from scipy import io  # 0.2 s, for this kind only

    broken = (io.matlab.MatReadError, *BROKEN)

    def load(name: str) -> NDArray[Any]:
        try:
            return _dense(io.loadmat(path, variable_names=[name])[name])
        except broken as error:
            raise ValueError(f"is damaged ({error})") from error

    entries: Entries = {}
    try:
        for name, _, kind in io.whosmat(path):
            if kind != "struct":
                entries[name] = partial(load, name)
            elif (whole := load(name)).size == 1:  # larger ones hold no group
                one = whole.reshape(-1)[0]
                fields = whole.dtype.names or ()
                entries |= {f"{name}/{field}": partial(_dense, one[field]) for field in fields}
    except broken as error:
        raise _damaged(path, "mat", error) from error
    return entries


def _dense(value: Any) -> NDArray[Any]:
    if not isinstance(value, np.ndarray):
        raise ValueError("is not a plain matrix")
    return value


@contextmanager
def _open_pt(path: Path) -> Iterator[Entries]:
    import torch  # 2 s, for this kind only

    try:
        is_zip = zipfile.is_zipfile(path)  # not a file older than torch 1.6
        if is_zip:
            _check_sums(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
        found = list(_flat(content)) if isinstance(content, dict) else None
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: holds Python objects other than tensors, numbers and lists, "
                        "which could run code and are not opened, or was not written by "
                        "torch.save; instead of numpy arrays, save torch.as_tensor(values)"
                        ) from error
    except BROKEN as error:
        raise _damaged(path, "pt", error) from error
    if found is None:
        raise UserError(f"{path}: holds one {type(content).__name__}, not a dict of tensors\n"
                        f"keys expected: {EXPECTED}")
    yield {key: partial(_array, value) for key, value in found}


def _check_sums(path: Path) -> None:
    """Compare the checksums of a zip archive, which torch does not; ValueError for a wrong one."""
    with zipfile.ZipFile(path) as archive:
        if name := archive.testzip():
            raise ValueError(f"{name} does not match its checksum")


def _flat(content: Mapping[Any, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{key}/")
        else:
            yield f"{above}{key}", value


def _array(value: Any) -> NDArray[Any]:
    """Return a tensor or a list as an array; bfloat16, which numpy lacks, as float32."""
    import torch

    if not isinstance(value, torch.Tensor):
        return np.asarray(value)  # ValueError for lists of different lengths
    if value.layout is not torch.strided or value.is_quantized:
        raise ValueError("is a sparse or quantised tensor; a plain one is needed")
    value = value.detach()
    if value.dtype is torch.bfloat16:
        if value.ndim < 2 or value.shape[1] == 1:
            raise ValueError(f"holds bfloat16, which has integers only up to 256; {SAVE}")
        value = value.float()
    try:
        return value.numpy()
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"holds {value.dtype}: {error}") from error


READERS: dict[str, Callable[[Path], AbstractContextManager[Entries]]] = {
    "npz": _open_npz, "mat": _open_mat, "pt": _open_pt}
