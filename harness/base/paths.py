"""Paths with `~`, environment variables, `..` and names that are not UTF-8."""

import os
import re
import shlex
from collections.abc import Mapping
from functools import lru_cache

from harness.base.errors import UserError

SEARCH_PATH = {":": "separates the folders in PYTHONPATH, where jobs find their code"}
"""What a path may not hold where Python finds modules in it, and why."""
NO_UTF8 = "bytes that are not UTF-8"
SAFETENSORS = {NO_UTF8: "cannot be in the path of weights (safetensors)"}
"""What the path of a run and of a weights file may not hold."""


def expanded(path: str) -> str:
    """Return a path with `~` and `$VARIABLE` replaced as a shell does, except in names that exist
    as written and for a variable that is not set."""
    if ("~" not in path and "$" not in path) or _is_there(path):
        return path
    try:
        return os.path.expanduser(os.path.expandvars(path))
    except ValueError:  # `~` with a character that no user's name has
        return path


def unknown_in(path: str) -> str:
    """Return what `expanded` could not replace, such as `$SCRATCH` or `~anna`; "" when nothing."""
    if _is_there(path):
        return ""
    left = re.search(r"\$(\w+|\{\w+\})", path) or re.match(r"~[^/]*", path)
    return left[0] if left else ""


def _is_there(path: str) -> bool:
    """Return whether a path exists as written, or its folder up to the last `$` in a name."""
    head, dollar, tail = path.rpartition("$")
    named = head + dollar + tail.partition("/")[0]
    return os.path.lexists(path) or (bool(dollar) and os.path.lexists(named))


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


def typed(path: str | os.PathLike[str], before: str = "") -> str:
    """Return a path as it is typed in a shell, within one line; before: text such as `key=`."""
    text = os.fspath(path)
    text = before + (f"./{text}" if text.startswith("-") and not before else text)
    if text.isprintable():
        return shlex.quote(text)
    escaped = [letter if letter.isprintable() and letter not in "'\\" else
               "".join(f"\\x{byte:02x}" for byte in os.fsencode(letter)) for letter in text]
    return f"$'{''.join(escaped)}'"


def is_utf8(text: str) -> bool:
    """Return whether a name is UTF-8, that is, has no lone surrogates for other bytes."""
    return not any("\udc80" <= letter <= "\udcff" for letter in text)


def refuse(where: str, path: str | os.PathLike[str], letters: Mapping[str, str]) -> None:
    """Raise UserError for a path that would be read as another one.

    where: what sets the path. letters: why each text may not be in it; the key NO_UTF8 stands for
    names that are not UTF-8.
    """
    text = os.fspath(path)
    found = [f"{letter if letter == NO_UTF8 else repr(letter)} {why}"
             for letter, why in letters.items()
             if (not is_utf8(text) if letter == NO_UTF8 else letter in text)]
    if found:
        raise UserError(f"{where}: {shown(text)!r} cannot be used here: {'; '.join(found)}; "
                        "name a folder without that")
