"""Labelled feature rows, read block by block and scaled for comparison.

Letters: Q queries, G gallery images, D width, n rows of any kind, c columns of one block.

The score of query q and row g is `(q . g) inverse_g - half_g`; larger is nearer. For rows that are
compared at unit length, `half` is zero and the squared distance is 2 - 2 score; otherwise `half` is
|g|^2 / 2, `inverse` one, and the squared distance is |q|^2 - 2 score.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.base.errors import UserError
from svll.evaluation.engine import kernels
from svll.evaluation.engine.kernels import Float32, Floats, Integers
from svll.evaluation.engine.products import spread

JUNK = -1
"""Identity of images that are neither a match nor a mistake: they are never ranked."""
STRANGER = -2
"""Identity of images that match nothing, for comparisons without labels."""
LARGEST_NORM = 1e15
"""Longer rows are refused: their float32 products could overflow."""
SMALLEST_NORM = 1e-15
"""Shorter rows are normalised before the product, which could otherwise underflow float32."""
SMALL_BYTES = 128 * 2**20
"""Sides up to this size are kept in memory for the next pass."""
SPAN = 8192
"""Largest number of rows read at once where few of them are kept."""


class Block(NamedTuple):
    """Consecutive rows [n, D] ready to be compared; norms are one for rows at unit length."""

    features: Float32
    norms: Floats
    half: Floats
    inverse: Floats


class Rows:
    """The labelled feature rows of one side without junk; `block` reads and scales them.

    `features` [n, D] is a numpy array, a tensor on any device, or anything that numpy can slice,
    such as an HDF5 dataset: at most one block of it is read at a time. A query does not rank rows
    of its identity with an equal entry in `cameras` [n]: cameras, or image numbers where cameras do
    not matter.
    """

    def __init__(
        self, name: str, features: Any, identities: Integers, cameras: Integers, *, unit: bool
    ) -> None:
        self.name, self.features, self.unit = name, features, unit
        self.kept = np.flatnonzero(identities != JUNK)
        self.identities, self.cameras = identities[self.kept], cameras[self.kept]
        self.is_zero = np.zeros(len(identities), np.uint8)
        """[n], 1 for rows of zeros, among those that were read."""

    def __len__(self) -> int:
        return len(self.kept)

    def block(self, first: int, last: int) -> Block:
        """Copy rows `first` to `last`, at unit length if `unit`; UserError for unusable rows."""
        scale = kernels.normalise_rows if self.unit else kernels.square_rows
        features, squares = self._read(first, last, scale, copy=True)
        ones = np.ones_like(squares)
        if self.unit:
            return Block(features, ones, np.zeros_like(squares), ones)
        return Block(features, np.sqrt(squares), squares / 2.0, ones)

    def stored_block(self, first: int, last: int) -> Block:
        """Like `block`, but rows stay as stored, uncopied where possible: for large sides."""
        features, squares = self._read(first, last, kernels.square_rows, copy=False)
        norms, ones, zeros = np.sqrt(squares), np.ones_like(squares), np.zeros_like(squares)
        if not self.unit:
            return Block(features, norms, squares / 2.0, ones)
        if ((norms > 0.0) & (norms < SMALLEST_NORM)).any():
            return self.block(first, last)
        inverse = np.divide(1.0, norms, out=zeros.copy(), where=norms > 0.0)
        return Block(features, ones, zeros, inverse)

    def blocks(
        self, size: int, span: tuple[int, int] | None = None, *, stored: bool = False
    ) -> Iterator[tuple[int, Block]]:
        """Yield the first row and the block (or `stored_block`) of every `size` rows of a span."""
        start, stop = span or (0, len(self))
        for first in range(start, stop, size):
            read = self.stored_block if stored else self.block
            yield first, read(first, min(first + size, stop))

    def _read(
        self, first: int, last: int, scale: Callable[..., Any], *, copy: bool
    ) -> tuple[Float32, Floats]:
        """Return rows after the kernel `scale` and the squared norms of the stored rows."""
        kept = self.kept[first:last]
        runs = list(self._runs(kept))
        if len(runs) == 1 and not copy:
            features = np.ascontiguousarray(self._source(kept), np.float32)
        else:
            features = np.empty((len(kept), self.features.shape[1]), np.float32)
            for place, rows in runs:
                spread(_copy, len(rows), features[place : place + len(rows)], self._source(rows))
        squares = np.empty(len(features))
        spread(scale, len(features), features, squares)
        self._refuse(kept[~(np.sqrt(squares) < LARGEST_NORM)])  # NaN compares false
        self.is_zero[kept[squares == 0.0]] = 1
        return features, squares

    def _source(self, rows: Integers) -> NDArray[Any]:
        """Read ascending rows as they are stored."""
        source = self.features[int(rows[0]) : int(rows[-1]) + 1]
        if hasattr(source, "detach"):  # a tensor
            source = source.detach().float().cpu().numpy()
        source = np.asarray(source)
        return source if len(source) == len(rows) else source[rows - rows[0]]

    def _runs(self, kept: Integers) -> Iterator[tuple[int, Integers]]:
        """Split kept rows into runs that do not span many more, each with its place."""
        dense = len(kept) and int(kept[-1] - kept[0]) < SPAN
        edges: Any = [] if dense else np.flatnonzero(np.diff(kept // SPAN)) + 1
        for run in np.split(np.arange(len(kept)), edges):
            if len(run):
                yield int(run[0]), kept[run]

    def _refuse(self, bad: Integers) -> None:
        if len(bad):
            rows, hold = ("rows", "hold") if len(bad) > 1 else ("row", "holds")
            numbers = ", ".join(map(str, bad[:5]))
            more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
            raise UserError(f"{self.name} features: {rows} {numbers}{more} {hold} NaN, infinity or "
                            f"numbers beyond {LARGEST_NORM:g}; extract these features again")


def _copy(start: int, stop: int, target: Float32, source: NDArray[Any]) -> None:
    target[start:stop] = source[start:stop]  # in threads, as converting float16 takes a while


class Passes:
    """The blocks of a side for several passes: read again each time unless the side is small."""

    def __init__(self, rows: Rows, size: int, span: tuple[int, int]) -> None:
        self._read = partial(rows.blocks, size, span, stored=True)
        self._small = (span[1] - span[0]) * 4 * rows.features.shape[1] <= SMALL_BYTES
        self._held: list[tuple[int, Block]] = []
        self._count = -(-(span[1] - span[0]) // size)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[tuple[int, Block]]:
        if self._small and not self._held:
            self._held = list(self._read())
        return iter(self._held) if self._small else self._read()


class Stacked:
    """Pieces of features [n_i, D], such as shards of a gallery, sliced as one array [n, D]."""

    def __init__(self, pieces: Sequence[Any]) -> None:
        widths = {piece.shape[1] for piece in pieces}
        if len(widths) != 1:
            raise UserError(f"pieces of one gallery have {sorted(widths)} numbers per row; all "
                            "must come from one model")
        self._pieces = pieces
        self._edges = np.cumsum([0, *(len(piece) for piece in pieces)])
        self.shape = int(self._edges[-1]), widths.pop()

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        start, stop, _ = rows.indices(len(self))
        parts = [np.asarray(piece[max(start - low, 0) : max(stop - low, 0)])
                 for low, piece in zip(self._edges[:-1].tolist(), self._pieces, strict=True)
                 if low < stop and low + len(piece) > start]
        return np.concatenate(parts) if parts else np.asarray(self._pieces[0][:0])


def rounding(width: int) -> float:
    """Bound the error of a float32 product of unit rows [D].

    Rounding errors of a sum of D terms grow like sqrt(D), not D (Higham and Mary, SIAM J. Sci.
    Comput. 2019): errors of features beyond 4 sqrt(D) units have no real chance; the largest
    measured at D = 1,280 is 2.4e-7. Rows of equal numbers are the worst case: libraries add some
    hundred products one after another, and then all errors go one way, up to 7.4e-6 on a CPU (123
    units, at D = 640). On a GPU the bound holds for any rows (see `products.piece_width`). It is
    8.9e-6 at D = 1,280.
    """
    unit = 2.0**-24
    return max(4.0 * float(np.sqrt(width)) + 4.0, min(width + 1.0, 150.0)) * unit
