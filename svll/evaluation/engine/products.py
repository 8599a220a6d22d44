"""Threads for kernels, and matrix products on the fastest device or library available.

torch takes two seconds to import, and ranking saved features does not need it: it is used only if
already imported, or where there is a GPU.
"""

import logging
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from harness.base.machine import has_gpu, usable_cores

log = logging.getLogger(__name__)

WORTH_TIMING = 10**8
"""Timing smaller products (multiplications) says nothing about speed."""


def loaded_torch() -> Any:
    """Return the torch module if it is imported or there is a GPU, else None."""
    if has_gpu():
        import torch

        return torch
    return sys.modules.get("torch")


@cache
def _usable_gpu(torch: Any) -> Any:
    """Return the current GPU; None where there is none or it cannot be used now."""
    if not torch.cuda.is_available():
        return None
    try:
        torch.empty(1, device="cuda")
    except RuntimeError as error:  # out of memory, or reserved by another process
        log.warning("computing on the CPU, as the GPU cannot be used: %s",
                    str(error).splitlines()[0])
        return None
    return torch.device("cuda")


class Products:
    """Float32 products of blocks, on a GPU where there is one, returned in host memory.

    On the CPU, torch and numpy each bring their own BLAS, and which is faster depends on the
    processor (measured: 112 against 140 GFLOP/s on one kind). If torch is imported, both are tried
    on the first blocks, and the faster one computes the rest.
    """

    _rates: ClassVar[dict[str, list[float]]] = {"torch": [], "numpy": []}
    """Seconds per multiplication measured in this process."""

    def __init__(self, *features: Any) -> None:
        """Use the GPU that holds some of `features`, else the current one, else the CPU."""
        self._torch = loaded_torch()
        devices = [f.device for f in features if getattr(f, "is_cuda", False)]
        if not devices and self._torch is not None:
            devices = [_usable_gpu(self._torch)]
        self._device = devices[0] if devices else None
        self._buffer: Any = None

    def send(self, rows: NDArray[np.float32]) -> Any:
        """Return rows [n, D] on the device that multiplies them; on the CPU unchanged."""
        return rows if self._device is None else self._torch.from_numpy(rows).to(self._device)

    def __call__(self, queries: Any, block: Any) -> NDArray[np.float32]:
        """Multiply rows that were sent: [Q, c], in a buffer that the next call overwrites."""
        shape = len(queries), len(block)
        size = shape[0] * shape[1]
        if self._device is not None:
            return self._on_gpu(queries, block, shape)
        if self._buffer is None or self._buffer.size < size:
            self._buffer = np.empty(size, np.float32)
        out: NDArray[np.float32] = self._buffer[:size].reshape(shape)
        work = size * queries.shape[1]
        if self._torch is None or work < WORTH_TIMING:
            return np.matmul(queries, block.T, out=out)
        library = self._faster()
        started = time.perf_counter()
        if library == "torch":
            from harness.training.precision import full_precision  # torch

            a, b, c = map(self._torch.from_numpy, (queries, block, out))
            with full_precision():
                self._torch.mm(a, b.T, out=c)
        else:
            np.matmul(queries, block.T, out=out)
        self._rates[library].append((time.perf_counter() - started) / work)
        return out

    def _on_gpu(self, queries: Any, block: Any, shape: tuple[int, int]) -> NDArray[np.float32]:
        from harness.training.precision import full_precision  # torch

        size = shape[0] * shape[1]
        if self._buffer is None or self._buffer.numel() < size:
            self._buffer = self._torch.empty(size, device=self._device)
        out = self._buffer[:size].view(shape)
        width = piece_width(queries.shape[1])
        pieces = zip(queries.split(width, dim=1), block.split(width, dim=1), strict=True)
        with full_precision():
            for number, (a, b) in enumerate(pieces):
                out.addmm_(a, b.T, beta=int(number > 0))  # autocast ignores calls in place
        return np.asarray(out.cpu())

    def _faster(self) -> str:
        """Try each library twice, in turn; compare best times, as other load only adds time."""
        tried = min(self._rates, key=lambda library: len(self._rates[library]))
        if len(self._rates[tried]) < 2:
            return tried
        return min(self._rates, key=lambda library: min(self._rates[library]))


def piece_width(width: int) -> int:
    """Return how many numbers of rows [D] a GPU multiplies at a time.

    It may add all products one after another, and errors may all go one way: by up to a unit
    (2^-24) for each number of a piece, and for each piece. So together they stay within `rounding`.
    """
    return max(128, int(3.7 * width**0.5) // 8 * 8)


# ---- threads ----


def thread_count() -> int:
    """Return torch's number of threads, or the one it would use."""
    torch = sys.modules.get("torch")
    if torch is not None:
        return int(torch.get_num_threads())
    text = os.environ.get("OMP_NUM_THREADS", "")
    return int(text) if text.isdigit() and int(text) else len(usable_cores())


def spread(kernel: Callable[..., Any], items: int, *arguments: Any, pieces: int = 4) -> None:
    """Run a kernel on items 0 to `items`, in torch's number of threads with `pieces` parts each."""
    threads = thread_count()
    edges = np.linspace(0, items, min(items, pieces * threads) + 1).astype(int)
    if threads == 1 or len(edges) <= 2:
        kernel(0, items, *arguments)
        return
    pool = _threads(threads)
    tasks = [pool.submit(partial(kernel, int(a), int(b), *arguments)) for a, b in pairwise(edges)]
    try:
        for task in tasks:
            task.result()
    finally:  # after an interrupt, the process's end would wait for those that have not begun
        for task in tasks:
            task.cancel()


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    """Return the threads of kernels, kept because starting them takes as long as a small block."""
    return ThreadPoolExecutor(count)


os.register_at_fork(after_in_child=_threads.cache_clear)  # a fork has none of its parent's threads
