"""Checks of a configuration's values: each yields the keys that are wrong, and why."""

import math
from collections.abc import Iterator

from harness.base.paths import unknown_in

Faults = Iterator[tuple[str, str]]
"""Keys and what is wrong with their values."""


def unset(key: str, path: str | None) -> Faults:
    """Yield a path with an unknown variable or user name, or that no file can have."""
    if faults := list(no_name(key, path)):
        yield from faults
    elif unknown := unknown_in(path or ""):
        yield key, f"{path}: {unknown} is not known on this machine"


def no_name(key: str, path: str | None) -> Faults:
    """Yield an empty path, or one with a character of no file name."""
    if path == "":
        yield key, "is empty; name a file or folder"
    if "\0" in (path or ""):
        yield key, f"{path!r} has a NUL character, which no file name has"


def at_least(node: object, least: int, *keys: str, unit: str = "") -> Faults:
    for key in keys:
        if (value := getattr(node, key)) is not None and value < least:
            yield key, f"must be at least {least}{unit}, found {value}"


def between(node: object, low: float, high: float, *keys: str) -> Faults:
    for key in keys:
        if (value := getattr(node, key)) is not None and not low <= value <= high:
            yield key, f"must lie between {low} and {high}, found {value}"


def not_negative(node: object, *keys: str) -> Faults:
    for key in keys:
        if not 0 <= getattr(node, key) < math.inf:  # written so that NaN is refused too
            yield key, f"must be finite and not negative, found {getattr(node, key)}"


def positive(node: object, *keys: str) -> Faults:
    for key in keys:
        if not 0 < getattr(node, key) < math.inf:
            yield key, f"must be finite and greater than 0, found {getattr(node, key)}"
