"""Feature rows made ready for comparison, block by block.

Letters: Q queries, G gallery images, D width, n rows of any kind, c columns of one block.

The score of query q and row g is `(q . g) inverse_g - half_g`, larger is nearer. For rows that are
compared at unit length, `half` is zero and the squared distance is 2 - 2 score; otherwise `half` is
|g|^2 / 2, `inverse` one, and the squared distance is |q|^2 - 2 score.
"""

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.base.errors import UserError
from svll.evaluation.engine import kernels
from svll.evaluation.engine.products import spread

JUNK = -1
"""The identity of images that are neither a match nor a mistake: they are never ranked."""

STRANGER = -2
"""The identity of images that match nothing, for comparisons that must not see labels."""

LARGEST_NORM = 1e15
"""Longer rows than this are refused: their float32 products could overflow."""

SMALLEST_NORM = 1e-15
"""Shorter rows are brought to unit length before they are multiplied: their products could be too
small for float32."""

SMALL_BYTES = 128 * 2**20
"""Rows up to this size are kept for the next pass."""

SPAN = 8192
"""Rows that are read at once, at most, where few of them are kept."""

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Block:
    """Consecutive rows on the host, ready to be compared."""

    features: NDArray[np.float32]
    """[n, D], of unit length or as they were read."""
    norms: Floats
    """[n], of the rows as they are compared (an all-zero row of a unit block counts as one)."""
    half: Floats
    """[n], what is subtracted from a product with row i."""
    inverse: Floats
    """[n], what a product with row i is multiplied by before."""


class Rows:
    """The labelled feature rows of one side, less junk. Reading and preparing happen in `block`.

    `features` [n, D] is a numpy array, a tensor on any device, or anything that numpy can slice
    such as an HDF5 dataset or a memory map: no more than a block of it is read at a time. `cameras`
    [n] say what of its identity a query does not rank: where cameras do not matter, numbers of
    images stand there.
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
        """Rows `first` to `last`, a copy. UserError where one cannot be compared with others."""
        features = self._read(first, last, copy=True)
        norms, half = np.empty(len(features)), np.zeros(len(features))
        spread(kernels.prepare, len(features), features, self.unit, norms, half)
        self._refuse(self.kept[first:last][~(norms < LARGEST_NORM)])  # NaN compares false
        ones = np.ones_like(norms)
        return Block(features, ones if self.unit else norms, half, ones)

    def lengths_apart(self, first: int, last: int) -> Block:
        """The same, with rows as they were read, not copied where that can be: for large sides."""
        features = self._read(first, last, copy=False)
        squares = np.empty(len(features))
        spread(kernels.measure, len(features), features, squares)
        norms, ones, zeros = np.sqrt(squares), np.ones_like(squares), np.zeros_like(squares)
        self._refuse(self.kept[first:last][~(norms < LARGEST_NORM)])
        if not self.unit:
            return Block(features, norms, squares / 2.0, ones)
        if ((norms > 0.0) & (norms < SMALLEST_NORM)).any():
            return self.block(first, last)
        inverse = np.divide(1.0, norms, out=zeros.copy(), where=norms > 0.0)
        return Block(features, ones, zeros, inverse)

    def blocks(
        self, size: int, span: tuple[int, int] | None = None
    ) -> Iterator[tuple[int, Block]]:
        """Every block of `size` rows, of all or from span[0] to span[1], with its first row."""
        start, stop = span or (0, len(self))
        for first in range(start, stop, size):
            yield first, self.block(first, min(first + size, stop))

    def _read(self, first: int, last: int, *, copy: bool) -> NDArray[np.float32]:
        kept = self.kept[first:last]
        runs = list(self._runs(kept))
        if len(runs) == 1 and not copy:
            return np.ascontiguousarray(self._source(kept), np.float32)
        features = np.empty((len(kept), self.features.shape[1]), np.float32)
        for place, rows in runs:
            spread(_copy, len(rows), features[place : place + len(rows)], self._source(rows))
        return features

    def _source(self, rows: Integers) -> NDArray[Any]:
        """Some rows, ascending, as they are stored."""
        source = self.features[int(rows[0]) : int(rows[-1]) + 1]
        if hasattr(source, "detach"):  # a tensor
            source = source.detach().float().cpu().numpy()
        source = np.asarray(source)
        return source if len(source) == len(rows) else source[rows - rows[0]]

    def _runs(self, kept: Integers) -> Iterator[tuple[int, Integers]]:
        """Kept rows in runs that do not span many more, each with its place."""
        dense = len(kept) and int(kept[-1] - kept[0]) < SPAN
        edges: Any = [] if dense else np.flatnonzero(np.diff(kept // SPAN)) + 1
        for run in np.split(np.arange(len(kept)), edges):
            if len(run):
                yield int(run[0]), kept[run]

    def _refuse(self, bad: Integers) -> None:
        if not len(bad):
            return
        rows, hold = ("rows", "hold") if len(bad) > 1 else ("row", "holds")
        shown = ", ".join(str(row) for row in bad[:5])
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise UserError(
            f"{self.name} features: {rows} {shown}{more} {hold} NaN, infinity or "
            f"numbers beyond {LARGEST_NORM:g}; extract the features of these images again"
        )


def _copy(start: int, stop: int, target: NDArray[np.float32], source: NDArray[Any]) -> None:
    target[start:stop] = source[start:stop]  # float16 is turned here, which takes a while


class Passes:
    """Blocks that are gone through more than once: read anew each time, unless they are small."""

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
        start, stop = self._span
        for first in range(start, stop, self._size):
            block = self._rows.lengths_apart(first, min(first + self._size, stop))
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


def rounding(width: int) -> float:
    """By how much, at most, a float32 product of unit rows [D] differs from the exact one.

    Rounding errors of a sum of D terms grow like sqrt(D), not D (Higham and Mary, SIAM J. Sci.
    Comput. 2019): beyond 4 sqrt(D) units the chance is nil. The largest measured at D = 1,280 is
    2.4e-7 for features and 1.8e-6 for constant rows, the worst case; this bound is 8.8e-6.
    """
    unit = 2.0**-24
    return (4.0 * float(np.sqrt(width)) + 4.0) * unit
