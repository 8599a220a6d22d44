"""k-reciprocal re-ranking (Zhong, Zheng, Cao and Li, CVPR 2017), sparse and in blocks.

With N(i, k) the k nearest of image i among queries and gallery (i itself not counted):

- R(i, k): those of N(i, k) that have i among their own k nearest (eq. 2);
- R*(i): R(i, k1), joined by R(j, k1 / 2) of each j in it, if more than 2/3 of that lies in R(i, k1)
  (eq. 4);
- V_i: exp(-d(i, j)) for j in R*(i), otherwise 0 (eq. 7), then averaged over the k2 nearest of i,
  i included (eq. 11);
- Jaccard distance of two vectors V (eq. 10); final distance
  (1 - weight) * Jaccard + weight * d (eq. 12).

Where the paper leaves room, or its authors' program departs from it, this follows the program,
as do all published numbers: d is the squared Euclidean distance divided by the row's largest;
"more than 2/3" is strict; V is scaled to sum to one; k1 / 2 is rounded to even.

Only k1 + some neighbours per image, the sparse V, and blocks of the product are ever stored; the
products of queries and gallery, which ranking needs again, as long as they are few. Which images
are neighbours is decided by exact scores (`kernels.score`), equal ones by index, and each image
comes first in its own list, so that no R is empty.

Letters: Q queries, G gallery images, N both together (queries first), D width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.base.errors import UserError
from svll.evaluation.engine import kernels
from svll.evaluation.engine import rerank_kernels as neighbourhoods
from svll.evaluation.engine.feature_rows import Block, Floats, Rows, rounding
from svll.evaluation.engine.nearest import SPARE, merged
from svll.evaluation.engine.products import Products, spread
from svll.evaluation.engine.ranks import Share
from svll.evaluation.engine.rerank_kernels import Lists
from svll.evaluation.pair import is_integer

BLOCK = 3072  # 36 MB of products at a time, the fastest size seen
KEPT_BYTES = 2**30
"""Products of queries and gallery up to this size are kept for ranking, not computed once more."""


@dataclass(frozen=True)
class KReciprocal:
    """Settings of the re-ranking; the defaults are the paper's."""

    k1: int = 20
    """How many nearest images may be reciprocal neighbours."""
    k2: int = 6
    """Over how many nearest images the weight vectors are averaged; 1 leaves them alone."""
    weight: float = 0.3
    """Share of the original distance in the final one (the paper's lambda), 0 to 1."""

    def __post_init__(self) -> None:
        faults = [
            f"{name} is {value!r}; an integer of at least 1 is needed"
            for name, value in (("k1", self.k1), ("k2", self.k2))
            if not is_integer(value, 1)
        ]
        if not isinstance(self.weight, Real) or not 0.0 <= self.weight <= 1.0:
            faults.append(f"weight is {self.weight!r}; it must lie between 0 and 1")
        if faults:
            raise UserError("re-ranking: " + "; ".join(faults))

    def __str__(self) -> str:
        return f"k1={self.k1}, k2={self.k2}, weight={self.weight:g}"


def grid(
    k1: Sequence[int] = (), k2: Sequence[int] = (), weight: Sequence[float] = ()
) -> list[KReciprocal]:
    """Return all combinations of some values; of what has none, the default."""
    values: dict[str, Sequence[Any]] = {"k1": k1, "k2": k2, "weight": weight}
    given = {name: found for name, found in values.items() if found}
    points = product(*given.values())
    return [KReciprocal(**dict(zip(given, point, strict=True))) for point in points]


class _Vectors:
    """V of every image under one k1 and k2, and what queries and gallery have in common of it."""

    def __init__(self, vectors: Lists, queries: int, total: int) -> None:
        self._vectors, self._gallery = vectors, total - queries
        self._by_member = _inverted(vectors, queries, total)
        self._last: tuple[tuple[int, int], Lists] | None = None

    def overlap(self, first: int, last: int) -> Lists:
        """Sparse rows for queries first to last: offsets, gallery rows, Jaccard similarity."""
        if self._last is None or self._last[0] != (first, last):  # asked once for each weight
            self._last = (first, last), _two_passes(
                neighbourhoods.overlap, last - first, first, self._vectors, self._by_member,
                self._gallery, values=np.float64,
            )
        return self._last[1]


@dataclass(frozen=True)
class Reranking:
    """The final distance as ranking needs it: distance = offset - (scale * score + bonus)."""

    scale: Floats
    """[Q], for the plain score (see `feature_rows`)."""
    offset: Floats
    """[Q]."""
    _weight: float
    _vectors: _Vectors

    def bonus(self, first: int, last: int) -> Lists:
        """Sparse rows for queries first to last: gallery rows, (1 - weight) * similarity.

        Pairs that are not listed share no neighbour: their Jaccard distance is 1, their bonus 0.
        """
        similar = self._vectors.overlap(first, last)
        return similar._replace(values=(1.0 - self._weight) * similar.values)


