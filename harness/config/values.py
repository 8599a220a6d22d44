"""A configuration tree as a mapping, as YAML and as a signature; differences of two trees."""

import dataclasses
import hashlib
import json
from typing import Any

from harness.config.fields import keys
from harness.config.yaml_files import to_text


def to_mapping(config: Any, *, with_runtime: bool = True, whole: Any = None) -> dict[str, Any]:
    """Return a configuration tree as nested mappings.

    with_runtime: False leaves out all that is not part of the signature. whole: the tree that
    `config` is a section of; None: `config` itself.
    """
    result: dict[str, Any] = {}
    whole = config if whole is None else whole
    for item in dataclasses.fields(config):
        if not with_runtime and item.metadata.get("runtime"):
            continue
        value = getattr(config, item.name)
        if not with_runtime and item.metadata.get("unless_empty") and value == item.default:
            continue
        counts = item.metadata.get("where_it_counts")
        if not with_runtime and counts is not None and not counts(whole):
            continue
        if dataclasses.is_dataclass(value):
            value = to_mapping(value, with_runtime=with_runtime, whole=whole)
        elif isinstance(value, tuple):
            value = list(value)
        result[item.name] = value
    if not with_runtime:
        result |= {key: gone.only for key, gone in getattr(config, "removed", {}).items()}
    return result


def signature(config: Any) -> str:
    """Return the 12 hex digits that name a run: a hash of everything that can change its result."""
    text = json.dumps(to_mapping(config, with_runtime=False), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def to_yaml(config: Any) -> str:
    """Return the resolved tree as YAML, in the order of the dataclasses."""
    return to_text(to_mapping(config))


def differences(base: Any, other: Any) -> dict[str, tuple[Any, Any]]:
    """Return the dotted keys on which two trees of one schema differ, with both values."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in keys(type(base)):
        a, b = value_at(base, key), value_at(other, key)
        if a != b:
            found[key] = (a, b)
    return found


def value_at(config: Any, key: str) -> Any:
    """Return the value of a dotted key of a tree; raises AttributeError when there is none."""
    node = config
    for part in key.split("."):
        node = getattr(node, part)
    return node
