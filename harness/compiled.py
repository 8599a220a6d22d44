"""Functions that Numba compiles: the loops that no array operation expresses well.

They are compiled once for all copies of the code, runs and processes of a user. Numba's own cache
looks at where the function's file lies and when it was changed, so that each frozen copy of the
code compiled anew; it misses changes of other kernels and of constants, which are compiled in; and
two processes that add to it at once, on nodes with different processors, can mix up its files. Here
all that is compiled in makes up the name of a file of its own.
"""

import hashlib
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import numba
import numpy as np
from numba import njit
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

from harness.files import atomic_write, own_folder

HASH_BYTES = 32
CONSTANTS = (bool, int, float, complex, str, tuple, np.generic, np.ndarray)


class _Cache(NullCache):
    """What Numba asks for compiled code: a file for each function, signature and processor."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the compiled function; None where there is none, or its file is damaged."""
        target_context.refresh()
        with suppress(OSError):
            content = self._file(sig, target_context.codegen()).read_bytes()
            if content[:HASH_BYTES] == hashlib.sha256(content[HASH_BYTES:]).digest():
                return CompileResult._rebuild(target_context, *pickle.loads(content[HASH_BYTES:]))
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep a compiled function, unless it holds addresses of this process."""
        if data.library.has_dynamic_globals:
            return
        content = dumps(data._reduce())
        with suppress(OSError):  # nowhere to write to: each process compiles for itself
            file = self._file(sig, data.codegen)
            own_folder(file.parent)  # what lies there is run
            with atomic_write(file) as private:
                private.write_bytes(hashlib.sha256(content).digest() + content)

    def _file(self, sig: Any, codegen: Any) -> Path:
        name = f"{self._function.__module__}.{self._function.__qualname__}"
        key = (
            name, sig, codegen.magic_tuple(), inlined_hash(self._function), numba.__version__,
            sys.implementation.cache_tag,
        )
        return cache_folder() / f"{name}-{hashlib.sha256(repr(key).encode()).hexdigest()[:32]}"


def cache_folder() -> Path:
    """Return where compiled functions are kept: in $NUMBA_CACHE_DIR or the user's cache folder."""
    if place := os.environ.get("NUMBA_CACHE_DIR"):
        return Path(place) / "kernels"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "svll" / "kernels"


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile `function` at its first call; the result is kept where the disk allows it.

    It runs without Python's lock, so that threads can each do a part.
    """
    compiled = njit(nogil=True)(function)
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