class Neighbours:
    """The nearest and the farthest of all images, found once for any number of settings."""

    def __init__(
        self, rows: Block, queries: int, base: Floats, nearest: NDArray[np.int32], scores: Floats,
        farthest: Floats, products: NDArray[np.float32] | None,
    ) -> None:
        self.products = products
        """Of prepared queries and gallery rows [Q, G], where they were kept."""
        self._rows, self._queries, self._base = rows, queries, base
        self._nearest, self._scores, self._farthest = nearest, scores, farthest
        self._vectors: dict[tuple[int, int], _Vectors] = {}

    @staticmethod
    def of(
        queries: Rows, gallery: Rows, settings: Sequence[KReciprocal], products: Products,
        share: Share,
    ) -> "Neighbours":
        """Compare all images with each other [N, N], block by block, as far as `settings` need."""
        rows = _together(queries.block(0, len(queries)), gallery.block(0, len(gallery)))
        total = len(rows.half)
        base = np.full(total, 2.0) if queries.unit else 2.0 * rows.half  # d = base - 2 score
        count = min(max(max(options.k1 + 1, options.k2) for options in settings), total)
        kept = _kept(len(queries), len(gallery), share)
        nearest, scores, farthest_score = _neighbours(rows, count, products, share, kept)
        farthest = base - 2.0 * farthest_score
        farthest[farthest <= 0.0] = 1.0  # all images are the same: every distance is 0
        return Neighbours(rows, len(queries), base, nearest, scores, farthest, kept)

    def rerank(self, options: KReciprocal) -> Reranking:
        """What one setting adds to the scores."""
        key = options.k1, options.k2
        if key not in self._vectors:
            count = min(max(options.k1 + 1, options.k2), len(self._nearest))
            vectors = _vectors(
                self._rows, np.ascontiguousarray(self._nearest[:, :count]),
                np.ascontiguousarray(self._scores[:, :count]), self._base, self._farthest, options,
            )
            self._vectors[key] = _Vectors(vectors, self._queries, len(self._nearest))
        farthest = self._farthest[: self._queries]
        return Reranking(
            scale=2.0 * options.weight / farthest,
            offset=options.weight * self._base[: self._queries] / farthest + 1.0 - options.weight,
            _weight=options.weight,
            _vectors=self._vectors[key],
        )


def _together(queries: Block, gallery: Block) -> Block:
    return Block(
        np.concatenate([queries.features, gallery.features]),
        np.concatenate([queries.norms, gallery.norms]),
        np.concatenate([queries.half, gallery.half]),
        np.concatenate([queries.inverse, gallery.inverse]),
    )


# ---- nearest and farthest ----


def _see(
    found: kernels.Extremes, product: NDArray[np.float32], half: NDArray[np.float32], i: int, j: int
) -> None:
    """Take in a product [r, c] of rows i... and rows j...: for its rows and its columns."""
    given = product, half, i, j, found
    spread(kernels.keep_by_row, product.shape[0], *given)
    if i != j:
        bounds = -found.far[:, -1], np.ascontiguousarray(found.near[:, -1])
        # few pieces: each goes through all rows, and reads its columns of them in one stretch
        spread(kernels.keep_by_column, product.shape[1], *given, *bounds, pieces=1)


