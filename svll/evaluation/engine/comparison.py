"""Queries against a gallery, block by block: how many rows beat each true match, who is nearest.

A metric needs only the rank of each true match, which is one plus the number of gallery images
nearer to the query. So the product of queries and gallery is computed block by block, nearer images
are counted, and the block is dropped. Scores that float32 cannot tell apart are compared exactly
(see `feature_rows.rounding`).

Letters: Q queries of a chunk, G gallery images, P true matches of the chunk, k nearest wanted.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from svll.evaluation.engine import kernels
from svll.evaluation.engine.feature_rows import Block, Passes, Rows, rounding
from svll.evaluation.engine.kernels import Extras, Float32, Floats, Int32, Integers, Sides
from svll.evaluation.engine.matches import Chunk
from svll.evaluation.engine.products import Products, spread
from svll.evaluation.engine.shared_work import Share

QUERY_BLOCK, GALLERY_BLOCK = 4096, 2048  # 32 MB of products at a time, the fastest shape seen
SPARE = 8
"""Candidates kept beyond k, so that float32 rounding loses none."""


class ChunkResult(NamedTuple):
    """Ranks [P] of true matches, from 1; nearest gallery rows, best first, and scores [Q, k].

    Where fewer than k rows are ranked, the nearest are -1 and their scores -inf.
    """

    ranks: Integers
    nearest: Integers
    scores: Floats


class Comparison:
    """Compares queries with this process's `share` of a gallery, chunk by chunk.

    With `hide`, a query does not rank images of its camera. `known` [Q, G]: products, if computed.
    """

    def __init__(
        self, queries: Rows, gallery: Rows, products: Products, *, hide: bool = False,
        nearest: int = 0, share: Share | None = None, known: Float32 | None = None,
    ) -> None:
        self.queries, self.gallery, self.hide = queries, gallery, hide
        self.share = share or Share()
        self.count = min(nearest, len(gallery))
        self.blocks = Passes(gallery, GALLERY_BLOCK, self.share.span(len(gallery)))
        self._products, self._known = products, known

    def __call__(self, chunk: Chunk, settings: Sequence[Extras]) -> list[ChunkResult]:
        """Compare the chunk's queries with all rows once, and rank them under each setting."""
        block = self.queries.block(chunk.first, chunk.last)
        plain, largest = self._match_scores(chunk, block)
        sent = None if self._known is not None else self._products.send(block.features)
        counts = [_Counts(self, chunk, block, extras, plain, largest) for extras in settings]
        for first, part in self.share.stoppable(self.blocks):
            for base, product, inverse in self._multiplied(chunk, sent, first, part):
                for count in counts[:-1]:
                    count.add(product.copy(), inverse, base, first, part)
                counts[-1].add(product, inverse, base, first, part)
        return [count.result() for count in counts]

    def _multiplied(
        self, chunk: Chunk, sent: Any, first: int, part: Block
    ) -> Iterator[tuple[int, Float32, Float32]]:
        """Yield base, product [q, c] of queries `base`... (may be changed), and its factors [c].

        sent: the chunk's queries as `Products.send` returns them.
        """
        inverse = part.inverse.astype(np.float32)
        if self._known is None:
            part_sent = self._products.send(part.features)
            for base in range(0, len(chunk), QUERY_BLOCK):
                yield base, self._products(sent[base : base + QUERY_BLOCK], part_sent), inverse
            return
        # these rows were normalised before the product; the slack covers the rounding
        known = self._known[chunk.first : chunk.last, first : first + len(inverse)]
        for base in range(0, len(chunk), QUERY_BLOCK):
            yield base, known[base : base + QUERY_BLOCK].copy(), np.ones_like(inverse)

    def _match_scores(self, chunk: Chunk, block: Block) -> tuple[Floats, tuple[float, float]]:
        """Return exact plain scores of true matches [P], and the gallery's largest norm, half."""
        columns = chunk.match_columns
        owners, scores = chunk.owners, np.zeros(len(columns))
        identities = self.queries.identities[chunk.first : chunk.last]
        by_column = np.argsort(columns, kind="stable")
        ascending = columns[by_column]
        largest = np.zeros(2)
        for first, part in self.share.stoppable(self.blocks):
            largest = np.maximum(largest, [part.norms.max(), part.half.max()])
            edges = np.searchsorted(ascending, [first, first + len(part.half)])
            here = by_column[edges[0] : edges[1]]
            # rows of one identity in a row: they are compared with each other only
            here = here[np.argsort(identities[owners[here]], kind="stable")]
            out, sides = np.empty(len(here)), _sides(block, first, part)
            pairs = owners[here], columns[here] - first
            spread(kernels.score_pairs, len(here), sides, *pairs, out)
            scores[here] = out
        norm, half = self.share.largest(largest)
        return self.share.add(scores), (float(norm), float(half))


