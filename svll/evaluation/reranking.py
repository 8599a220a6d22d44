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

Memory holds only k1 + a few neighbours per image, the sparse V, blocks of the product, and the
products of queries and gallery if they are small, as ranking needs them again. Neighbours are
decided by exact scores, equal ones by index. Each image comes first in its own list, so that no R
is empty.

Letters: Q queries, G gallery images, N both together (queries first), D width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from numbers import Real
from typing import Any

import numpy as np

from harness.base.errors import UserError
from svll.evaluation.engine import kernels, rerank_kernels
from svll.evaluation.engine.comparison import SPARE, merge_best
from svll.evaluation.engine.feature_rows import Block, Rows, rounding
from svll.evaluation.engine.kernels import Extras, Float32, Floats, Int32
from svll.evaluation.engine.products import Products, spread
from svll.evaluation.engine.rerank_kernels import Lists, Members
from svll.evaluation.engine.shared_work import Share
from svll.evaluation.pair import is_integer

BLOCK = 3072  # 36 MB of products at a time, the fastest size seen
ORDERED = 4096
"""Rows whose neighbours are ordered at a time: some seconds for slow cores and wide features."""
KEPT_BYTES = 2**30
"""Products of queries and gallery up to this size are kept for ranking."""


@dataclass(frozen=True)
class KReciprocal:
    """Settings of the re-ranking; the defaults are the paper's.

    >>> svll.KReciprocal(k1=30)
    KReciprocal(k1=30, k2=6, weight=0.3)
    """

    k1: int = 20
    """Number of nearest images that may be reciprocal neighbours."""
    k2: int = 6
    """Number of nearest images over which weight vectors are averaged; 1: no averaging."""
    weight: float = 0.3
    """Share of the original distance in the final one (the paper's lambda), 0 to 1."""

    def __post_init__(self) -> None:
        faults = [f"{name} is {value!r}; an integer of at least 1 is needed"
                  for name, value in (("k1", self.k1), ("k2", self.k2)) if not is_integer(value, 1)]
        if not isinstance(self.weight, Real) or not 0.0 <= self.weight <= 1.0:
            faults.append(f"weight is {self.weight!r}; it must lie between 0 and 1")
        if faults:
            raise UserError("re-ranking: " + "; ".join(faults))

    def __str__(self) -> str:
        return f"k1={self.k1}, k2={self.k2}, weight={self.weight:g}"


def grid(
    k1: Sequence[int] = (), k2: Sequence[int] = (), weight: Sequence[float] = ()
) -> list[KReciprocal]:
    """Return all combinations of the values; a setting without values keeps its default."""
    usual = KReciprocal()
    points = product(k1 or [usual.k1], k2 or [usual.k2], weight or [usual.weight])
    return [KReciprocal(*point) for point in points]


@dataclass(frozen=True)
class Reranking:
    """The final distance in terms of scores: distance = offset - (scale * score + bonus)."""

    scale: Floats
    """[Q], of the plain score (see `feature_rows`)."""
    offset: Floats
    """[Q]."""
    _weight: float
    _similarity: Callable[[int, int], Lists]

    def extras(self, first: int, last: int) -> Extras:
        """Return the terms of queries first to last; the bonus is (1 - weight) * similarity.

        Pairs that are not listed share no neighbour: their Jaccard distance is 1, their bonus 0.
        """
        offsets, columns, similarity = self._similarity(first, last)
        return Extras(self.scale[first:last], offsets, columns, (1.0 - self._weight) * similarity)


class Neighbours:
    """The nearest and the farthest of all images, found once for any number of settings."""

    def __init__(
        self, queries: Rows, gallery: Rows, settings: Sequence[KReciprocal], products: Products,
        share: Share,
    ) -> None:
        """Compare all images with each other [N, N], block by block, as far as `settings` need."""
        sides: Any = queries.block(0, len(queries)), gallery.block(0, len(gallery))
        self._rows = Block(*(np.concatenate(both) for both in zip(*sides, strict=True)))
        self._queries, total = len(queries), len(self._rows.half)
        self._base = np.full(total, 2.0) if queries.unit else 2.0 * self._rows.half
        """[N]: the distance is base - 2 score."""
        self.products: Float32 | None = None
        """Products of queries and gallery [Q, G], if they are few, and all here."""
        if share.count == 1 and 4 * len(queries) * len(gallery) <= KEPT_BYTES:
            self.products = np.empty((len(queries), len(gallery)), np.float32)
        count = min(max(max(options.k1 + 1, options.k2) for options in settings), total)
        self._nearest, self._scores, lowest = _neighbours(
            self._rows, count, products, share, self.products
        )
        self._farthest = self._base - 2.0 * lowest
        self._farthest[self._farthest <= 0.0] = 1.0  # all images are the same: every distance is 0
        self._similarities: dict[tuple[int, int], Callable[[int, int], Lists]] = {}

    def rerank(self, options: KReciprocal) -> Reranking:
        """Return the terms that one setting adds to the scores."""
        key = options.k1, options.k2
        if key not in self._similarities:
            self._similarities[key] = _similarity(self._averaged(*key), self._queries)
        weight, farthest = options.weight, self._farthest[: self._queries]
        offset = weight * self._base[: self._queries] / farthest + 1.0 - weight
        return Reranking(2.0 * weight / farthest, offset, weight, self._similarities[key])

    def _averaged(self, k1: int, k2: int) -> Lists:
        """Return V of every image, averaged over its k2 nearest: [N, N], sparse."""
        count = min(max(k1 + 1, k2), len(self._nearest))
        nearest = np.ascontiguousarray(self._nearest[:, :count])
        scores = np.ascontiguousarray(self._scores[:, :count])
        total, rows = len(nearest), self._rows
        sets = [_reciprocal(nearest, min(k + 1, count)) for k in (k1, round(k1 / 2))]
        vectors = _two_passes(rerank_kernels.neighbourhood, total, *sets)
        spread(rerank_kernels.weigh, total, rows.features, rows.half, nearest, scores, self._base,
               self._farthest, vectors)
        if k2 == 1:
            return vectors
        return _two_passes(rerank_kernels.average, total, nearest, min(k2, count), vectors)


