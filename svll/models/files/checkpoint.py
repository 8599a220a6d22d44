"""Checkpoints of other programs: the one model's tensors in a file, however they are wrapped.

A model is a mapping of tensors whose names are of a known kind. Mappings are looked for at any
place in the file, so the names of wrappers (`state_dict`, `model`, `net`) do not matter. Parts that
DDP, torch.compile and FSDP add to names are left out of them, and so is a beginning that all names
have, such as Lightning's `model.`. Two different models, such as a model and its average, are
refused: which one is meant is not known.
"""

import mmap
from collections.abc import Callable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from harness.base.errors import UserError
from svll.models.files.pickled import (
    FAULTS,
    Inert,
    Refused,
    Storage,
    Stored,
    Unpickler,
    Zip,
    as_numbers,
    opened_zip,
)

ADDED = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Parts of names that come from what a model was wrapped in."""
DEEPEST = 100
"""Mappings inside of each other."""
MAGIC = 0x1950A86A20F9469CFC6C
"""At the beginning of a file of torch before 1.6, which is no zip."""
Value = Stored | Tensor
Named = dict[str, list[Value]]
"""Tensors by plain name; a name has several if it is in the file with different wrappers."""
Numbers = Callable[[Storage], Tensor]


class Kind(NamedTuple):
    """What models are looked for in a file."""

    beginnings: tuple[str, ...]  # of names, at least one of which a model has
    expected: str  # for messages


class Model(NamedTuple):
    """A mapping of a file that is a model."""

    place: str
    mapping: Mapping[Any, Any]
    named: Named


def read_checkpoint(path: Path, kind: Kind) -> dict[str, Tensor]:
    """Return the tensors of the one model in a file of torch.save or safetensors.

    Raises UserError for a damaged file, for none or two different models in it, and for two
    different tensors of one name.
    """
    try:
        return _found(path, kind)
    except Refused as error:
        raise UserError(f"{path}: not read, because {_clean(str(error))}") from None
    except (*FAULTS, SafetensorError) as error:
        raise damaged(path, error) from None


def _found(path: Path, kind: Kind) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return model_among(load_file(path), path, kind)
    with opened_zip(path) as file:
        if file is None:
            return _old_model(path, kind)
        entries = Zip(file)
        content = Unpickler(BytesIO(entries.read("data.pkl"))).load()
        return _model(content, path, kind, entries.numbers)


def model_among(tensors: dict[str, Tensor], path: Path, kind: Kind) -> dict[str, Tensor]:
    """Return what `read_checkpoint` does, of tensors that were read already."""
    return _model(tensors, path, kind, lambda _: torch.empty(0))


def damaged(path: Path, error: Exception) -> UserError:
    """Return the error of a file that cannot be read."""
    first = str(error).strip().splitlines()[:1] or [type(error).__name__]
    return UserError(f"{path}: damaged, or not a weights file ({_clean(first[0][:200])})")


def _clean(text: str) -> str:
    """Return a text of a file as one that can be printed; a pickle's may be no Unicode."""
    return text.encode("utf-8", "backslashreplace").decode()


def _old_model(path: Path, kind: Kind) -> dict[str, Tensor]:
    """Return what `read_checkpoint` does for a file of torch before 1.6: pickles, then numbers."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:1] != b"\x80" or Unpickler(data).load() != MAGIC:
            raise ValueError("not written by torch.save")
        _, machine = Unpickler(data).load(), Unpickler(data).load()
        if machine.get("little_endian") is not True:
            raise Refused("its numbers are big-endian")
        pickled = Unpickler(data)
        content = pickled.load()
        places: dict[str, tuple[int, int]] = {}
        for key in Unpickler(data).load():
            of = pickled.kinds.get(key)
            if not isinstance(of, torch.dtype):
                raise Refused(f"its storage {key} has numbers of an unknown type")
            count = int.from_bytes(data.read(8), "little", signed=True)
            places[key] = data.tell(), count
            data.seek(count * of.itemsize, 1)

        def numbers(storage: Storage) -> Tensor:
            start, count = places[storage.key]
            if count != storage.count:
                raise Refused(f"its storage {storage.key} is not {storage.count} numbers")
            end = start + count * storage.kind.itemsize
            return as_numbers(bytearray(data[start:end]), storage.kind)

        return _model(content, path, kind, numbers)


def _model(content: Any, path: Path, kind: Kind, numbers: Numbers) -> dict[str, Tensor]:
    models = [Model(place, mapping, named) for place, mapping in _mappings(content, "", set())
              if (named := _named(mapping, kind))]
    if not models:
        raise UserError(f"{path}: {_unknown(content, kind)}; expected are {kind.expected}")
    first, *others = models
    tensors = _read(first, path, kind, numbers)
    for other in others:
        more = _read(other, path, kind, numbers)
        if more.keys() != tensors.keys() or not all(_equal(tensors[n], more[n]) for n in more):
            raise UserError(f"{path}: holds two different models: {_shown(first.place)} and "
                            f"{_shown(other.place)}; save the one that you mean in a separate file")
    return tensors


def _mappings(
    content: Any, place: str, seen: set[int]
) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Yield all mappings of a file with their places in it, each once."""
    if not isinstance(content, dict | list | tuple) or id(content) in seen:
        return
    if place.count("\n") > DEEPEST:
        raise Refused(f"more than {DEEPEST} of its mappings are inside of each other")
    seen.add(id(content))
    if isinstance(content, dict):
        yield place, content
    for key, value in content.items() if isinstance(content, dict) else enumerate(content):
        if isinstance(key, str | int):
            yield from _mappings(value, f"{place}\n{key}", seen)


