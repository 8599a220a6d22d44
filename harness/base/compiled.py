"""Numba kernels: loops that no array operation expresses well, with their cache.

All copies of the project share compiled functions, each in a file named by a hash of everything
that went into it. Numba's own cache uses a file's path and date: it recompiles every frozen copy,
misses a changed constant or callee, and two processes that write at the same time on different
processors can mix up its entries.
"""

import hashlib
import logging
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import llvmlite
import numba
import numpy as np
from numba import njit
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

from harness.base.files import atomic_write, is_private, own_folder
from harness.base.unused import mark_used, remove, unused

log = logging.getLogger(__name__)

SETTINGS = ("OPT", "BOUNDSCHECK", "LOOP_VECTORIZE", "SLP_VECTORIZE", "DEBUGINFO_DEFAULT",
            "USING_SVML", "LLVM_REFPRUNE_PASS", "LLVM_REFPRUNE_FLAGS")
"""Settings of numba.config that change the compiled code."""
VERSIONS = (numba.__version__, llvmlite.__version__, np.__version__, sys.implementation.cache_tag)
HASH_BYTES = 32


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile `function` at its first call, unless the cache has it. It releases the GIL."""
    compiled = njit(nogil=True)(function)
    compiled._cache = _Cache(compiled)
    return compiled


class _Cache(NullCache):
    """Numba's interface to our cache. Its errors never end a run."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        target_context.refresh()
        with _harmless(self._compiled):
            file = self._file(sig, target_context.codegen())
            if is_private(file.parent) and (content := _intact(file)) is not None:
                return CompileResult._rebuild(target_context, *pickle.loads(content))
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        with _harmless(self._compiled):
            if data.library.has_dynamic_globals:  # addresses of this process are compiled in
                return
            content = dumps(data._reduce())
            file = self._file(sig, data.codegen)
            own_folder(file.parent)
            if is_private(file.parent):
                with atomic_write(file) as private:
                    private.write_bytes(hashlib.sha256(content).digest() + content)
                for other in unused(file.parent):
                    remove(other)

    def _file(self, sig: Any, codegen: Any) -> Path:
        function = self._compiled.py_func
        settings = [getattr(numba.config, name, None) for name in SETTINGS]
        types = [(kind, getattr(kind, "fields", ())) for kind in sig]  # a named tuple's: no `repr`
        parts = [*contents(self._compiled, set()), types, codegen.magic_tuple(), settings, VERSIONS]
        digest = hashlib.sha256("\n".join(map(repr, parts)).encode()).hexdigest()
        return cache_folder() / f"{function.__module__}.{function.__qualname__}-{digest[:32]}"


def cache_folder() -> Path:
    """Return the cache's folder: in $NUMBA_CACHE_DIR or the user's cache folder. Raises
    RuntimeError if the user has no home."""
    if place := os.environ.get("NUMBA_CACHE_DIR"):
        return Path(place) / "kernels"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "svll" / "kernels"


@contextmanager
def _harmless(compiled: Any) -> Iterator[None]:
    try:
        yield
    except Exception:  # of the disk, pickle or LLVM: the process compiles the function itself
        log.debug("%s: the compiled function is not cached", compiled.__name__, exc_info=True)


def _intact(file: Path) -> bytes | None:
    """Return the content of a cache file; None when it is missing or damaged."""
    with suppress(FileNotFoundError):
        content = file.read_bytes()
        if content[:HASH_BYTES] == hashlib.sha256(content[HASH_BYTES:]).digest():
            mark_used(file)
            return content[HASH_BYTES:]
    return None


# --- the key of a cache file ---


def contents(compiled: Any, seen: set[Any]) -> Iterator[Any]:
    """Yield everything that goes into a compiled function: code as loaded, constants, callees.
    Raises TypeError for a value that its `repr` does not identify, and for closures."""
    if compiled in seen:
        return
    seen.add(compiled)
    function = compiled.py_func
    if function.__closure__ is not None:
        raise TypeError(f"{function.__qualname__} uses variables of the function around it")
    yield function.__module__, function.__qualname__, sorted(compiled.targetoptions.items())
    yield _code(function.__code__), _constant(function.__defaults__)
    for name, value in _globals(sorted(_names(function.__code__)), function.__globals__, set()):
        if hasattr(value, "py_func"):
            yield name
            yield from contents(value, seen)
        else:
            yield name, _constant(value)


def _globals(names: list[str], space: dict[str, Any], seen: set[str]) -> Iterator[tuple[str, Any]]:
    """Yield the globals among the names, and attributes of these names in modules among them."""
    for name in names:
        value = space.get(name)
        if isinstance(value, ModuleType):
            if value.__name__ not in seen:
                seen.add(value.__name__)
                yield from _globals(names, vars(value), seen)
        elif name in space:
            yield name, value


def _constant(value: Any) -> Any:
    """Return an object whose `repr` differs for any other value or type."""
    if isinstance(value, tuple):
        return tuple(_constant(item) for item in value)
    if isinstance(value, np.ndarray):
        return "array", value.dtype.str, value.shape, value.strides, value.tobytes()
    if isinstance(value, bool | int | float | complex | str | bytes | np.generic | None):
        return type(value).__name__, value
    if hasattr(value, "__name__"):  # a type, a function of NumPy or of Python
        return getattr(value, "__module__", None), value.__name__
    raise TypeError(f"{value!r} cannot be part of a key")


def _code(code: CodeType) -> tuple[Any, ...]:
    """Return the parts of a function's code that do not depend on the place of its file."""
    constants = [_code(one) if isinstance(one, CodeType) else one for one in code.co_consts]
    return (code.co_code, constants, code.co_names, code.co_varnames, code.co_argcount,
            code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)


def _names(code: CodeType) -> set[str]:
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*map(_names, inner))
