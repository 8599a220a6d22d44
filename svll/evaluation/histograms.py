"""Similarities of all pairs of query and gallery, counted in bins without being kept.

The cosine similarity s of a pair falls into bin round(2048 s) + 2048, so there are 4,097 bins, and
their edges lie at (k - 2048.5) / 2048: 0.00049 apart. Common values such as -1, 0 and 1 are
centres, away from any edge.

The float32 product of a block is good enough for some 96 pairs of 100. The others lie so near an
edge (see `rows.rounding`) that block shape, thread or device could decide the bin: they are
multiplied again in float64, in an order of our own. A pair's bin is therefore a function of its
two rows alone, and counts add up to the same however the work is split. Ever finer bins would
have ever more pairs near an edge: at 1,280 numbers a row these cost 0.15 of the product, and bins
half as wide would cost twice that.

Letters: Q queries, G gallery images, D width, c columns of one block.
"""

import threading
from typing import Any

import numpy as np

from svll.evaluation.kernels import first_at_least, kernel
from svll.evaluation.rows import Block, Integers, Products, Rows, rounding, spread

SCALE = 2048
BINS = 2 * SCALE + 1
EDGES = (np.arange(BINS + 1) - (SCALE + 0.5)) / SCALE
"""[BINS + 1]: bin b holds the similarities from EDGES[b] up to, not including, EDGES[b + 1]."""

QUERY_BLOCK, GALLERY_BLOCK = 1024, 4096  # 16 MB of products at a time
QUERY_NUMBERS, GALLERY_NUMBERS = 2**24, 2**23  # rows held at a time: 64 and 32 MB of float32
LANES = 64


def pair_counts(
    queries: Rows, gallery: Rows, products: Products, *, camera_filter: bool
) -> Integers:
    """How many pairs fall into each bin: [2, BINS], those of one identity, then the others.

    Both sides have unit rows. With `camera_filter`, pairs of one identity and camera do not count.
    """
    counts = np.zeros((2, BINS), np.int64)
    width = queries.features.shape[1]
    chunk = max(1, QUERY_NUMBERS // width)
    size = max(1, min(GALLERY_BLOCK, GALLERY_NUMBERS // width))
    for q, chosen in queries.blocks(chunk):
        sent = products.send(chosen.features)
        rows = slice(q, q + len(chosen.half))
        for g, block in gallery.blocks(size):
            columns = slice(g, g + len(block.half))
            labels = (
                queries.identities[rows], queries.cameras[rows],
                gallery.identities[columns], gallery.cameras[columns],
            )
            _count_block(chosen, block, sent, products, labels, camera_filter, counts)
    return counts


def _count_block(
    chosen: Block, block: Block, sent: Any, products: Products, labels: tuple[Integers, ...],
    camera_filter: bool, counts: Integers,
) -> None:
    """Add the pairs of some queries and one block of the gallery to counts [2, BINS]."""
    identities, cameras, block_identities, block_cameras = labels
    order = np.argsort(block_identities, kind="stable")
    slack = np.float32(rounding(block.features.shape[1]) + 2.0**-22)  # and of finding the bin
    lock, block_sent = threading.Lock(), products.send(block.features)

    def count(start: int, stop: int, *arguments: Any) -> None:
        own = np.zeros_like(counts)
        count_pairs(start, stop, *arguments, own)
        with lock:
            np.add(counts, own, out=counts)

    for base in range(0, len(sent), QUERY_BLOCK):
        product = products(sent[base : base + QUERY_BLOCK], block_sent)
        spread(
            count, len(product), product, base, chosen.features, block.features, slack,
            identities, cameras, order, block_identities[order], block_cameras, camera_filter,
        )  # fmt: skip


# ---- kernels ----


@kernel
def exact_dot(a, b, lanes):  # type: ignore[no-untyped-def]
    """a . b in float64 of two float32 rows [D], summed in an order that is always the same.

    `kernels.dot` promises as much; the sum over 64 `lanes` [LANES] is one that compilers turn into
    vector instructions: 260 ns instead of 680 at D = 1,280, both with rows from the L3 cache.
    """
    lanes[:] = 0.0
    whole = a.size - a.size % LANES
    for i in range(0, whole, LANES):
        x = a[i : i + LANES]
        y = b[i : i + LANES]
        for n in range(LANES):
            lanes[n] += np.float64(x[n]) * np.float64(y[n])
    for i in range(whole, a.size):
        lanes[i - whole] += np.float64(a[i]) * np.float64(b[i])
    half = LANES // 2
    while half:
        for n in range(half):
            lanes[n] += lanes[n + half]
        half //= 2
    return lanes[0]


@kernel
def exact_bin(similarity):  # type: ignore[no-untyped-def]
    """The bin of an exact similarity."""
    return min(max(np.int64(np.floor(similarity * SCALE + (SCALE + 0.5))), 0), BINS - 1)


@kernel
def nearest_bins(row, slack, low, doubtful):  # type: ignore[no-untyped-def]
    """low [c]: the bin of each similarity less `slack`; doubtful [c]: 1 where more is another."""
    scale = np.float32(SCALE)
    shift = np.float32(SCALE + 0.5)
    last = np.int32(BINS - 1)
    for c in range(row.size):
        # truncation is floor here: what falls below zero is bin 0 anyway
        lower = min(max(np.int32((row[c] - slack) * scale + shift), np.int32(0)), last)
        upper = min(max(np.int32((row[c] + slack) * scale + shift), np.int32(0)), last)
        low[c] = lower
        doubtful[c] = np.int32(lower != upper)


@kernel
def count_pairs(  # type: ignore[no-untyped-def]
    start, stop, product, base, queries, block, slack, identities, cameras,
    order, sorted_identities, block_cameras, camera_filter, counts,
):  # fmt: skip
    """Add the pairs of queries base + start ... and the block's rows to counts [2, BINS].

    `order` [c] sorts the block by identity. All pairs are counted first; those of one identity,
    few as a rule, are then moved, or taken out.
    """
    width = product.shape[1]
    tables = np.zeros((4, BINS), np.int32)  # four: the same bin twice running would have to wait
    bins = np.empty(width, np.int32)
    doubtful = np.empty(width, np.int32)
    again = np.empty(width, np.int32)
    lanes = np.empty(LANES)
    for r in range(start, stop):
        q = base + r
        nearest_bins(product[r], slack, bins, doubtful)
        found = 0
        for c in range(width):
            tables[c & 3, bins[c]] += 1
            again[found] = c
            found += doubtful[c]
        for n in range(found):
            c = again[n]
            tables[c & 3, bins[c]] -= 1
            bins[c] = exact_bin(exact_dot(queries[q], block[c], lanes))
            tables[c & 3, bins[c]] += 1
        at = first_at_least(sorted_identities, 0, width, identities[q])
        while at < width and sorted_identities[at] == identities[q]:
            c = order[at]
            counts[1, bins[c]] -= 1
            if not (camera_filter and block_cameras[c] == cameras[q]):
                counts[0, bins[c]] += 1
            at += 1
    for t in range(4):
        for b in range(BINS):
            counts[1, b] += tables[t, b]
