"""Queries against a gallery, block by block: how many rows beat each true match, who is nearest.

A metric needs only the rank of each true match, and that rank is one plus the number of gallery
images nearer to the query. So the product of queries and gallery is made block by block, the nearer
ones are counted, and the block is forgotten. What float32 cannot tell apart is compared again
exactly (see `feature_rows.rounding`).

Letters: Q queries of a chunk, G gallery images, P true matches of the chunk, k nearest wanted.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from svll.evaluation.engine import kernels
from svll.evaluation.engine.feature_rows import Block, Floats, Integers, Passes, Rows, rounding
from svll.evaluation.engine.kernels import Extras, Sides, TrueMatches, Unranked
from svll.evaluation.engine.matches import Chunk
from svll.evaluation.engine.nearest import Candidates, merged
from svll.evaluation.engine.products import Products, spread
from svll.evaluation.engine.ranks import Share

QUERY_BLOCK, GALLERY_BLOCK = 4096, 2048  # 32 MB of products at a time, the fastest shape seen


@dataclass(frozen=True)
class Compared:
    """A chunk under one setting."""

    ranks: Integers
    """[P], from 1."""
    nearest: Integers
    """[Q, k], gallery rows, best first; -1 where fewer are ranked."""
    scores: Floats
    """[Q, k], of the nearest; -inf where there is none."""


class Comparison:
    """Queries and a gallery, ready to be compared chunk by chunk; `share` of the gallery is ours.

    With `hide`, a query does not rank what is under its own camera. `known` [Q, G] are products of
    the prepared rows, where something else has computed them.
    """

    def __init__(
        self, queries: Rows, gallery: Rows, products: Products, *, hide: bool = False,
        nearest: int = 0, share: Share | None = None, known: NDArray[np.float32] | None = None,
    ) -> None:
        self._queries, self._gallery, self._products = queries, gallery, products
        self._known = known
        self._hide, self._share = hide, share or Share()
        self.count = min(nearest, len(gallery))
        self._blocks = Passes(gallery, GALLERY_BLOCK, self._share.span(len(gallery)))

    def __call__(self, chunk: Chunk, settings: Sequence[Extras]) -> list[Compared]:
        """Compare the chunk's queries with all rows once, and rank them under each setting."""
        block = self._queries.block(chunk.first, chunk.last)
        plain, largest = self._match_scores(chunk, block)
        passed = [_Setting(self, chunk, block, extras, plain, largest) for extras in settings]
        for first, part in self._blocks:
            for base, product, inverse in self._multiplied(chunk, block, first, part):
                for setting in passed[:-1]:
                    setting.see(product.copy(), inverse, base, first, part)
                passed[-1].see(product, inverse, base, first, part)
        return [setting.result() for setting in passed]

    def _multiplied(
        self, chunk: Chunk, block: Block, first: int, part: Block
    ) -> Iterator[tuple[int, NDArray[np.float32], NDArray[np.float32]]]:
        """The chunk's products with one block [q, c], from query `base` of it on, to be changed at
        will, and by what they are to be multiplied [c]: (base, product, inverse).

        Known ones are of rows that were brought to unit length before; what rounding that adds is
        within the slack.
        """
        inverse = part.inverse.astype(np.float32)
        if self._known is None:
            sent, part_sent = map(self._products.send, (block.features, part.features))
        for base in range(0, len(chunk), QUERY_BLOCK):
            if self._known is None:
                product = self._products(sent[base : base + QUERY_BLOCK], part_sent)
                yield base, product, inverse
            else:
                rows = slice(chunk.first + base, min(chunk.first + base + QUERY_BLOCK, chunk.last))
                known = self._known[rows, first : first + len(inverse)].copy()
                yield base, known, np.ones_like(inverse)

    def _match_scores(self, chunk: Chunk, block: Block) -> tuple[Floats, tuple[float, float]]:
        """The exact plain score of every true match [P]; the gallery's largest norm and half."""
        columns = chunk.match_columns
        owners, scores = chunk.owners, np.zeros(len(columns))
        identities = self._queries.identities[chunk.first : chunk.last]
        by_column = np.argsort(columns, kind="stable")
        ascending = columns[by_column]
        largest = np.zeros(2)
        for first, part in self._blocks:
            largest = np.maximum(largest, [part.norms.max(), part.half.max()])
            edges = np.searchsorted(ascending, [first, first + len(part.half)])
            here = by_column[edges[0] : edges[1]]
            # rows of one identity together: they are compared with each other only
            here = here[np.argsort(identities[owners[here]], kind="stable")]
            out = np.empty(len(here))
            sides = _sides(block, first, part)
            spread(
                kernels.score_pairs, len(here), sides, owners[here], columns[here] - first, out
            )
            scores[here] = out
        norm, half = self._share.largest(largest)
        return self._share.add(scores), (float(norm), float(half))


