"""OpenAI's weights as the clip package downloads them: TorchScript archives, read without running.

Such a file is a zip of code, a pickle of its object tree, and raw numbers. Only tensors are taken
from the pickle; nothing in the file is ever called.
"""

import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.base.errors import UserError

NO_WEIGHTS = ("input_resolution", "context_length", "vocab_size")
"""Entries of OpenAI's archives besides weights."""
Names = dict[str, set[str]]
_KINDS = {
    "HalfStorage": torch.float16, "FloatStorage": torch.float32, "DoubleStorage": torch.float64,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_LISTS = re.compile("build_(int|double|bool|tensor)list|restore_type_tag")
_CLASS = re.compile(
    r"^class (\w+)\(Module\):\n  __parameters__ = \[(.*?)\]\n  __buffers__ = \[(.*?)\]", re.M
)


def is_archive(path: Path) -> bool:
    """Whether a file is a TorchScript archive (a plain checkpoint is a zip without constants)."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as file:
        return any(name.endswith("/constants.pkl") for name in file.namelist())


def read_archive(path: Path) -> dict[str, Tensor]:
    """Return an archive's parameters and buffers, fp16 as fp32; UserError for other content."""
    try:
        with zipfile.ZipFile(path) as file:
            root = _root(file)
            with file.open(f"{root}/data.pkl") as data:
                module = _Reader(data, file, root).load()
            state = dict(_tensors(module, "", _registered(file, root)))
    except (_Refused, pickle.UnpicklingError) as error:
        raise UserError(f"{path}: not read, because {error}") from None
    # what broken zips, pickles and tensors raise
    except (zipfile.BadZipFile, KeyError, EOFError, ValueError, TypeError, AttributeError,
            IndexError, RuntimeError, OSError, NotImplementedError) as error:
        raise UserError(f"{path}: a damaged TorchScript archive ({error})") from None
    return {
        name: value.float() if value.dtype == torch.float16 else value
        for name, value in state.items() if name not in NO_WEIGHTS
    }


class _Refused(Exception):
    """The pickle asks for something that weights do not need."""


class _Module:
    """Replaces every class of the archive: keeps its state and does nothing with it."""

    kind = ""

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _root(file: zipfile.ZipFile) -> str:
    names = [name for name in file.namelist() if name.endswith("/data.pkl")]
    if len(names) != 1:
        raise _Refused(f"it has {len(names)} data.pkl")
    root = names[0].removesuffix("/data.pkl")
    order = f"{root}/byteorder"
    if order in file.namelist() and file.read(order) != b"little":
        raise _Refused("its numbers are big-endian")
    return root


def _registered(file: zipfile.ZipFile, root: str) -> Names:
    """Return which attributes of each class are parameters or buffers, parsed from the code."""
    found, start = {}, f"{root}/code/"
    for name in file.namelist():
        if name.startswith(start) and name.endswith(".py"):
            module = name.removeprefix(start).removesuffix(".py").replace("/", ".")
            for kind, *lists in _CLASS.findall(file.read(name).decode()):
                found[f"{module}.{kind}"] = set(re.findall(r'"([^"]*)"', " ".join(lists)))
    return found


def _tensors(module: Any, prefix: str, registered: Names) -> Iterator[tuple[str, Tensor]]:
    """Yield a module's tensors by their dotted names."""
    if not isinstance(module, _Module) or not isinstance(module.state, dict):
        raise _Refused("its root is no module")
    known = registered.get(module.kind)
    for name, value in module.state.items():
        if isinstance(value, _Module):
            yield from _tensors(value, f"{prefix}{name}.", registered)
        elif isinstance(value, Tensor) and (known is None or name in known):
            yield f"{prefix}{name}", value


class _Reader(pickle.Unpickler):
    """An unpickler that knows tensors and inert modules, and refuses every other name."""

    def __init__(self, data: Any, file: zipfile.ZipFile, root: str) -> None:
        super().__init__(data)
        self.file, self.root = file, root
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return type("Module", (_Module,), {"kind": f"{module}.{name}"})
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda data, offset, size, stride, *_: data.as_strided(size, stride, offset)
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in _KINDS:
            return _KINDS[name]
        if module == "torch.jit._pickle" and _LISTS.fullmatch(name):
            return lambda value, *_: value
        raise _Refused(f"it wants to execute {module}.{name}")

    def persistent_load(self, pid: Any) -> Tensor:
        """Return the raw numbers of one storage [count]."""
        tag, kind, key, _, count = pid
        if tag != "storage" or not isinstance(kind, torch.dtype):
            raise _Refused("it refers to something other than a storage")
        if key not in self.storages:
            entry, size = self.file.getinfo(f"{self.root}/data/{key}"), int(count) * kind.itemsize
            # never compressed, so that a small file cannot ask for much memory
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != size:
                raise _Refused(f"its storage {key} is not {count} numbers of {kind}")
            raw = bytearray(self.file.read(entry))
            empty = torch.empty(0, dtype=kind)
            self.storages[key] = torch.frombuffer(raw, dtype=kind) if raw else empty
        return self.storages[key]
