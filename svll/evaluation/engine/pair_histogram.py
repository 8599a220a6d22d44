"""A histogram of the similarities of all pairs of query and gallery, without storing them.

The cosine similarity s of a pair falls into bin round(2048 s) + 2048, so there are 4,097 bins, and
their edges lie at (k - 2048.5) / 2048: 0.00049 apart. Common values such as -1, 0 and 1 are
centres, away from any edge.

The float32 product of a block is good enough for nearly all pairs. The others lie so near an edge
(see `Margin`) that block shape, thread or device could decide the bin: they are multiplied again in
float64, in a fixed order. A pair's bin thus depends on its two rows alone, and counts are the same
however the work is split. Bins half as wide would have twice as many pairs near an edge, which are
what costs time.

Letters: Q queries, G gallery images, D width, c columns of one block.
"""

import threading
from typing import Any, NamedTuple

import numpy as np

from harness.base.compiled import kernel
from svll.evaluation.engine.feature_rows import Integers, Rows, rounding
from svll.evaluation.engine.kernels import dot, first_at_least
from svll.evaluation.engine.products import Products, spread
from svll.evaluation.engine.shared_work import Share

SCALE = 2048
BINS = 2 * SCALE + 1
EDGES = (np.arange(BINS + 1) - (SCALE + 0.5)) / SCALE
"""[BINS + 1]: bin b holds the similarities from EDGES[b] up to, not including, EDGES[b + 1]."""

QUERY_BLOCK, GALLERY_BLOCK = 1024, 4096  # 16 MB of products at a time
QUERY_NUMBERS, GALLERY_NUMBERS = 2**24, 2**23  # rows held at a time: 64 and 32 MB of float32
TILE_NUMBERS = 80_000  # 320 KB of float32
SAMPLE, FACTOR = 10_000, 4.0
FINDING = 2.0**-22  # the error of finding the bin in float32


class Margin:
    """The largest error to expect of a float32 product of this data.

    It starts as `rounding`, the bound for the worst rows: 37 times the largest error of common
    features, so that pairs this near an edge would cost half as much as the product. Once SAMPLE
    pairs were multiplied again, it is FACTOR times the largest error among them; a part with a
    larger error is counted again.
    """

    def __init__(self, width: int) -> None:
        self.most = np.float32(rounding(width) + FINDING)
        self._seen, self._largest, self._lock = 0, 0.0, threading.Lock()

    @property
    def value(self) -> np.float32:
        if self._seen < SAMPLE:
            return self.most
        return max(self.most / 8, self._needed(self._largest))

    def holds(self, used: np.float32, seen: int, largest: float) -> bool:
        """Return whether a part counted with `used` holds, given the largest of `seen` errors."""
        with self._lock:
            self._seen, self._largest = self._seen + seen, max(self._largest, largest)
        return bool(used >= self._needed(largest))

    def _needed(self, error: float) -> np.float32:
        return min(self.most, np.float32(FACTOR * error + FINDING))


class Labels(NamedTuple):
    """Labels of the queries and of a block's rows, which `order` [c] sorts by identity."""

    identities: Integers
    cameras: Integers
    order: Integers
    sorted_identities: Integers
    block_cameras: Integers
    hide: bool


