"""Paths with `~`, environment variables, `..` and names that are not UTF-8."""

import os
import re
from functools import lru_cache


def expanded(path: str) -> str:
    """Return a path with `~` and `$VARIABLE` replaced as a shell does, except in a name that exists
    as written and for a variable that is not set."""
    if ("~" not in path and "$" not in path) or os.path.lexists(path):
        return path
    return os.path.expanduser(os.path.expandvars(path))


def unknown_in(path: str) -> str:
    """Return what `expanded` could not replace, such as `$SCRATCH` or `~anna`; "" when nothing."""
    if os.path.lexists(path):
        return ""
    left = re.search(r"\$(\w+|\{\w+\})", path) or re.match(r"~[^/]*", path)
    return left[0] if left else ""


def normal(path: str) -> str:
    """Return an absolute path without `.` and `..`; follow a link before `..`, as `open` does."""
    if ".." not in path.split(os.sep):
        return os.path.abspath(path)
    folder, name = os.path.split(path)
    return os.path.abspath(os.path.join(_real(folder), name))


@lru_cache(maxsize=10_000)  # a list of 100,000 images has few folders
def _real(folder: str) -> str:
    return os.path.realpath(folder)


def shown(path: str | os.PathLike[str]) -> str:
    """Return a path for display, with replacement characters for bytes that are not UTF-8."""
    return os.fsencode(path).decode("utf-8", "replace")


def is_utf8(text: str) -> bool:
    """Return whether a name is UTF-8, that is, has no lone surrogates for other bytes."""
    return not any("\udc80" <= letter <= "\udcff" for letter in text)