def _shown(place: str) -> str:
    return _clean(".".join(place.split("\n")[1:])[:100]) or "its top"


def _plain(name: str) -> str:
    return ".".join(part for part in _clean(name).split(".") if part not in ADDED)


def _named(mapping: Mapping[Any, Any], kind: Kind) -> Named:
    """Return a mapping's tensors by plain name; {} if no name begins as those of a model do."""
    named: Named = {}
    for name, value in mapping.items():
        if isinstance(name, str) and isinstance(value, Stored | Tensor):
            named.setdefault(_plain(name), []).append(value)
    while named and not any(name.startswith(kind.beginnings) for name in named):
        first = next(iter(named)).partition(".")[0] + "."
        if not all(name.startswith(first) for name in named):
            return {}
        named = {name.removeprefix(first): values for name, values in named.items()}
    return named


def _unknown(content: Any, kind: Kind) -> str:
    """Return what is wrong with a file in which no model was found."""
    names = [[_clean(name) for name, value in mapping.items()
              if isinstance(name, str) and isinstance(value, Stored | Tensor)]
             for _, mapping in _mappings(content, "", set())]
    for some in names:
        inner = [n for n in some if any(f".{word}" in f".{_plain(n)}" for word in kind.beginnings)]
        if inner:
            first = inner[0].split(".")[0]
            others = [name for name in some if name.split(".")[0] != first] or some
            return (f"its tensors' names begin in different ways ({inner[0]}, {others[0]}); save "
                    "the model's own state_dict()")
    if tensors := max(names, key=len, default=[]):
        return f"unknown tensor names (holds {', '.join(tensors[:3])})"
    parts = [content, *(content.values() if isinstance(content, dict) else ())]
    kinds = dict.fromkeys(_clean(part.kind)[:100] for part in parts if isinstance(part, Inert))
    return f"holds no tensors, but {', '.join([*kinds][:3]) or 'other values'}; save a state_dict()"


def _read(model: Model, path: Path, kind: Kind, numbers: Numbers) -> dict[str, Tensor]:
    """Return a model's tensors; UserError for different ones of one name."""
    for name, value in model.mapping.items():
        if _is_lost(name, value, kind):
            raise Refused(f"its {name} is no tensor, or a sparse, quantised or other special one")
    tensors = {}
    for name, values in model.named.items():
        first, *others = [_tensor(value, numbers) for value in values]
        if not all(_equal(first, other) for other in others):
            raise UserError(f"{path}: {_shown(model.place)} has two different tensors named {name}"
                            f", apart from {' and '.join(sorted(ADDED))}; save only one of them")
        tensors[name] = first
    return tensors


def _is_lost(name: Any, value: Any, kind: Kind) -> bool:
    """Return whether a value beside a model's tensors looks like one of them."""
    if not isinstance(name, str) or isinstance(value, Stored | Tensor):
        return False
    if any(f".{word.split('.')[0]}." in f".{_plain(name)}" for word in kind.beginnings):
        return True
    return isinstance(value, Inert) and (
        value.kind.startswith("torch._") or value.kind.endswith(".multiarray._reconstruct"))


def _tensor(value: Value, numbers: Numbers) -> Tensor:
    # tensors of a file may share their numbers, and safetensors' are the file; a model's must not
    view = value if isinstance(value, Tensor) else value.tensor(numbers(value.storage))
    return view.clone(memory_format=torch.contiguous_format)


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)
