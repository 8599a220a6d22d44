"""Functions that Numba compiles: the loops that no array operation expresses well.

Numba caches the compiled code and checks only the function's own file for changes. But the code of
other kernels and the values of constants are compiled into it, so our cache key holds those too.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import numpy as np
from numba import njit
from numba.core.caching import FunctionCache

CONSTANTS = (bool, int, float, complex, str, tuple, np.generic, np.ndarray)


class _Cache(FunctionCache):
    """Numba's cache, with everything that is compiled into a function as part of the key."""

    def _index_key(self, sig: Any, codegen: Any) -> tuple[Any, ...]:
        return (*super()._index_key(sig, codegen), inlined_hash(self._py_func))


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile `function` at its first call; the result is cached where the disk allows it.

    It runs without Python's lock, so that threads can each do a part.
    """
    compiled = njit(nogil=True)(function)
    with suppress(RuntimeError):  # no folder to write a cache to: compile anew in each process
        compiled._cache = _Cache(function)
    return compiled


def inlined_hash(function: Callable[..., Any]) -> str:
    """Return a hash of the files of all kernels that `function` calls, directly or through others,
    and of the constants that they read.
    """
    whole = hashlib.sha256()
    for part in _inlined(function, set()):
        whole.update(len(part).to_bytes(8, "big") + part)
    return whole.hexdigest()


def _inlined(function: Any, seen: set[Any]) -> Iterator[bytes]:
    if function in seen:
        return
    seen.add(function)
    yield Path(function.__code__.co_filename).read_bytes()
    for name, value in _globals(function):
        if hasattr(value, "py_func"):
            yield from _inlined(value.py_func, seen)
        elif isinstance(value, CONSTANTS):
            content = value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode()
            yield f"{name} {type(value)}".encode() + content


def _globals(function: Any) -> Iterator[tuple[str, Any]]:
    """Yield the globals that a function names, and what it may name of modules among them."""
    names = sorted(_names(function.__code__))
    found = [(name, function.__globals__[name]) for name in names if name in function.__globals__]
    yield from found
    for _, module in found:
        if isinstance(module, ModuleType):
            yield from ((name, vars(module)[name]) for name in names if name in vars(module))


def _names(code: CodeType) -> set[str]:
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*map(_names, inner))