def _nothing(total: int, count: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    return np.full((total, count), -np.inf, np.float32), np.zeros((total, count), np.int32)


def _kept(queries: int, gallery: int, share: Share) -> NDArray[np.float32] | None:
    """Room for products [Q, G]; none where they are too many, or several processes each see some.
    """
    if share.count > 1 or 4 * queries * gallery > KEPT_BYTES:
        return None
    return np.empty((queries, gallery), np.float32)


def _neighbours(
    rows: Block, count: int, products: Products, share: Share, kept: NDArray[np.float32] | None
) -> tuple[NDArray[np.int32], Floats, Floats]:
    """The `count` nearest of each row and their scores [N, count], itself included and first, and
    the score of the farthest [N]; those products that `kept` [Q, G] is for.

    A product of rows i and j is also that of rows j and i, so only half of all blocks is computed.
    """
    total, width = rows.features.shape
    near, far = min(count + SPARE, total), min(1 + SPARE // 4, total)
    found = kernels.Extremes(*_nothing(total, near), *_nothing(total, far))
    half = rows.half.astype(np.float32)
    sent = products.send(rows.features)
    for part, other in _pairs_once(total)[share.index :: share.count]:
        product = products(sent[part], sent[other])
        _see(found, product, half, part.start, other.start)
        if kept is not None:
            _keep(kept, product, part.start, other.start)
    largest = rows.norms * rows.norms.max()
    slack = rounding(width) * largest + 2.0**-22 * rows.half.max() + 1e-36
    nearest, scores = _settled(found.near, found.near_rows, 1, rows, slack, count, share)
    _, farthest = _settled(found.far, found.far_rows, -1, rows, slack, 1, share)
    return nearest, scores, farthest[:, 0]


def _keep(kept: NDArray[np.float32], product: NDArray[np.float32], i: int, j: int) -> None:
    """Put what product [r, c] of rows i... and j... has of queries and gallery into its place."""
    queries = len(kept)
    rows, column = max(queries - i, 0), max(queries - j, 0)
    part = product[:rows, column:]
    if part.size:
        first = j + column - queries
        kept[i : i + len(part), first : first + part.shape[1]] = part


def _pairs_once(total: int) -> list[tuple[slice, slice]]:
    """Blocks of rows and columns in which each pair comes once.

    Those on the diagonal have theirs twice; they are smaller, for less to be done in vain.
    """
    bands = _pieces(0, total, BLOCK)
    wide = [(rows, columns) for n, rows in enumerate(bands) for columns in bands[n + 1 :]]
    for band in bands:
        parts = _pieces(band.start, band.stop, -(-BLOCK // 4))
        wide += [(rows, columns) for n, rows in enumerate(parts) for columns in parts[n:]]
    return wide


def _pieces(start: int, stop: int, size: int) -> list[slice]:
    return [slice(first, min(first + size, stop)) for first in range(start, stop, size)]


def _settled(
    values: NDArray[np.float32], indices: NDArray[np.int32], sign: int, rows: Block, slack: Floats,
    count: int, share: Share,
) -> tuple[NDArray[np.int32], Floats]:
    """The `count` best of each row in exact order [N, count], and their scores."""
    values, indices = merged(share.gather(values), share.gather(indices))
    nearest = np.zeros((len(rows.half), count), np.int32)
    scores = np.zeros(nearest.shape)
    first, last = share.span(len(nearest))
    spread(
        kernels.settle, last - first, first, rows.features, rows.half, slack, np.float32(sign),
        values, indices, nearest, scores,
    )  # fmt: skip
    return share.add(nearest), share.add(scores)


# ---- neighbourhoods as sparse vectors ----


def _vectors(
    rows: Block, nearest: NDArray[np.int32], scores: Floats, base: Floats, farthest: Floats,
    options: KReciprocal,
) -> Lists:
    """V of every image, averaged over its k2 nearest: [N, N], sparse."""
    total, found = nearest.shape
    full = _reciprocal(nearest, min(options.k1 + 1, found))
    small = _reciprocal(nearest, min(round(options.k1 / 2) + 1, found))
    lists = _two_passes(neighbourhoods.neighbourhood, total, full, small)
    spread(
        neighbourhoods.weigh, total, rows.features, rows.half, nearest, scores, base, farthest,
        lists,
    )  # fmt: skip
    if options.k2 == 1:
        return lists
    return _two_passes(neighbourhoods.average, total, nearest, min(options.k2, found), lists)


def _reciprocal(nearest: NDArray[np.int32], size: int) -> neighbourhoods.Members:
    found = neighbourhoods.Members(
        np.empty((len(nearest), size), np.int32), np.empty(len(nearest), np.int64)
    )
    spread(neighbourhoods.reciprocal, len(nearest), nearest, size, found)
    return found


def _two_passes(
    kernel: Callable[..., Any], items: int, *arguments: Any, values: Any = np.float32
) -> Lists:
    """Run a kernel that makes lists: once for their sizes, once to fill them."""
    sizes = Lists(np.zeros(items + 1, np.int64), np.empty(0, np.int32), np.empty(0, values))
    spread(kernel, items, *arguments, False, sizes)
    offsets = np.cumsum(sizes.offsets)
    made = Lists(offsets, np.empty(offsets[-1], np.int32), np.empty(offsets[-1], values))
    spread(kernel, items, *arguments, True, made)
    return made


def _inverted(vectors: Lists, queries: int, total: int) -> Lists:
    """For each image, which gallery images have it in their vector, and with which weight."""
    count = int(vectors.offsets[-1] - vectors.offsets[queries])
    found = Lists(
        np.zeros(total + 1, np.int64), np.empty(count, np.int32), np.empty(count, np.float32)
    )
    neighbourhoods.invert(queries, vectors, found)
    return found
