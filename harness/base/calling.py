"""A TypeError that names the nearest known argument, for functions of the public interface."""

import difflib
import inspect
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def named(function: Callable[P, R]) -> Callable[P, R]:
    """Make the TypeError for an unknown argument name the nearest known one."""
    known = list(inspect.signature(function).parameters)

    @wraps(function)
    def call(*given: P.args, **more: P.kwargs) -> R:
        for name in more:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(known)}"
                raise TypeError(f"{function.__name__}() has no argument {name!r}; {hint}")
        return function(*given, **more)

    return call
