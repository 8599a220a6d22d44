"""A value as a configuration's key takes it: at the key's type, and what is said of a misfit."""

import re
import sys
import types
import typing
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

REFERENCE = re.compile(r"\$\{([a-z][^}]*)\}")
"""`${key}` stands for another key's value; in capitals it is a variable of the environment."""
MISSING = "???"
"""What Hydra's recipes write for a value that must be given; never a text."""
TRUTHS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
"""Words accepted for a boolean field."""


def at_type(value: Any, kind: Any) -> Any:
    """Return a value as a field of a type holds it: 1 as 1.0, yes as True, [1, 2] as a tuple.

    Raises ValueError when it does not fit. A reference to another key may stand for anything.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any or (isinstance(value, str) and REFERENCE.search(value)):
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        for member in args:
            with suppress(ValueError):
                if member is not str or value not in ("None", "none"):  # null is meant
                    return at_type(value, member)
    elif origin in (list, tuple) and isinstance(value, list | tuple):
        kinds = args * len(value) if origin is list else args
        if len(kinds) == len(value):
            return origin(at_type(item, one) for item, one in zip(value, kinds, strict=True))
    elif origin is dict and isinstance(value, Mapping):
        return {str(key): at_type(item, args[1]) for key, item in value.items()}
    elif origin is typing.Literal and any(value == a and type(value) is type(a) for a in args):
        return value
    elif kind is bool and str(value).lower() in TRUTHS and isinstance(value, bool | str):
        return TRUTHS[str(value).lower()]
    elif kind is float and type(value) in (int, float) and abs(value) <= sys.float_info.max:
        return float(value)
    elif kind in (int, str) and type(value) is kind and value != MISSING:
        return value
    raise ValueError(misfit(value, kind))


def misfit(value: Any, kind: Any) -> str:
    """Say that a value is not of a type."""
    return f"expected {type_words(kind)}, found {value!r}"


def type_words(kind: Any) -> str:
    """Say a type as a user would: `a whole number`, `one of mask, swap, mix`, ..."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return f"one of {', '.join(str(a) for a in args)}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if a is type(None) else type_words(a) for a in args)
    if origin in (list, tuple):
        inner = [a for a in args if a is not Ellipsis]
        count = f"{len(inner)} of " if origin is tuple and len(inner) > 1 else ""
        return f"a list ({count}{type_words(inner[0])})"
    if origin is dict:
        return "a mapping"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}.get(
        kind, str(kind)
    )
