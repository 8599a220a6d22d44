"""OpenAI's weights as the clip package downloads them: TorchScript archives, read without running.

Such a file is a zip of code, a pickle that says how its objects hang together, and raw numbers.
Only what has to do with tensors is taken from the pickle; nothing in the file is ever called.
"""

import pickle
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.base.errors import UserError

NO_WEIGHTS = ("input_resolution", "context_length", "vocab_size")
"""What OpenAI's archives hold besides weights."""
_KINDS = {
    "HalfStorage": torch.float16, "FloatStorage": torch.float32, "DoubleStorage": torch.float64,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_LISTS = (
    "build_intlist", "build_doublelist", "build_boollist", "build_tensorlist", "restore_type_tag",
)
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
    """Return the parameters and buffers of a TorchScript archive, half precision made float32.

    Raises UserError, naming the file, when it is damaged or holds anything but modules of tensors.
    """
    try:
        with zipfile.ZipFile(path) as file:
            state = dict(_Archive(file).tensors())
    except (_Refused, pickle.UnpicklingError) as error:
        raise UserError(f"{path}: not read, because {error}") from None
    # what broken zips, pickles and tensors raise
    except (
        zipfile.BadZipFile, KeyError, EOFError, ValueError, TypeError, AttributeError, IndexError,
        RuntimeError, OSError, NotImplementedError,
    ) as error:
        raise UserError(f"{path}: a damaged TorchScript archive ({error})") from None
    return {
        name: value.float() if value.dtype == torch.float16 else value
        for name, value in state.items() if name not in NO_WEIGHTS
    }


class _Refused(Exception):
    """The pickle asks for something that weights have no need of."""


class _Module:
    """Stands for any class of the archive; its state is kept and nothing is done with it."""

    kind = ""

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Archive:
    """An opened archive."""

    def __init__(self, file: zipfile.ZipFile) -> None:
        self.file = file
        names = [name for name in file.namelist() if name.endswith("/data.pkl")]
        if len(names) != 1:
            raise _Refused(f"it has {len(names)} data.pkl")
        self.root = names[0].removesuffix("/data.pkl")
        order = f"{self.root}/byteorder"
        if order in file.namelist() and file.read(order) != b"little":
            raise _Refused("its numbers are big-endian")
        self.registered = self._registered()

    def _registered(self) -> dict[str, set[str]]:
        """Return which attributes of each class are parameters or buffers, read from the code."""
        found = {}
        start = f"{self.root}/code/"
        for name in self.file.namelist():
            if name.startswith(start) and name.endswith(".py"):
                module = name.removeprefix(start).removesuffix(".py").replace("/", ".")
                text = self.file.read(name).decode()
                for kind, *lists in _CLASS.findall(text):
                    found[f"{module}.{kind}"] = set(re.findall(r'"([^"]*)"', " ".join(lists)))
        return found

    def tensors(self) -> list[tuple[str, Tensor]]:
        """Return the tensors by their dotted names."""
        with self.file.open(f"{self.root}/data.pkl") as data:
            return list(self._below(_Reader(data, self).load(), ""))

    def _below(self, module: Any, prefix: str) -> Any:
        if not isinstance(module, _Module) or not isinstance(module.state, dict):
            raise _Refused("its root is no module")
        known = self.registered.get(module.kind)
        for name, value in module.state.items():
            if isinstance(value, _Module):
                yield from self._below(value, f"{prefix}{name}.")
            elif isinstance(value, Tensor) and (known is None or name in known):
                yield f"{prefix}{name}", value

    def storage(self, kind: torch.dtype, key: str, count: int) -> Tensor:
        """Return the raw numbers of one storage [count]."""
        entry = self.file.getinfo(f"{self.root}/data/{key}")
        # never compressed, so that a small file cannot ask for much memory
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != count * kind.itemsize:
            raise _Refused(f"its storage {key} is not {count} numbers of {kind}")
        if not count:
            return torch.empty(0, dtype=kind)
        return torch.frombuffer(bytearray(self.file.read(entry)), dtype=kind)


class _Reader(pickle.Unpickler):
    """An unpickler that knows tensors and inert modules, and refuses every other name."""

    def __init__(self, data: Any, archive: _Archive) -> None:
        super().__init__(data)
        self.archive = archive
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return type("Module", (_Module,), {"kind": f"{module}.{name}"})
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in _KINDS:
            return _KINDS[name]
        if module == "torch.jit._pickle" and name in _LISTS:
            return _as_it_is
        raise _Refused(f"it wants to execute {module}.{name}")

    def persistent_load(self, pid: Any) -> Tensor:
        word, kind, key, _, count = pid
        if word != "storage" or not isinstance(kind, torch.dtype):
            raise _Refused("it refers to something that is no storage")
        if key not in self.storages:
            self.storages[key] = self.archive.storage(kind, str(key), int(count))
        return self.storages[key]


def _tensor(storage: Tensor, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    return torch.as_strided(storage, tuple(size), tuple(stride), offset)


def _as_it_is(value: Any, *_: Any) -> Any:
    return value
