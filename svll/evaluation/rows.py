"""Feature rows made ready for comparison, block by block, and their products.

Letters: Q queries, G gallery images, D width, n rows of any kind, c columns of one block.

The score of query q and row g is `q . g - half_g`, larger is nearer. For rows of unit length `half`
is zero and the squared distance is 2 - 2 score; otherwise `half` is |g|^2 / 2, and the squared
distance is |q|^2 - 2 score.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from harness.errors import UserError
from svll.evaluation import kernels

JUNK = -1
"""The identity of images that are neither a match nor a mistake: they are never ranked."""

STRANGER = -2
"""The identity of images that match nothing, for comparisons that must not see labels."""

LARGEST_NORM = 1e15
"""Longer rows than this are refused: their float32 products could overflow."""

SMALL_BYTES = 128 * 2**20
"""Prepared rows up to this size are kept for the next pass."""

WORTH_TIMING = 10**8
"""Products of fewer multiplications than this say nothing about speed."""

SPAN = 8192
"""Rows that are read at once, at most, where few of them are kept."""

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Block:
    """Consecutive prepared rows, on the host."""

    features: NDArray[np.float32]
    """[n, D], of unit length where that is asked for."""
    norms: Floats
    """[n], of the rows as they are now (an all-zero row of a unit block counts as one)."""
    half: Floats
    """[n], what is subtracted from a product with row i."""


class Rows:
    """The labelled feature rows of one side, less junk. Reading and preparing happen in `block`.

    `features` [n, D] is a numpy array, a tensor on any device, or anything that numpy can slice
    such as an HDF5 dataset or a memory map: no more than a block of it is read at a time.
    """

    def __init__(
        self, name: str, features: Any, identities: Integers, cameras: Integers, *, unit: bool
    ) -> None:
        self.name, self.features, self.unit = name, features, unit
        self.kept = np.flatnonzero(identities != JUNK)
        self.identities, self.cameras = identities[self.kept], cameras[self.kept]

    def __len__(self) -> int:
        return len(self.kept)

    def labelled(self, identities: Integers) -> "Rows":
        """The same rows with other identities [len(self)]."""
        other = copy(self)
        other.identities = identities
        return other

    def block(self, first: int, last: int) -> Block:
        """Prepare rows `first` to `last`. UserError where one cannot be compared with others."""
        kept = self.kept[first:last]
        features = np.empty((len(kept), self.features.shape[1]), np.float32)
        for place, rows in self._runs(kept):
            source = self.features[int(rows[0]) : int(rows[-1]) + 1]
            if isinstance(source, torch.Tensor):
                source = source.detach().float().cpu().numpy()
            every = len(source) == len(rows)
            source = source if every else source[rows - rows[0]]
            spread(_copy, len(rows), features[place : place + len(rows)], source)
        norms, half = np.empty(len(kept)), np.zeros(len(kept))
        spread(kernels.prepare, len(kept), features, self.unit, norms, half)
        self._refuse(kept[~(norms < LARGEST_NORM)])  # NaN compares false
        return Block(features, np.ones_like(norms) if self.unit else norms, half)

    def blocks(
        self, size: int, span: tuple[int, int] | None = None
    ) -> Iterator[tuple[int, Block]]:
        """Every block of `size` rows, of all or from span[0] to span[1], with its first row."""
        start, stop = span or (0, len(self))
        for first in range(start, stop, size):
            yield first, self.block(first, min(first + size, stop))

    def _runs(self, kept: Integers) -> Iterator[tuple[int, Integers]]:
        """Kept rows in runs that do not span many more, each with its place."""
        edges = np.flatnonzero(np.diff(kept // SPAN)) + 1
        for run in np.split(np.arange(len(kept)), edges):
            if len(run):
                yield int(run[0]), kept[run]

    def _refuse(self, bad: Integers) -> None:
        if not len(bad):
            return
        shown = ", ".join(str(row) for row in bad[:5])
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise UserError(
            f"{self.name} features: row{'s' * (len(bad) > 1)} {shown}{more} hold NaN, infinity or "
            f"numbers beyond {LARGEST_NORM:g}; extract the features of these images again"
        )


def _copy(start: int, stop: int, target: NDArray[np.float32], source: NDArray[Any]) -> None:
    target[start:stop] = source[start:stop]  # float16 is turned here, which takes a while


class Passes:
    """Blocks that are gone through more than once: prepared anew each time, unless they are small.
    """

    def __init__(self, rows: Rows, size: int, span: tuple[int, int]) -> None:
        self._rows, self._size, self._span = rows, size, span
        bytes_each = 4 * rows.features.shape[1]
        self._small = (span[1] - span[0]) * bytes_each <= SMALL_BYTES
        self._held: list[tuple[int, Block]] = []

    def __iter__(self) -> Iterator[tuple[int, Block]]:
        if self._held:
            yield from self._held
            return
        held = []
        for first, block in self._rows.blocks(self._size, self._span):
            if self._small:
                held.append((first, block))
            yield first, block
        self._held = held


class Stacked:
    """Features in several pieces [n_i, D], such as shards of a gallery, to be sliced as one [n, D].
    """

    def __init__(self, pieces: Sequence[Any]) -> None:
        widths = {piece.shape[1] for piece in pieces}
        if len(widths) != 1:
            raise UserError(
                f"pieces of one gallery have {sorted(widths)} numbers per row; all must come from "
                "one model"
            )
        self._pieces = pieces
        self._edges = np.cumsum([0, *(len(piece) for piece in pieces)])
        self.shape = int(self._edges[-1]), widths.pop()

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        start, stop, _ = rows.indices(len(self))
        found = [
            np.asarray(piece[max(start - low, 0) : max(stop - low, 0)])
            for low, piece in zip(self._edges[:-1].tolist(), self._pieces, strict=True)
            if low < stop and low + len(piece) > start
        ]
        return np.concatenate(found) if found else np.asarray(self._pieces[0][:0])


class Products:
    """Float32 products of blocks, on the device where the features are, returned on the host.

    On the CPU, torch and numpy each bring their own BLAS, and which is faster depends on the
    processor (measured: 112 against 140 GFLOP/s on one kind, the reverse on others). Both are tried
    on the first blocks, and the faster one makes the rest.
    """

    _rates: ClassVar[dict[str, list[float]]] = {"torch": [], "numpy": []}
    """Seconds per multiplication seen by this process."""

    def __init__(self, *features: Any) -> None:
        devices = {f.device for f in features if isinstance(f, torch.Tensor)}
        self.device = next((d for d in devices if d.type != "cpu"), torch.device("cpu"))
        self._buffer = torch.empty(0)

    def send(self, rows: NDArray[np.float32]) -> torch.Tensor:
        """Rows [n, D] as a tensor on the device; on the CPU it shares their memory."""
        return torch.from_numpy(rows).to(self.device)

    def __call__(self, queries: torch.Tensor, block: torch.Tensor) -> NDArray[np.float32]:
        """[Q, c], in a buffer that the next call overwrites."""
        shape = (len(queries), len(block))
        if self._buffer.numel() < shape[0] * shape[1]:
            self._buffer = torch.empty(shape[0] * shape[1], device=self.device)
        out = self._buffer[: shape[0] * shape[1]].view(shape)
        work = shape[0] * shape[1] * queries.shape[1]
        if self.device.type != "cpu" or work < WORTH_TIMING:
            _by_torch(queries, block, out)
            return out.cpu().numpy()
        way = self._faster()
        started = time.perf_counter()
        (_by_torch if way == "torch" else _by_numpy)(queries, block, out)
        self._rates[way].append((time.perf_counter() - started) / work)
        return out.numpy()

    def _faster(self) -> str:
        """Each is tried twice, in turn; the best time counts, as a busy machine only slows."""
        tried = min(self._rates, key=lambda way: len(self._rates[way]))
        if len(self._rates[tried]) < 2:
            return tried
        return min(self._rates, key=lambda way: min(self._rates[way]))


def _by_torch(queries: torch.Tensor, block: torch.Tensor, out: torch.Tensor) -> None:
    with full_precision():
        torch.mm(queries, block.T, out=out)  # autocast leaves calls with `out` alone


def _by_numpy(queries: torch.Tensor, block: torch.Tensor, out: torch.Tensor) -> None:
    np.matmul(queries.numpy(), block.numpy().T, out=out.numpy())


@contextmanager
def full_precision() -> Iterator[None]:
    """Multiply in float32 even where the caller allows TF32 or bfloat16 for speed."""
    mkldnn: Any = torch.backends.mkldnn  # made at import time, unknown to type checkers
    backends = (torch.backends.cuda.matmul, mkldnn.matmul)
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def rounding(width: int) -> float:
    """By how much, at most, a float32 product of unit rows [D] differs from the exact one.

    Rounding errors of a sum of D terms grow like sqrt(D), not D (Higham and Mary, SIAM J. Sci.
    Comput. 2019): beyond 4 sqrt(D) units the chance is nil. The largest measured at D = 1,280 is
    2.4e-7 for features and 1.8e-6 for constant rows, the worst case; this bound is 8.8e-6.
    """
    unit = 2.0**-24
    return (4.0 * float(np.sqrt(width)) + 4.0) * unit


def spread(kernel: Callable[..., Any], items: int, *arguments: Any) -> None:
    """Run a kernel on items 0 to `items`, in as many threads as torch uses."""
    threads = torch.get_num_threads()
    # Pieces are small enough that an uneven share of the work evens out.
    edges = np.linspace(0, items, min(items, 4 * threads) + 1).astype(int)
    if threads == 1 or len(edges) <= 2:
        kernel(0, items, *arguments)
        return
    pool = _threads(threads)
    tasks = [pool.submit(partial(kernel, int(a), int(b), *arguments)) for a, b in pairwise(edges)]
    for task in tasks:
        task.result()


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    """The threads of kernels; they stay, as starting them anew takes as long as a small block."""
    return ThreadPoolExecutor(count)


os.register_at_fork(after_in_child=_threads.cache_clear)  # a fork has none of its parent's threads