class _Counts:
    """The counts and the candidates for the nearest of one setting, block after block."""

    def __init__(
        self, parent: Comparison, chunk: Chunk, block: Block, extras: Extras, plain: Floats,
        largest: tuple[float, float],
    ) -> None:
        self._parent, self._chunk, self._block, self._extras = parent, chunk, block, extras
        owners, columns = chunk.owners, chunk.match_columns
        scores = np.zeros(len(columns))
        spread(kernels.add_extras, len(columns), extras, owners, columns, plain, scores)
        self._matches = kernels.TrueMatches(chunk.match_offsets, columns, scores)
        self._slack = _slack(block, *largest, extras)
        self._counts = np.zeros(len(columns), np.int64)
        kept = (len(chunk), min(parent.count + SPARE, len(parent.gallery)))
        none = np.full((len(chunk), 1), np.inf, np.float32)  # the farthest are not wanted
        self._best = kernels.Extremes(np.full(kept, -np.inf, np.float32), np.zeros(kept, np.int32),
                              none, np.zeros(none.shape, np.int32))
        self._no_half = np.zeros(len(parent.gallery), np.float32)

    def add(self, product: Float32, inverse: Float32, base: int, first: int, part: Block) -> None:
        """Count in the product [q, c] of queries `base`... and the block at row `first`."""
        sides, unranked = _sides(self._block, first, part), self._unranked(first, part)
        spread(kernels.count_better, len(product), product, inverse, base, sides, self._extras,
               self._slack, self._matches, unranked, self._counts)
        if self._parent.count:  # product now holds scores
            spread(kernels.keep_by_row, len(product), product, self._no_half, base, first,
                   self._best)

    def result(self) -> ChunkResult:
        """Return the counts and the nearest of all processes together."""
        parent, queries = self._parent, len(self._chunk)
        ranks = 1 + parent.share.add(self._counts)
        shape = queries, parent.count
        nearest, scores = np.full(shape, -1, np.int32), np.full(shape, -np.inf)
        if parent.count:
            values, indices, *_ = self._best
            last, kth = values[:, -1], values[:, parent.count - 1]
            # a query lost one of its nearest k only if float32 cannot tell many rows apart, such as
            # copies of one image
            doubtful = (last > -np.inf) & (last >= kth - 2 * self._slack)
            doubtful &= values.shape[1] < len(parent.gallery)
            candidates = kernels.Candidates(values, indices, doubtful)
            held = np.zeros(queries, np.int64)
            for first, part in parent.share.stoppable(parent.blocks):
                sides, unranked = _sides(self._block, first, part), self._unranked(first, part)
                spread(kernels.order_block, queries, sides, self._extras, candidates, unranked,
                       scores, nearest, held)
            gather = parent.share.gather
            scores, nearest = merge_best(gather(scores), gather(nearest))
        return ChunkResult(ranks, nearest.astype(np.int64), scores)

    def _unranked(self, first: int, part: Block) -> kernels.Unranked:
        """Return what the chunk's queries do not rank of the block at row `first`."""
        chunk, parent = self._chunk, self._parent
        cameras = parent.gallery.cameras[first : first + len(part.half)]
        asking = parent.queries.cameras[chunk.first : chunk.last]
        return kernels.Unranked(chunk.removed_offsets, chunk.removed_columns, asking, cameras,
                                parent.hide)


def _sides(queries: Block, first: int, part: Block) -> Sides:
    return Sides(queries.features, part.features, part.inverse, part.half, first)


def _slack(block: Block, norm: float, half: float, extras: Extras) -> Floats:
    """Bound the error of a float32 score [Q], all roundings together."""
    size = block.norms * norm
    product = rounding(block.features.shape[1]) * size
    later = 2.0**-22 * (size + half)  # subtracting, scaling, comparing
    bonus = 2.0**-22 * extras.values.max(initial=0.0)
    return extras.scale * (product + later) + bonus + 1e-36


def merge_best(scores: NDArray[Any], nearest: Int32) -> tuple[NDArray[Any], Int32]:
    """Return the best k [Q, k] of lists [parts, Q, k], equal scores in the order of their rows."""
    parts, queries, count = scores.shape
    if parts == 1:
        return scores[0], nearest[0]
    scores, nearest = (
        array.transpose(1, 0, 2).reshape(queries, parts * count) for array in (scores, nearest)
    )
    order = np.lexsort((nearest, -scores), axis=1)[:, :count]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(nearest, order, 1)
