"""A fault planted in one line of the project, to see that it is found."""

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType
from typing import Any

from tests.gpu.emulator.state import ROOT


@contextmanager
def planted(function: Callable[..., Any], old: str, new: str) -> Iterator[str]:
    """Change the one line of a function that has `old` within the body; yields "file:line"."""
    module: Any = sys.modules[function.__module__]
    lines, first = inspect.getsourcelines(function)
    [number] = [first + n for n, line in enumerate(lines) if old in line]
    source = inspect.getsource(module).splitlines(keepends=True)
    source[number - 1] = source[number - 1].replace(old, new)
    code = compile("".join(source), module.__file__, "exec")
    [changed] = [c for c in _inside(code) if c.co_qualname == function.__qualname__]
    before = function.__code__
    function.__code__ = changed  # type: ignore[attr-defined]
    try:
        yield f"{module.__file__.removeprefix(f'{ROOT}/')}:{number}"
    finally:
        function.__code__ = before  # type: ignore[attr-defined]


def _inside(code: CodeType) -> Iterator[CodeType]:
    """Yield the code of all functions in a piece of code."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _inside(constant)