class _Setting:
    """One setting's counts and candidates while the blocks pass."""

    def __init__(
        self, parent: Comparison, chunk: Chunk, block: Block, extras: Extras, plain: Floats,
        largest: tuple[float, float],
    ) -> None:
        self._parent, self._chunk, self._block, self._extras = parent, chunk, block, extras
        owners, columns = chunk.owners, chunk.match_columns
        scores = np.zeros(len(columns))
        spread(kernels.add_extras, len(columns), extras, owners, columns, plain, scores)
        self._matches = TrueMatches(chunk.match_offsets, columns, scores)
        self._slack = _slack(block, largest, extras)
        self._counts = np.zeros(len(columns), np.int64)
        self._cameras = parent._queries.cameras[chunk.first : chunk.last]
        gallery = len(parent._gallery)
        self._candidates = (
            Candidates(len(chunk), parent.count, gallery) if parent.count else None
        )

    def see(
        self, product: NDArray[np.float32], inverse: NDArray[np.float32], base: int, first: int,
        part: Block,
    ) -> None:
        """Take in the product [q, c] of queries `base`... and the block at row `first`."""
        spread(
            kernels.count_better, len(product), product, inverse, base,
            _sides(self._block, first, part), self._extras, self._slack, self._matches,
            self._unranked(first, product.shape[1]), self._counts,
        )  # fmt: skip
        if self._candidates is not None:
            self._candidates.see(product, base, first)

    def result(self) -> Compared:
        """What all processes found together."""
        ranks = 1 + self._parent._share.add(self._counts)
        if self._candidates is None:
            return Compared(ranks, *(np.empty((len(self._chunk), 0), t) for t in (int, float)))
        nearest, scores = self._settled(self._candidates)
        return Compared(ranks, nearest, scores)

    def _settled(self, candidates: Candidates) -> tuple[Integers, Floats]:
        """The nearest in exact order; rows of the gallery are looked at once more."""
        queries = len(self._chunk)
        shape = queries, candidates.count
        nearest, scores = np.full(shape, -1, np.int32), np.full(shape, -np.inf)
        held, kept = np.zeros(queries, np.int64), candidates.kept(self._slack)
        for first, part in self._parent._blocks:
            spread(
                kernels.order_block, queries, _sides(self._block, first, part), self._extras, kept,
                self._unranked(first, len(part.half)), scores, nearest, held,
            )
        gather = self._parent._share.gather
        scores, nearest = merged(gather(scores), gather(nearest))
        return nearest.astype(np.int64), scores

    def _unranked(self, first: int, width: int) -> Unranked:
        """What the chunk's queries do not rank of `width` rows from `first` on."""
        chunk, parent = self._chunk, self._parent
        return Unranked(
            chunk.removed_offsets, chunk.removed_columns, self._cameras,
            parent._gallery.cameras[first : first + width], parent._hide,
        )


def _sides(queries: Block, first: int, part: Block) -> Sides:
    return Sides(queries.features, part.features, part.inverse, part.half, first)


def _slack(block: Block, largest: tuple[float, float], extras: Extras) -> Floats:
    """[Q]: how far a float32 score may be from the exact one, all roundings together."""
    norm, half = largest
    size = block.norms * norm
    product = rounding(block.features.shape[1]) * size
    later = 2.0**-22 * (size + half)  # subtracting, scaling, comparing
    bonus = 2.0**-22 * extras.values.max(initial=0.0)
    return extras.scale * (product + later) + bonus + 1e-36
