"""Schemas, which are trees of dataclasses: marks of their fields, dotted keys and types.

A run is named by its signature, a hash of its configuration (`harness.config.values`). Marks
exclude fields from it.
"""

import dataclasses
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import field
from typing import Any, NamedTuple


def runtime(default: Any = dataclasses.MISSING, *, factory: Any = dataclasses.MISSING) -> Any:
    """Mark a field that cannot change a result, such as a folder: never part of the signature."""
    return field(default=default, default_factory=factory, metadata={"runtime": True})


def changeable(default: Any) -> Any:
    """Mark a field whose value may change during a run, as population based training does."""
    return field(default=default, metadata={"changeable": True})


def changeable_keys(schema: type) -> set[str]:
    """Return the dotted keys of a schema's `changeable` fields."""
    return {key for key, item, _ in _fields(schema) if item.metadata.get("changeable")}


def unless_empty(default: Any) -> Any:
    """Mark a field that is part of the signature only if it differs from its default. A schema can
    gain such a field without renaming earlier runs."""
    return field(default=default, metadata={"unless_empty": True})


def where_it_counts(default: Any, counts: Callable[[Any], bool]) -> Any:
    """Mark a field that is part of the signature only of trees for which `counts` is true. A new
    default then renames only the runs whose result it changes."""
    return field(default=default, metadata={"where_it_counts": counts})


def field_types(schema: type) -> dict[str, Any]:
    """Return the type of each dotted key of a schema, in order."""
    return {key: kind for key, _, kind in _fields(schema)}


def _fields(schema: type, prefix: str = "") -> Iterator[tuple[str, "dataclasses.Field[Any]", Any]]:
    """Yield the dotted key, the field and its type of all keys."""
    hints = typing.get_type_hints(schema)
    for item in dataclasses.fields(schema):
        key, kind = f"{prefix}{item.name}", hints[item.name]
        if dataclasses.is_dataclass(kind):
            yield from _fields(typing.cast(type, kind), f"{key}.")
        else:
            yield key, item, kind


class Removed(NamedTuple):
    """A key that an earlier version of a schema had."""

    only: Any
    """The value that is still accepted: the present behaviour."""
    advice: str
    """What to set instead."""
    replaced_by: Mapping[str, Any]
    """Settings, by dotted key, that stand for any other value in a finished run's configuration."""


def removed_keys(schema: type, prefix: str = "") -> dict[str, Removed]:
    """Return the removed keys of a schema, from the class variables `removed` of its tree.

    Such a key is still accepted with one value, and remains part of the signature, so that earlier
    runs keep their names.
    """
    own: Mapping[str, Removed] = getattr(schema, "removed", {})
    found = {f"{prefix}{key}": gone for key, gone in own.items()}
    for name, section in subsections(schema).items():
        found |= removed_keys(section, f"{prefix}{name}.")
    return found


def subsections(schema: type) -> dict[str, type]:
    """Return the types of the fields of a dataclass that are dataclasses themselves."""
    hints = typing.get_type_hints(schema)
    names = [item.name for item in dataclasses.fields(schema)]
    return {name: hints[name] for name in names if dataclasses.is_dataclass(hints[name])}


def text_fields(schema: type) -> Callable[[str], bool]:
    """Return a function that returns whether a dotted key of a schema holds strings only."""
    kinds = field_types(schema)

    def holds_text(kind: Any) -> bool:
        args = [one for one in typing.get_args(kind) if one is not type(None)]
        return kind is str or (bool(args) and all(map(holds_text, args)))

    def texts(key: str) -> bool:
        above = kinds.get(key.rpartition(".")[0])
        return holds_text(kinds.get(key, above if typing.get_origin(above) is dict else None))

    return texts
