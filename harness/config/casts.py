"""Strict conversion of a value to the type of its key, and the message when it does not fit."""

import re
import sys
import types
import typing
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

REFERENCE = re.compile(r"\$\{([a-z][^}]*)\}")
"""`${key}` stands for another key's value; in capitals it is an environment variable."""
MISSING = "???"
"""Hydra's mark of a required value; no string field accepts it."""
TRUTHS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
INTEGERS = range(-(2**63), 2**63)
"""Larger ones would be cut to 64 bits somewhere: two seeds would be one."""
NAMES = {int: "an integer", float: "a number", str: "a string"}


def at_type(value: Any, kind: Any) -> Any:
    """Convert a value to a field's type: 1 to 1.0 for a number, yes to True, a list to a tuple.

    A string that refers to another key is not converted. Raises ValueError for a misfit: 1.0 and
    true are not integers, "1" is not a number.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any or (isinstance(value, str) and REFERENCE.search(value)):
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        for member in args:
            with suppress(ValueError):
                if member is not str or value not in ("None", "none"):  # meant as null
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
        return float(value) + 0.0  # -0.0 is 0.0, and not another run
    elif kind in (int, str) and type(value) is kind and (
        value in INTEGERS if kind is int else value != MISSING
    ):
        return value
    raise ValueError(misfit(value, kind))


def misfit(value: Any, kind: Any) -> str:
    """Return the message for a value that does not fit a type."""
    words = type_words(kind)
    if type(value) is int and value not in INTEGERS:
        words = words.replace("an integer", "an integer of 64 bits")
    return f"expected {words}, found {value!r}"


def type_words(kind: Any) -> str:
    """Return a type in words: `an integer`, `one of mask, swap, mix`, `a list of 2 numbers`."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return f"one of {', '.join(str(a) for a in args)}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if a is type(None) else type_words(a) for a in args)
    if origin in (list, tuple):
        inner = [a for a in args if a is not Ellipsis]
        item = NAMES.get(inner[0])
        many = item.partition(" ")[2] + "s" if item else f"values, each {type_words(inner[0])}"
        return f"a list of {len(inner)} {many}" if len(inner) > 1 else f"a list of {many}"
    if kind is bool:
        return "true or false"
    return "a mapping" if origin is dict else NAMES.get(kind, str(kind))
