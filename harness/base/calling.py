"""A TypeError that names the nearest known argument, for functions of the public interface."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from harness.base.errors import hint

P = ParamSpec("P")
R = TypeVar("R")


def named(function: Callable[P, R]) -> Callable[P, R]:
    """Make the TypeError for an unknown argument name the nearest known one."""
    known = list(inspect.signature(function).parameters)

    @wraps(function)
    def call(*given: P.args, **more: P.kwargs) -> R:
        for name in more:
            if name not in known:
                end = hint(name, known, f"; it takes {', '.join(known)}")
                raise TypeError(f"{function.__name__}() has no argument {name!r}{end}")
        return function(*given, **more)

    return call
