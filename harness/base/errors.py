"""The exceptions for errors that the user can fix, and helpers for their messages."""

import difflib
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class UserError(Exception):
    """An error that the user can fix: the message has what is wrong, where, and what to do. Caught
    in `launch/` only, where it becomes a message on stderr and a non-zero exit status."""


class WrongUsage(UserError):
    """Options of a command that are missing or do not go together; the exit status is 2."""


class Hindered(UserError):
    """An outside cause stopped the run, such as a full disk; without it the run can resume."""


def hint(word: object, known: Sequence[str], otherwise: str | None = None) -> str:
    """Return the end of a message on an unknown word: the nearest known one, or `otherwise` (None:
    a list of all)."""
    near = difflib.get_close_matches(str(word), known, n=1)
    if near or otherwise is None:
        return f"; did you mean {near[0]}?" if near else f"; one of {', '.join(known)}"
    return otherwise


@contextmanager
def collecting(faults: list[str]) -> Iterator[None]:
    """Add the lines of a UserError to `faults` and continue after the body."""
    try:
        yield
    except UserError as error:
        faults.extend(str(error).splitlines())


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
