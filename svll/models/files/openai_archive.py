"""OpenAI's weights as the clip package downloads them: TorchScript archives, read without running.

Such a file is a zip of code, a pickle of its object tree, and raw numbers. Only tensors are taken
from the pickle; nothing in the file is ever called.
"""

import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.base.errors import UserError
from svll.models.files.pickled import (
    FAULTS,
    KINDS,
    REBUILD_TENSOR,
    Maker,
    Refused,
    Storage,
    Stored,
    Unpickler,
    Zip,
    opened_zip,
)

NO_WEIGHTS = ("input_resolution", "context_length", "vocab_size")
"""Entries of OpenAI's archives besides weights."""
Names = dict[str, set[str]]
_LISTS = re.compile("build_(int|double|bool|tensor)list|restore_type_tag")
_CLASS = re.compile(
    r"^class (\w+)\(Module\):\n  __parameters__ = \[(.*?)\]\n  __buffers__ = \[(.*?)\]", re.M
)


def is_archive(path: Path) -> bool:
    """Whether a file is a TorchScript archive (a plain checkpoint is a zip without constants)."""
    with opened_zip(path) as file:
        return file is not None and any(n.endswith("/constants.pkl") for n in file.namelist())


def read_archive(path: Path) -> dict[str, Tensor]:
    """Return an archive's parameters and buffers, fp16 as fp32; UserError for other content."""
    try:
        with zipfile.ZipFile(path) as file:
            entries = Zip(file)
            module = _Reader(BytesIO(entries.read("data.pkl"))).load()
            state = {name: stored.tensor(entries.numbers(stored.storage))
                     for name, stored in _tensors(module, "", _registered(entries))}
    except Refused as error:
        raise UserError(f"{path}: not read, because {error}") from None
    except FAULTS as error:
        raise UserError(f"{path}: a damaged TorchScript archive ({error})") from None
    return {
        name: value.float() if value.dtype == torch.float16 else value
        for name, value in state.items() if name not in NO_WEIGHTS
    }


class _Module:
    """Replaces every class of the archive: keeps its state and does nothing with it."""

    kind = ""

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _registered(entries: Zip) -> Names:
    """Return which attributes of each class are parameters or buffers, parsed from the code."""
    found, start = {}, f"{entries.root}/code/"
    for name in entries.file.namelist():
        if name.startswith(start) and name.endswith(".py"):
            module = name.removeprefix(start).removesuffix(".py").replace("/", ".")
            for kind, *lists in _CLASS.findall(entries.file.read(name).decode()):
                found[f"{module}.{kind}"] = set(re.findall(r'"([^"]*)"', " ".join(lists)))
    return found


def _tensors(module: Any, prefix: str, registered: Names) -> Iterator[tuple[str, Stored]]:
    """Yield a module's tensors by their dotted names."""
    if not isinstance(module, _Module) or not isinstance(module.state, dict):
        raise Refused("its root is no module")
    known = registered.get(module.kind)
    for name, value in module.state.items():
        if isinstance(value, _Module):
            yield from _tensors(value, f"{prefix}{name}.", registered)
        elif isinstance(value, Stored) and (known is None or name in known):
            yield f"{prefix}{name}", value


class _Reader(Unpickler):
    """Knows tensors and inert modules, and refuses every other name."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return type("Module", (_Module,), {"kind": f"{module}.{name}"})
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return REBUILD_TENSOR
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in KINDS:
            return KINDS[name]
        if module == "torch.jit._pickle" and _LISTS.fullmatch(name):
            return Maker(lambda value, *_: value)
        raise Refused(f"it wants to execute {module}.{name}")

    def persistent_load(self, pid: Any) -> Storage:
        """Return the storage that a pickle refers to."""
        storage = super().persistent_load(pid)
        if not isinstance(storage.kind, torch.dtype):
            raise Refused("it refers to something other than a storage")
        return storage
