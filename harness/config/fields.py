"""What a schema holds: marks of fields, dotted keys with their types, keys that it had."""

import dataclasses
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import field
from typing import Any, NamedTuple

from harness.config.yaml_files import Texts


def runtime(default: Any = dataclasses.MISSING, *, factory: Any = dataclasses.MISSING) -> Any:
    """A dataclass field that says where or how fast a run runs, never what it computes."""
    if factory is not dataclasses.MISSING:
        return field(default_factory=factory, metadata={"runtime": True})
    return field(default=default, metadata={"runtime": True})


def changeable(default: Any) -> Any:
    """A dataclass field that may get another value while a run goes on: it shapes nothing."""
    return field(default=default, metadata={"changeable": True})


def changeable_keys(schema: type, prefix: str = "") -> set[str]:
    """Return the dotted keys of a schema's `changeable` fields."""
    found = set()
    for item in dataclasses.fields(schema):
        section = subsections(schema).get(item.name)
        if section is not None:
            found |= changeable_keys(section, f"{prefix}{item.name}.")
        elif item.metadata.get("changeable"):
            found.add(f"{prefix}{item.name}")
    return found


def unless_empty(default: Any) -> Any:
    """A dataclass field that is part of the signature only where it is not its default.

    So a schema can gain a field and the runs made before keep their names.
    """
    return field(default=default, metadata={"unless_empty": True})


def where_it_counts(default: Any, counts: Callable[[Any], bool]) -> Any:
    """A dataclass field that is part of the signature only of trees for which `counts` is true.

    So the default can change for runs whose result it changes, and all other runs keep their names.
    """
    return field(default=default, metadata={"where_it_counts": counts})


def keys(schema: type) -> Iterator[str]:
    """Yield the dotted keys of a schema, in order."""
    yield from field_types(schema)


def field_types(schema: type, prefix: str = "") -> dict[str, Any]:
    """Return the type of each dotted key of a schema."""
    hints = typing.get_type_hints(schema)
    found: dict[str, Any] = {}
    for item in dataclasses.fields(schema):
        kind = hints[item.name]
        if dataclasses.is_dataclass(kind):
            found.update(field_types(typing.cast(type, kind), f"{prefix}{item.name}."))
        else:
            found[f"{prefix}{item.name}"] = kind
    return found


class Removed(NamedTuple):
    """A key that a schema had."""

    only: Any
    """The one value that means what is done now."""
    advice: str
    replaced_by: Mapping[str, Any]
    """The settings, by dotted key, that another value in a finished run's configuration means."""


def removed_keys(schema: type, prefix: str = "") -> dict[str, Removed]:
    """Return the keys that a schema had.

    A dataclass of the tree names them in a class variable `removed`. Such a key with that value may
    still be given, and stays part of the signature: runs made before keep their names.
    """
    own: Mapping[str, Removed] = getattr(schema, "removed", {})
    found = {f"{prefix}{key}": gone for key, gone in own.items()}
    for name, section in subsections(schema).items():
        found |= removed_keys(section, f"{prefix}{name}.")
    return found


def subsections(schema: type) -> dict[str, type]:
    hints = typing.get_type_hints(schema)
    return {
        item.name: hints[item.name]
        for item in dataclasses.fields(schema)
        if dataclasses.is_dataclass(hints[item.name])
    }


def text_fields(schema: type) -> Texts:
    """Return a function that says whether a dotted key of a schema holds text and nothing else."""
    kinds = field_types(schema)

    def holds_text(kind: Any) -> bool:
        args = [one for one in typing.get_args(kind) if one is not type(None)]
        return kind is str or (bool(args) and all(map(holds_text, args)))

    def texts(key: str) -> bool:
        above = kinds.get(key.rpartition(".")[0])
        return holds_text(kinds.get(key, above if typing.get_origin(above) is dict else None))

    return texts
