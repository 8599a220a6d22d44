"""The help on configuration keys: type, default, purpose, and whether a key can change a result.

The purpose of a key is the docstring after its field. Python discards such docstrings, so they are
read from the source file.
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
"""The words for each mark of a field (`harness.config.fields`)."""
LEGEND = {
    MARKS["runtime"]: "does not affect the run's ID",
    MARKS["changeable"]: "population based training may change it during a run",
}
BELOW = " " * 6
"""The indentation of a key's description."""


@dataclass(frozen=True)
class Key:
    """One key; `kind` is its type in words, `default` as a user would write it."""

    name: str
    kind: str
    default: str
    text: str
    marks: tuple[str, ...]


@dataclass(frozen=True)
class Section:
    """The keys of one dataclass, and its docstring."""

    prefix: str
    """The first part of its keys; empty at the top."""
    text: str
    keys: tuple[Key, ...]


def field_texts(schema: type) -> dict[str, str]:
    """Return the docstring after each field of a dataclass, by the field's name.

    Fields without a docstring are left out, fields of base classes are included.
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
    """Yield a schema's sections, each before those in it; `prefix`: what its keys begin with."""
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
    """Return a field's default as a recipe would write it."""
    value = item.default
    if item.default_factory is not dataclasses.MISSING:
        value = item.default_factory()
    value = list(value) if isinstance(value, tuple) else value
    text = to_text(value, default_flow_style=True, width=1000)
    return text.removesuffix("\n").removesuffix("\n...")


def config_help(schemas: Mapping[str, type], words: Sequence[str] = (), width: int = 80) -> str:
    """Return the help on all keys of some schemas.

    schemas: each by the prefix of its keys. words: only keys that contain one of these, such as
    `train` or `lr`. width: characters of a line. Raises UserError for a word that no key contains.
    """
    found = [part for prefix, schema in schemas.items() for part in sections(schema, prefix)]
    names = [key.name for part in found for key in part.keys]
    for word in words:
        if not any(word in name for name in names):
            parts = sorted({part for name in names for part in name.split(".")})
            near = difflib.get_close_matches(word, parts, n=1)
            advice = f"did you mean {near[0]}?" if near else "leave it out to print all keys"
            raise UserError(f"--help-config: no key contains {word!r}; {advice}")
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
