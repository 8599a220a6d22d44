"""Every key of a configuration in words: type, default, what it is for, and what it may change.

What a key is for is the text that follows its field in the source: Python throws such texts away,
so they are read from the file.
"""

import ast
import dataclasses
import difflib
import inspect
import sys
import textwrap
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from types import ModuleType
from typing import Any

from harness.base.errors import UserError
from harness.config.casts import type_words
from harness.config.yaml_files import to_text

MARKS = {
    "runtime": "outside the signature",
    "unless_empty": "in the signature where set",
    "where_it_counts": "in the signature where it changes the result",
    "changeable": "changeable",
}
"""What is said of a field that has been marked so (`harness.config.build`)."""
LEGEND = {
    MARKS["runtime"]: "does not change the result, and so not which run it is",
    MARKS["changeable"]: "population based training may change it while a run is trained",
}
BELOW = " " * 6
"""Before what is said under a key."""


@dataclass(frozen=True)
class Key:
    """One key: `kind` and `default` as a user would write them, `text` what it is for."""

    name: str
    kind: str
    default: str
    text: str
    marks: tuple[str, ...]


@dataclass(frozen=True)
class Section:
    """The keys of one dataclass, and what it says of itself."""

    prefix: str
    """What its keys begin with; empty at the top."""
    text: str
    keys: tuple[Key, ...]


def field_texts(schema: type) -> dict[str, str]:
    """Return the text that follows each field of a dataclass in its source, by the field's name.

    Fields without one are left out; those of base classes are there.
    """
    found: dict[str, str] = {}
    for kind in reversed(schema.__mro__[:-1]):
        body = _classes(sys.modules[kind.__module__])[kind.__name__].body
        for item, after in pairwise(body):
            if not isinstance(item, ast.AnnAssign) or not isinstance(after, ast.Expr):
                continue
            text = ast.literal_eval(after.value) if isinstance(after.value, ast.Constant) else None
            if isinstance(text, str):
                found[ast.unparse(item.target)] = " ".join(text.split())
    return found


@cache
def _classes(module: ModuleType) -> dict[str, ast.ClassDef]:
    tree = ast.parse(inspect.getsource(module))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def sections(schema: type, prefix: str = "") -> Iterator[Section]:
    """Yield a schema's sections, each before those inside it; `prefix` is put before its keys."""
    hints, texts = typing.get_type_hints(schema), field_texts(schema)
    own, below = [], []
    for item in dataclasses.fields(schema):
        kind = hints[item.name]
        if dataclasses.is_dataclass(kind):
            below.append((typing.cast(type, kind), f"{prefix}{item.name}."))
            continue
        marks = tuple(words for mark, words in MARKS.items() if item.metadata.get(mark))
        own.append(Key(
            f"{prefix}{item.name}", type_words(kind), _written(item), texts.get(item.name, ""),
            marks,
        ))
    yield Section(prefix.rstrip("."), " ".join((schema.__doc__ or "").split()), tuple(own))
    for kind, place in below:
        yield from sections(kind, place)


def _written(item: "dataclasses.Field[Any]") -> str:
    """Return a field's default as it would be written in a recipe."""
    value = item.default
    if item.default_factory is not dataclasses.MISSING:
        value = item.default_factory()
    value = list(value) if isinstance(value, tuple) else value
    text = to_text(value, default_flow_style=True, width=1000)
    return text.removesuffix("\n").removesuffix("\n...")


def config_help(schemas: Mapping[str, type], words: Sequence[str] = (), width: int = 80) -> str:
    """Return the help on all keys of some schemas, which are given by what their keys begin with.

    words: only keys that hold one of them, such as `train` or `lr`. width: of a line. Raises
    UserError for a word that no key holds.
    """
    found = [part for prefix, schema in schemas.items() for part in sections(schema, prefix)]
    names = [key.name for part in found for key in part.keys]
    for word in words:
        if not any(word in name for name in names):
            parts = sorted({part for name in names for part in name.split(".")})
            near = difflib.get_close_matches(word, parts, n=1)
            told = f"did you mean {near[0]}?" if near else "without it all keys are printed"
            raise UserError(f"--help-config: no key holds {word!r}; {told}")
    lines: list[str] = []
    marks: set[str] = set()
    for part in found:
        shown = [key for key in part.keys if not words or any(word in key.name for word in words)]
        if shown:
            title = f"{part.prefix}: {part.text}" if part.prefix else part.text
            lines += [*textwrap.wrap(title, width), ""]
            lines += [line for key in shown for line in _lines(key, width)]
            lines.append("")
            marks |= {mark for key in shown for mark in key.marks}
    lines += [f"{mark}: {meaning}" for mark, meaning in LEGEND.items() if mark in marks]
    return "\n".join(lines).rstrip()


def _lines(key: Key, width: int) -> list[str]:
    facts = "; ".join([f"{key.kind}, default {key.default}", *key.marks])
    first = textwrap.wrap(f"  {key.name}: {facts}", width, subsequent_indent=BELOW)
    return [*first, *textwrap.wrap(f"{BELOW}{key.text}".rstrip(), width, subsequent_indent=BELOW)]
