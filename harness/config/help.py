"""The help on configuration keys: type, default, purpose, and whether a key can change a result.
The purpose of a key is the docstring after its field, which only the source file has."""

import ast
import dataclasses
import inspect
import sys
import textwrap
import typing
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import pairwise
from types import ModuleType
from typing import Any, NamedTuple

from harness.base.errors import UserError, hint
from harness.config.casts import type_words
from harness.config.fields import subsections
from harness.config.yaml_files import to_text

MARKS = {"runtime": "outside the signature",
         "unless_empty": "in the signature where set",
         "where_it_counts": "in the signature where it changes the result",
         "changeable": "changeable"}
"""Texts for the marks of fields (`harness.config.fields`)."""
LEGEND = {MARKS["runtime"]: "does not affect the run's ID",
          MARKS["changeable"]: "population based training may change it during a run"}
BELOW = " " * 6
"""The indentation of a key's description."""


class Key(NamedTuple):
    """One key: `kind` is its type in words, `default` as a user would write it."""

    name: str
    kind: str
    default: str
    text: str
    marks: tuple[str, ...]


class Section(NamedTuple):
    """The keys of one dataclass, their first part (empty at the top) and its docstring."""

    prefix: str
    text: str
    keys: tuple[Key, ...]


def field_texts(schema: type) -> dict[str, str]:
    """Return the docstrings after the fields of a dataclass and its base classes, by field name."""
    found: dict[str, str] = {}
    for kind in reversed(schema.__mro__[:-1]):
        for pair in pairwise(_classes(sys.modules[kind.__module__])[kind.__name__].body):
            match pair:
                case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                    found[name] = " ".join(text.split())
    return found


@cache
def _classes(module: ModuleType) -> dict[str, ast.ClassDef]:
    tree = ast.parse(inspect.getsource(module))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def sections(schema: type, prefix: str = "") -> Iterator[Section]:
    """Yield a schema's sections, each before those in it; `prefix`: the start of its keys."""
    hints, texts, below = typing.get_type_hints(schema), field_texts(schema), subsections(schema)
    own = [Key(f"{prefix}{item.name}", type_words(hints[item.name]), _written(item),
               texts.get(item.name, ""),
               tuple(words for mark, words in MARKS.items() if item.metadata.get(mark)))
           for item in dataclasses.fields(schema) if item.name not in below]
    yield Section(prefix.rstrip("."), " ".join((schema.__doc__ or "").split()), tuple(own))
    for name, kind in below.items():
        yield from sections(kind, f"{prefix}{name}.")


def _written(item: "dataclasses.Field[Any]") -> str:
    """Return a field's default as YAML."""
    factory = item.default_factory
    value = item.default if factory is dataclasses.MISSING else factory()
    value = list(value) if isinstance(value, tuple) else value
    text = to_text(value, default_flow_style=True, width=1000)
    return text.removesuffix("\n").removesuffix("\n...")


def config_help(schemas: Mapping[str, type], words: Sequence[str] = (), width: int = 80) -> str:
    """Return the help on the keys of some schemas.

    schemas: each by the prefix of its keys. words: only keys that contain one of these, such as
    `train` or `lr`. width: characters of a line. Raises UserError for a word that no key contains.
    """
    all_sections = [one for prefix, schema in schemas.items() for one in sections(schema, prefix)]
    names = [key.name for section in all_sections for key in section.keys]
    for word in words:
        if not any(word in name for name in names):
            parts = sorted({part for name in names for part in name.split(".")})
            raise UserError(f"--help-config: no key contains {word!r}"
                            f"{hint(word, parts, '; leave it out to print all keys')}")
    lines: list[str] = []
    marks: set[str] = set()
    for prefix, text, keys in all_sections:
        keys = tuple(key for key in keys if not words or any(word in key.name for word in words))
        if keys:
            lines += [*textwrap.wrap(f"{prefix}: {text}" if prefix else text, width), ""]
            for key in keys:
                facts = "; ".join([f"{key.kind}, default {key.default}", *key.marks])
                for text in (f"  {key.name}: {facts}", f"{BELOW}{key.text}".rstrip()):
                    lines += textwrap.wrap(text, width, subsequent_indent=BELOW)
                marks |= set(key.marks)
            lines.append("")
    lines += [f"{mark}: {meaning}" for mark, meaning in LEGEND.items() if mark in marks]
    return "\n".join(lines).rstrip()
