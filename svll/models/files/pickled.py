"""Pickles of torch.save, read without running anything of them.

`Unpickler` makes tensors, whose numbers are read later, and `Inert` objects in place of everything
else: args, configurations, numpy's numbers, optimizers. It imports nothing and calls nothing that
a file names. torch's own restricted loader would refuse a file for one such object, reads the
optimizer's tensors too and does not compare the checksums that zip files have.
"""

import math
import pickle
import pickletools
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from struct import error as StructError
from typing import Any

import torch
from torch import Tensor

KINDS = {
    "HalfStorage": torch.float16, "FloatStorage": torch.float32, "DoubleStorage": torch.float64,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
MOST = 2**28
"""Numbers of a tensor that repeats those of its storage."""
FAULTS = (
    zipfile.BadZipFile, zlib.error, pickle.UnpicklingError, StructError, KeyError, EOFError,
    ValueError, TypeError, AttributeError, IndexError, RuntimeError, OSError, OverflowError,
    MemoryError,
)
"""What broken zips, pickles and tensors raise."""


class Refused(Exception):
    """The file asks for something that weights do not need."""


@dataclass(frozen=True, eq=False)
class Storage:
    """Raw numbers of a file."""

    key: str
    kind: Any  # a dtype, or an Inert class for numbers that are not read
    count: int


@dataclass(frozen=True, eq=False)
class Stored:
    """A tensor of a file, whose numbers are not read yet."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def tensor(self, numbers: Tensor) -> Tensor:
        """Return the tensor, a view of the storage's numbers [count]; see FAULTS."""
        repeated = math.prod(self.size)
        if repeated > max(MOST, self.storage.count):
            raise ValueError(f"a tensor repeats {self.storage.count} numbers to {repeated}")
        return numbers.as_strided(self.size, self.stride, self.offset)


class Inert(dict[Any, Any]):
    """Replaces an object of any class: keeps the items of a mapping, and does nothing."""

    kind = ""
    """The class that the file names."""
    __hash__ = object.__hash__  # type: ignore[assignment]
    __eq__ = object.__eq__

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        pass

    def __call__(self, *_: Any, **__: Any) -> "Inert":
        """Stand for what the object's method would have returned."""
        return Inert()

    def append(self, _: Any) -> None:
        """Leave an item of a list out."""

    def extend(self, _: Any) -> None:
        """Leave items of a list out."""

    def add(self, _: Any) -> None:
        """Leave an item of a set out."""


class _Ordered(Inert):
    """An OrderedDict; Python 2 pickled its items as an argument."""

    def __init__(self, items: Any = (), *_: Any) -> None:
        super().__init__()
        self.update(items)


class Maker:
    """A function that a pickle may call. It has no attributes that a pickle could set."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *arguments: Any) -> Any:
        return self._make(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a function has no state")


def _stored(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Stored:
    if not isinstance(storage, Storage) or not all(type(x) is tuple for x in (size, stride)):
        raise pickle.UnpicklingError("a tensor without numbers")
    if not all(type(number) is int for number in (offset, *size, *stride)):
        raise pickle.UnpicklingError("a tensor whose sizes are no numbers")
    return Stored(storage, offset, size, stride)


def _typed(make: Any, _: Any, arguments: Any, *__: Any) -> Any:
    """Return a tensor with attributes, or of a class derived from it, as a plain one."""
    return make(*arguments)


REBUILD_TENSOR = Maker(_stored)
_MAKERS: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): REBUILD_TENSOR,
    ("torch._utils", "_rebuild_tensor"): REBUILD_TENSOR,
    ("torch._utils", "_rebuild_parameter"): Maker(lambda data, *_: data),
    ("torch._utils", "_rebuild_parameter_with_state"): Maker(lambda data, *_: data),
    ("torch._tensor", "_rebuild_from_type_v2"): Maker(_typed),
    ("collections", "OrderedDict"): _Ordered,
}


class Unpickler(pickle.Unpickler):
    """Reads one pickle; see `FAULTS` for what a broken one raises."""

    def __init__(self, data: Any) -> None:
        """data: an open file, at the pickle's beginning."""
        super().__init__(data, encoding="latin1")
        self._classes: dict[tuple[str, str], Any] = {}
        self.kinds: dict[str, Any] = {}
        """Of all storages, by key."""
        _check(data)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _MAKERS:
            return _MAKERS[module, name]
        if module in ("torch", "torch.cuda") and name in KINDS:
            return KINDS[name]
        made = type("Inert", (Inert,), {"kind": f"{module}.{name}"})
        return self._classes.setdefault((module, name), made)

    def persistent_load(self, pid: Any) -> Any:
        """Return the storage that a pickle refers to, or the class of a module, which torch before
        1.6 saves with its source."""
        if isinstance(pid, tuple) and len(pid) == 4 and pid[0] == "module":
            return pid[1]
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or any(pid[5:]):
            raise pickle.UnpicklingError("it refers to something other than a storage")
        _, kind, key, _, count = pid[:5]
        if type(count) is not int or count < 0 or type(key) is not str:
            raise pickle.UnpicklingError("it refers to a storage without a name or size")
        self.kinds[key] = kind
        return Storage(key, kind, count)


def _check(data: Any) -> None:
    """Read a pickle's words, and go back to its beginning. Raises ValueError for one that is cut
    short, and for words that could take much memory or find objects in another way."""
    start = data.tell()
    for number, (word, argument, _) in enumerate(pickletools.genops(data)):
        if word.name.endswith("PUT") and not 0 <= int(argument or 0) <= number:
            raise ValueError("a pickle with wrong numbers")
        if word.name.startswith("EXT"):
            raise ValueError("a pickle of objects without names")
    data.seek(start)


class Zip:
    """A zip file of torch.save or TorchScript: a pickle, and each storage's numbers in an entry."""

    def __init__(self, file: zipfile.ZipFile) -> None:
        names = file.namelist()
        roots = [name for name in names if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise Refused(f"it has {len(roots)} data.pkl")
        if len(set(names)) < len(names):
            raise Refused("it has two entries of one name")
        self.file, self.root = file, roots[0].removesuffix("/data.pkl")
        if f"{self.root}/byteorder" in names and self.read("byteorder") != b"little":
            raise Refused("its numbers are big-endian")
        self._numbers: dict[str, Tensor] = {}

    def read(self, name: str) -> bytes:
        """Return an entry, compared with its checksum. It must not be compressed, so that a small
        file cannot ask for much memory."""
        entry = self.file.getinfo(f"{self.root}/{name}")
        if entry.compress_type != zipfile.ZIP_STORED:
            raise Refused(f"its {name} is compressed")
        return self.file.read(entry)

    def numbers(self, storage: Storage) -> Tensor:
        """Return a storage [count]."""
        key, kind, count = storage.key, storage.kind, storage.count
        if key not in self._numbers:
            if not isinstance(kind, torch.dtype):
                raise Refused(f"its storage {key} has numbers of an unknown type")
            entry = self.file.getinfo(f"{self.root}/data/{key}")
            sizes = {entry.file_size, entry.compress_size, count * kind.itemsize}
            if entry.compress_type != zipfile.ZIP_STORED or len(sizes) > 1:
                raise Refused(f"its storage {key} is not {count} numbers of {kind}")
            self._numbers[key] = as_numbers(bytearray(self.file.read(entry)), kind)
        if len(self._numbers[key]) != count or self._numbers[key].dtype != kind:
            raise Refused(f"its storage {key} is not {count} numbers of {kind}")
        return self._numbers[key]


def as_numbers(raw: bytearray, kind: torch.dtype) -> Tensor:
    """Return raw little-endian numbers as a tensor of one axis."""
    return torch.frombuffer(raw, dtype=kind) if raw else torch.empty(0, dtype=kind)


@contextmanager
def opened_zip(path: Path) -> Iterator[zipfile.ZipFile | None]:
    """Yield an open zip file; None for a file that is none, or is damaged beyond opening."""
    file = None
    with suppress(*FAULTS):
        file = zipfile.ZipFile(path)
    try:
        yield file
    finally:
        if file is not None:
            file.close()