def _similarity(vectors: Lists, queries: int) -> Callable[[int, int], Lists]:
    """Return a function: sparse Jaccard similarities of queries first to last and the gallery."""
    total, count = len(vectors.offsets) - 1, int(vectors.offsets[-1] - vectors.offsets[queries])
    # for each image, the gallery images with it in their vectors, and its weights there
    by_member = Lists(np.zeros(total + 1, np.int64), np.empty(count, np.int32),
                      np.empty(count, np.float32))
    rerank_kernels.invert(queries, vectors, by_member)

    @lru_cache(maxsize=1)  # called once per weight
    def similarity(first: int, last: int) -> Lists:
        lists = first, vectors, by_member, total - queries
        return _two_passes(rerank_kernels.overlap, last - first, *lists, values=np.float64)

    return similarity


def _reciprocal(nearest: Int32, size: int) -> Members:
    members = Members(np.empty((len(nearest), size), np.int32), np.empty(len(nearest), np.int64))
    spread(rerank_kernels.reciprocal, len(nearest), nearest, size, members)
    return members


def _two_passes(
    kernel: Callable[..., Any], items: int, *arguments: Any, values: Any = np.float32
) -> Lists:
    """Run a kernel that makes lists: once for their sizes, once to fill them."""
    sizes = Lists(np.zeros(items + 1, np.int64), np.empty(0, np.int32), np.empty(0, values))
    spread(kernel, items, *arguments, False, sizes)
    offsets = np.cumsum(sizes.offsets)
    lists = Lists(offsets, np.empty(offsets[-1], np.int32), np.empty(offsets[-1], values))
    spread(kernel, items, *arguments, True, lists)
    return lists


# ---- nearest and farthest ----


def _neighbours(
    rows: Block, count: int, products: Products, share: Share, kept: Float32 | None
) -> tuple[Int32, Floats, Floats]:
    """Return the `count` nearest of each row, itself included and first, and their scores [N,
    count], and the score of the farthest [N]; fill `kept` [Q, G] with its products.

    A product of rows i and j is also that of rows j and i, so only half of all blocks is computed.
    """
    total, width = rows.features.shape
    best = kernels.Extremes(*(
        array for size in (min(count + SPARE, total), min(1 + SPARE // 4, total))
        for array in (np.full((total, size), -np.inf, np.float32),
                      np.zeros((total, size), np.int32))
    ))
    half = rows.half.astype(np.float32)
    sent = products.send(rows.features)
    for part, other in share.stoppable(_pairs_once(total)[share.index :: share.count]):
        product = products(sent[part], sent[other])
        i, j = part.start, other.start
        lists = product, half, i, j, best
        spread(kernels.keep_by_row, product.shape[0], *lists)
        if i != j:
            bounds = -best.far[:, -1], np.ascontiguousarray(best.near[:, -1])
            # few pieces: each goes through all rows, and reads its columns of them in one stretch
            spread(kernels.keep_by_column, product.shape[1], *lists, *bounds, pieces=1)
        if kept is not None:
            _copy_products(kept, product, i, j)
    largest = rows.norms * rows.norms.max()
    slack = rounding(width) * largest + 2.0**-22 * rows.half.max() + 1e-36
    nearest, scores = _order_exactly(best.near, best.near_rows, 1, rows, slack, count, share)
    _, farthest = _order_exactly(best.far, best.far_rows, -1, rows, slack, 1, share)
    return nearest, scores, farthest[:, 0]


def _copy_products(kept: Float32, product: Float32, i: int, j: int) -> None:
    """Copy products of queries and gallery from the product [r, c] of rows i... and j...."""
    queries = len(kept)
    rows, column = max(queries - i, 0), max(queries - j, 0)
    part = product[:rows, column:]
    if part.size:
        first = j + column - queries
        kept[i : i + len(part), first : first + part.shape[1]] = part


def _pairs_once(total: int) -> list[tuple[slice, slice]]:
    """Return blocks of rows and columns that cover each pair once.

    Blocks on the diagonal cover theirs twice; they are smaller, to waste less work.
    """
    def pieces(start: int, stop: int, size: int) -> list[slice]:
        return [slice(first, min(first + size, stop)) for first in range(start, stop, size)]

    bands = pieces(0, total, BLOCK)
    blocks = [(rows, columns) for n, rows in enumerate(bands) for columns in bands[n + 1 :]]
    for band in bands:
        parts = pieces(band.start, band.stop, -(-BLOCK // 4))
        blocks += [(rows, columns) for n, rows in enumerate(parts) for columns in parts[n:]]
    return blocks


def _order_exactly(
    values: Float32, indices: Int32, sign: int, rows: Block, slack: Floats, count: int,
    share: Share,
) -> tuple[Int32, Floats]:
    """Return the `count` best of each row in exact order and their scores [N, count]."""
    values, indices = merge_best(share.gather(values), share.gather(indices))
    nearest = np.zeros((len(rows.half), count), np.int32)
    scores = np.zeros(nearest.shape)
    start, stop = share.span(len(nearest))
    for first in share.stoppable(range(start, stop, ORDERED)):
        spread(kernels.order_exactly, min(ORDERED, stop - first), first, rows.features, rows.half,
               slack, np.float32(sign), values, indices, nearest, scores)
    return share.add(nearest), share.add(scores)
