"""Functions that Numba compiles: the loops that no array operation expresses well.

Numba keeps what it compiled, and notices a change in a function's own file only: after one in a
function or a constant that compiled functions of other files use, delete `__pycache__`.
"""

from collections.abc import Callable
from typing import Any

from numba import njit


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile `function` at its first call; the result is cached where the disk allows it.

    It runs without Python's lock, so that threads can each do a part.
    """
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no folder to write a cache to: compile anew in each process
        return njit(nogil=True)(function)
