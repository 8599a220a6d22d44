"""What a check compares the GPU with: the same function in a process that has no GPU."""

from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from typing import Any

from tests.gpu.hiding import hide


def begun_on_cpu(work: Callable[..., Any], *arguments: Any) -> Future[Any]:
    """Have a function of a module called where no GPU is seen; returns its future result."""
    return _process().submit(work, *arguments)


@cache  # starting it takes as long as most of what it computes
def _process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, get_context("spawn"), initializer=hide)
