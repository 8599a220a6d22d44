"""A fault planted in one line of the project, and the line at which it is to be found."""

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import CodeType
from typing import Any

import pytest

from tests.gpu.emulator.state import ROOT


@contextmanager
def planted(function: Callable[..., Any], old: str, new: str) -> Iterator[None]:
    """Replace `old`, which one line of a function has, by `new` within the body."""
    module: Any = sys.modules[function.__module__]
    source = inspect.getsource(module).splitlines(keepends=True)
    number = _line(function, old)
    source[number - 1] = source[number - 1].replace(old, new)
    code = compile("".join(source), module.__file__, "exec")
    [changed] = [c for c in _inside(code) if c.co_qualname == function.__qualname__]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(function, "__code__", changed)
        yield


def place_of(function: Callable[..., Any], text: str) -> str:
    """Return the "file:line" of a function's line that has a text."""
    file = sys.modules[function.__module__].__file__ or ""
    return f"{file.removeprefix(f'{ROOT}/')}:{_line(function, text)}"


def refused(function: Callable[..., Any], text: str) -> AbstractContextManager[Any]:
    """Expect that a GPU refuses the line of a function that has a text."""
    place = f"{place_of(function, text)} {function.__qualname__}"
    return pytest.raises((RuntimeError, TypeError), match=re.escape(f"at {place}"))


def _line(function: Callable[..., Any], text: str) -> int:
    """Return the number of the one line of a function that has a text."""
    lines, first = inspect.getsourcelines(function)
    [number] = [first + n for n, line in enumerate(lines) if text in line]
    return number


def _inside(code: CodeType) -> Iterator[CodeType]:
    """Yield the code of all functions in a piece of code."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _inside(constant)
