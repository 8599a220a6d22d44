"""Nested mappings by dotted key."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

NUMBERS = (int, float)  # a union takes twice the time; results have a hundred numbers each


def leaves(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of a nested mapping by dotted key, such as `data.height`."""
    found: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            found |= leaves(item, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = item
    return found


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Return a name for each dotted key: its last part, or the whole key where others end alike."""
    ends = {key: key.rpartition(".")[2] for key in keys}
    counts = Counter(ends.values())
    return {key: end if counts[end] == 1 else key for key, end in ends.items()}


def numeric_leaves(value: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Return the numbers of a nested mapping by dotted key, such as `validation.accuracy`."""
    found: dict[str, float] = {}
    for key, item in value.items():
        if is_number(item):  # first, as most are numbers, and this is the quicker test
            found[f"{prefix}{key}"] = item
        elif isinstance(item, Mapping):
            found |= numeric_leaves(item, f"{prefix}{key}.")
    return found


def is_number(value: Any) -> bool:
    """Return whether a value is a number: neither True nor NaN."""
    return isinstance(value, NUMBERS) and not isinstance(value, bool) and value == value


def lookup(entry: Mapping[str, Any] | None, key: str) -> Any:
    """Return the value of a dotted key in nested mappings, None when there is none."""
    node: Any = entry
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node