def pair_counts(
    queries: Rows, gallery: Rows, products: Products, *, hide: bool = False,
    share: Share | None = None,
) -> Integers:
    """Count the pairs in each bin: [2, BINS], those of one identity, then the others.

    Both sides have unit rows. Pairs of one identity and camera do not count; with `hide`, no pair
    of one camera does. Processes of a `share` divide the gallery, and all get the sum.
    """
    share, counts, lock = share or Share(), np.zeros((2, BINS), np.int64), threading.Lock()
    width = queries.features.shape[1]
    margin = Margin(width)

    def count(start: int, stop: int, *arguments: Any) -> None:
        while True:
            used, own = margin.value, np.zeros_like(counts)
            seen, largest = count_pairs(start, stop, used, *arguments, own)
            if margin.holds(used, seen, largest):
                break
        with lock:
            np.add(counts, own, out=counts)

    size = max(1, min(GALLERY_BLOCK, GALLERY_NUMBERS // width))
    for q, chosen in queries.blocks(max(1, QUERY_NUMBERS // width)):
        sent = products.send(chosen.features)
        rows = slice(q, q + len(chosen.half))
        for g, block in gallery.blocks(size, share.span(len(gallery))):
            columns = slice(g, g + len(block.half))
            order = np.argsort(gallery.identities[columns], kind="stable")
            labels = Labels(queries.identities[rows], queries.cameras[rows], order,
                            gallery.identities[columns][order], gallery.cameras[columns], hide)
            sides, block_sent = (chosen.features, block.features), products.send(block.features)
            for base in range(0, len(sent), QUERY_BLOCK):
                product = products(sent[base : base + QUERY_BLOCK], block_sent)
                spread(count, len(product), product, base, *sides, labels)
    return share.add(counts)


# ---- kernels ----


@kernel
def nearest_bins(row, slack, low, doubtful):  # type: ignore[no-untyped-def]
    """low [c]: the bin of each similarity - `slack`; doubtful [c]: 1 where + `slack` differs."""
    scale = np.float32(SCALE)
    shift = np.float32(SCALE + 0.5)
    last = np.int32(BINS - 1)
    for c in range(row.size):
        # truncation works as floor here: values below zero are in bin 0 anyway
        lower = min(max(np.int32((row[c] - slack) * scale + shift), np.int32(0)), last)
        upper = min(max(np.int32((row[c] + slack) * scale + shift), np.int32(0)), last)
        low[c] = lower
        doubtful[c] = np.int32(lower != upper)


@kernel
def settle_doubtful(base, product, queries, block, bins, columns, found, tables):  # type: ignore[no-untyped-def]
    """Move every doubtful pair to the bin of its exact similarity.

    columns [q, :found[q]] are those of query base + q, ascending. Tiles of the block serve all
    queries in turn, to stay in the L2 cache: 400 ns a pair, not 900. Returns the largest error.
    """
    largest = 0.0
    tile = max(16, TILE_NUMBERS // block.shape[1])
    at = np.zeros(found.size, np.int64)
    for right in range(tile, block.shape[0] + tile, tile):
        for r in range(found.size):
            while at[r] < found[r] and columns[r, at[r]] < right:
                c = columns[r, at[r]]
                tables[c & 3, bins[r, c]] -= 1
                exact = dot(queries[base + r], block[c])
                largest = max(largest, abs(exact - product[r, c]))
                at_bin = np.int64(np.floor(exact * SCALE + (SCALE + 0.5)))
                bins[r, c] = min(max(at_bin, 0), BINS - 1)
                tables[c & 3, bins[r, c]] += 1
                at[r] += 1
    return largest


@kernel
def count_pairs(start, stop, slack, product, base, queries, block, labels, counts):  # type: ignore[no-untyped-def]
    """Add the pairs of queries base + start ... and the block's rows to counts [2, BINS].

    All pairs are counted first; those of one identity, usually few, are then moved or removed.
    Returns the number of pairs multiplied again and the largest error found.
    """
    identities, cameras, order, sorted_identities, block_cameras, hide = labels
    rows, width = stop - start, product.shape[1]
    tables = np.zeros((4, BINS), np.int32)  # four: one bin twice in a row would stall
    bins = np.empty((rows, width), np.int32)
    columns = np.empty((rows, width), np.int32)
    found = np.zeros(rows, np.int64)
    doubtful = np.empty(width, np.int32)
    for r in range(rows):
        nearest_bins(product[start + r], slack, bins[r], doubtful)
        n = 0
        for c in range(width):
            tables[c & 3, bins[r, c]] += 1
            columns[r, n] = c
            n += doubtful[c]
        found[r] = n
    part = product[start:stop]
    largest = settle_doubtful(base + start, part, queries, block, bins, columns, found, tables)
    for r in range(rows):
        q = base + start + r
        if hide:
            for c in range(width):
                if block_cameras[c] == cameras[q]:
                    counts[1, bins[r, c]] -= 1
        at = first_at_least(sorted_identities, 0, width, identities[q])
        while at < width and sorted_identities[at] == identities[q]:
            c = order[at]
            is_same = block_cameras[c] == cameras[q]
            if not (hide and is_same):
                counts[1, bins[r, c]] -= 1
            if not is_same:
                counts[0, bins[r, c]] += 1
            at += 1
    for t in range(4):
        for b in range(BINS):
            counts[1, b] += tables[t, b]
    return found.sum(), largest
