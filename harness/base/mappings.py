"""Nested mappings: as flat keys, and a value by its dotted key."""

from collections.abc import Mapping
from typing import Any


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Return the numbers of a nested mapping by dotted key, such as `validation.accuracy`."""
    found: dict[str, float] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            found |= flatten(item, f"{prefix}{key}.")
        elif isinstance(item, int | float) and not isinstance(item, bool):
            found[f"{prefix}{key}"] = item
    return found


def lookup(entry: Mapping[str, Any] | None, key: str) -> Any:
    """Return the value of a dotted key in nested mappings, None when it is not there."""
    node: Any = entry
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return None
        node = node[part]
    return node
