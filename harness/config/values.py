"""A configuration tree as a mapping and as YAML; differences of two trees."""

import dataclasses
import operator
from typing import Any

from harness.config.fields import field_types
from harness.config.yaml_files import to_text


def to_mapping(config: Any, *, with_runtime: bool = True, whole: Any = None) -> dict[str, Any]:
    """Return a configuration tree as nested mappings.

    with_runtime: False leaves out everything outside the signature. whole: the tree that contains
    the section `config`; None: `config` itself.
    """
    result: dict[str, Any] = {}
    whole = config if whole is None else whole
    for item in dataclasses.fields(config):
        value, marks = getattr(config, item.name), item.metadata
        if not with_runtime and (
            marks.get("runtime") or (marks.get("unless_empty") and value == item.default)
            or ("where_it_counts" in marks and not marks["where_it_counts"](whole))
        ):
            continue
        if dataclasses.is_dataclass(value):
            value = to_mapping(value, with_runtime=with_runtime, whole=whole)
        elif isinstance(value, tuple):
            value = list(value)
        result[item.name] = value
    if not with_runtime:
        result |= {key: gone.only for key, gone in getattr(config, "removed", {}).items()}
    return result


def to_yaml(config: Any) -> str:
    """Return the resolved tree as YAML, in the order of the dataclasses."""
    return to_text(to_mapping(config))


def differences(base: Any, other: Any) -> dict[str, tuple[Any, Any]]:
    """Return the dotted keys on which two trees of one schema differ, with both values."""
    pairs = {key: (value_at(base, key), value_at(other, key)) for key in field_types(type(base))}
    return {key: (a, b) for key, (a, b) in pairs.items() if a != b}


def value_at(config: Any, key: str) -> Any:
    """Return the value of a dotted key of a tree. Raises AttributeError for an unknown key."""
    return operator.attrgetter(key)(config)
