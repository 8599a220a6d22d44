"""The loops of ranking and of the search for neighbours, compiled by Numba.

Letters: Q queries, G gallery images, N both together, D width, c columns of one block.

Each kernel processes items `start` to `stop` without Python's lock, so `products.spread` runs it in
several threads. A list per row (true matches, ...) is `offsets` [rows + 1] into
arrays that hold all lists end to end.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.base.compiled import kernel

Floats = NDArray[np.float64]
Float32 = NDArray[np.float32]
Integers = NDArray[np.int64]
Int32 = NDArray[np.int32]


class Sides(NamedTuple):
    """Queries [Q, D] of a chunk and the gallery's block [c, D] from row `first` on.

    A product with row i is multiplied by inverse[i]; half[i] is then subtracted.
    """

    queries: Float32
    block: Float32
    inverse: Floats
    half: Floats
    first: int


class Extras(NamedTuple):
    """Terms of re-ranking: score = scale * plain score + bonus, the bonus in sparse lists."""

    scale: Floats
    offsets: Integers
    columns: Int32
    values: Floats

    @staticmethod
    def none(queries: int) -> "Extras":
        """Plain scores."""
        lists = np.zeros(queries + 1, np.int64), np.zeros(0, np.int32), np.zeros(0)
        return Extras(np.ones(queries), *lists)


class Unranked(NamedTuple):
    """Columns that queries do not rank: those listed and, with `hide`, all of their own camera."""

    offsets: Integers
    columns: Integers
    query_cameras: Integers
    block_cameras: Integers
    hide: bool


class TrueMatches(NamedTuple):
    """The true matches of each query, with their exact scores."""

    offsets: Integers
    columns: Integers
    scores: Floats


class Candidates(NamedTuple):
    """Candidates of each query with float32 scores [Q, n]; doubtful [Q]: any row may be nearer."""

    values: Float32
    indices: Int32
    doubtful: NDArray[np.bool_]


class Extremes(NamedTuple):
    """Each row's largest scores and negated smallest scores [N, K], descending, and their rows."""

    near: Float32
    near_rows: Int32
    far: Float32
    far_rows: Int32


# ---- exact scores ----


@kernel
def sum_products(a, b, sums):  # type: ignore[no-untyped-def]
    """a . b through sums [16], 64 products at a time: the compiler turns this into vector code."""
    sums[:] = 0.0
    whole = a.size - a.size % 64
    for i in range(0, whole, 64):
        for k in range(16):
            first = np.float64(a[i + k]) * np.float64(b[i + k])
            second = np.float64(a[i + k + 16]) * np.float64(b[i + k + 16])
            third = np.float64(a[i + k + 32]) * np.float64(b[i + k + 32])
            fourth = np.float64(a[i + k + 48]) * np.float64(b[i + k + 48])
            sums[k] += (first + second) + (third + fourth)
    for i in range(whole, a.size):
        sums[i % 16] += np.float64(a[i]) * np.float64(b[i])
    for half in (8, 4, 2, 1):
        for k in range(half):
            sums[k] += sums[k + half]
    return sums[0]


@kernel
def dot(a, b):  # type: ignore[no-untyped-def]
    """a . b in float64 of two float32 rows [D]: exact products, summed in a fixed order.

    The result depends on the two rows only, never on block shapes, threads or the machine, so equal
    rows tie exactly. BLAS does not promise it: at the edges of its tiles, and for few queries,
    equal rows were seen to differ in their last bits.
    """
    return sum_products(a, b, np.empty(16))


@kernel
def square_rows(start, stop, rows, squares):  # type: ignore[no-untyped-def]
    """Fill squares [n], |row|^2 of rows [n, D]; the rows may be read-only."""
    for r in range(start, stop):
        squares[r] = dot(rows[r], rows[r])


@kernel
def normalise_rows(start, stop, rows, squares):  # type: ignore[no-untyped-def]
    """Fill squares [n], |row|^2 of rows [n, D], and scale the rows to unit length in place."""
    for r in range(start, stop):
        squares[r] = dot(rows[r], rows[r])
        if squares[r] > 0.0:  # an all-zero row stays as it is
            norm = np.sqrt(squares[r])
            for i in range(rows.shape[1]):
                rows[r, i] = np.float32(np.float64(rows[r, i]) / norm)


@kernel
def plain_score(q, j, sides):  # type: ignore[no-untyped-def]
    """The exact score of query q and row j of the block before re-ranking: larger is nearer."""
    return dot(sides.queries[q], sides.block[j]) * sides.inverse[j] - sides.half[j]


@kernel
def score_pairs(start, stop, sides, owners, columns, out):  # type: ignore[no-untyped-def]
    """out[k] = exact plain score of query owners[k] and row columns[k] of the block."""
    for k in range(start, stop):
        out[k] = plain_score(owners[k], columns[k], sides)


@kernel
def first_at_least(values, low, high, wanted):  # type: ignore[no-untyped-def]
    """The first index from `low` to `high` whose value (ascending) is at least `wanted`."""
    while low < high:
        middle = (low + high) // 2
        if values[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low


@kernel
def listed(lists, q, first, stop):  # type: ignore[no-untyped-def]
    """The range of query q's list that holds columns (ascending) from `first` to `stop`."""
    high = lists.offsets[q + 1]
    low = first_at_least(lists.columns, lists.offsets[q], high, first)
    return low, first_at_least(lists.columns, low, high, stop)


@kernel
def bonus_of(extras, q, column):  # type: ignore[no-untyped-def]
    """The bonus of query q for a column; 0 where its list has none."""
    low, high = listed(extras, q, column, column + 1)
    return extras.values[low] if low < high else 0.0


@kernel
def add_extras(start, stop, extras, owners, columns, plain, out):  # type: ignore[no-untyped-def]
    """out[k] = the full score of query owners[k] and columns[k] from its plain score."""
    for k in range(start, stop):
        q = owners[k]
        out[k] = extras.scale[q] * plain[k] + bonus_of(extras, q, columns[k])


# ---- ranking ----


@kernel
def tally(row, lower, upper):  # type: ignore[no-untyped-def]
    """How many of row [c] lie above `upper`, and how many at `lower` or above.

    Counts stay 32-bit (Numba's sums of them are 64-bit otherwise): the loop is four times as fast.
    """
    above = np.int32(0)
    reach = np.int32(0)
    for j in range(row.size):
        above = np.int32(above + np.int32(row[j] > upper))
        reach = np.int32(reach + np.int32(row[j] >= lower))
    return above, reach


@kernel
def adjust(row, q, first, inverse, half, extras, unranked):  # type: ignore[no-untyped-def]
    """Turn query q's products [c] with rows `first`... into scores, -inf for those not ranked."""
    width = row.size
    for j in range(width):
        row[j] = row[j] * inverse[j] - half[j]
    if extras.scale[q] != 1.0:
        for j in range(width):
            row[j] *= np.float32(extras.scale[q])
    low, high = listed(extras, q, first, first + width)
    for e in range(low, high):
        row[extras.columns[e] - first] += np.float32(extras.values[e])
    low, high = listed(unranked, q, first, first + width)
    for e in range(low, high):
        row[unranked.columns[e] - first] = -np.inf
    if unranked.hide:
        for j in range(width):
            if unranked.block_cameras[j] == unranked.query_cameras[q]:
                row[j] = -np.inf


@kernel
def exact_score(q, j, sides, extras):  # type: ignore[no-untyped-def]
    """The exact full score of query q and row j of the block."""
    return extras.scale[q] * plain_score(q, j, sides) + bonus_of(extras, q, sides.first + j)


@kernel
def reaching(row, lower, values):  # type: ignore[no-untyped-def]
    """Copy the scores of row [c] that are at least `lower` into values; return their number."""
    found = np.uint32(0)  # unsigned: an index that may be negative is checked each time
    for low in range(0, row.size, 32):
        part = row[low : low + 32]
        _, reach = tally(part, lower, lower)
        if reach:
            for j in range(part.size):  # without a branch, which would be mispredicted
                values[found] = part[j]
                found = np.uint32(found + np.uint32(part[j] >= lower))
    return np.int64(found)


@kernel
def decide(row, lower, upper, own, wanted, exact, q, sides, extras):  # type: ignore[no-untyped-def]
    """How many of row [c] in the doubtful range beat `wanted`; exact [c] caches scores (or NaN)."""
    better = 0
    for low in range(0, row.size, 64):  # few of these parts hold one
        part = row[low : low + 64]
        above, reach = tally(part, lower, upper)
        if reach == above:
            continue
        for j in range(low, low + part.size):
            if row[j] < lower or row[j] > upper or j == own:
                continue
            if np.isnan(exact[j]):
                exact[j] = exact_score(q, j, sides, extras)
            better += exact[j] > wanted or (exact[j] == wanted and j < own)
    return better


@kernel
def count_better(  # type: ignore[no-untyped-def]
    start, stop, product, near_inverse, base, sides, extras, slack, matches, unranked, counts
):
    """Add to counts [P] the number of this block's columns that rank before each true match.

    product [q, c] float32 holds queries `base`... times the block; `adjust` turns it into scores.
    Scores within `slack` [Q] of a match's exact score are decided by their own exact scores, equal
    ones by gallery index. Only scores that reach the query's worst match are compared with each
    match: most of a row is further away.
    """
    width = product.shape[1]
    values = np.empty(width + 1, np.float32)
    exact = np.empty(width)
    near_half = sides.half.astype(np.float32)
    for r in range(start, stop):
        q = base + r
        row = product[r]
        adjust(row, q, sides.first, near_inverse, near_half, extras, unranked)
        low, high = matches.offsets[q], matches.offsets[q + 1]
        if low == high:
            continue
        worst = matches.scores[low:high].min()
        found = reaching(row, np.float32(worst - slack[q]), values)
        has_exact = False  # whether `exact` belongs to this row
        for k in range(low, high):
            wanted = matches.scores[k]
            lower, upper = np.float32(wanted - slack[q]), np.float32(wanted + slack[q])
            above, reach = tally(values[:found], lower, upper)
            counts[k] += above
            own = matches.columns[k] - sides.first
            if reach - above == np.int32(0 <= own < width):
                continue  # only the match itself is that near
            if not has_exact:
                exact[:] = np.nan
                has_exact = True
            counts[k] += decide(row, lower, upper, own, wanted, exact, q, sides, extras)


@kernel
def order_block(start, stop, sides, extras, candidates, unranked, scores, nearest, held):  # type: ignore[no-untyped-def]
    """Insert this block's candidates into each query's nearest: scores, nearest [Q, k].

    A doubtful query's candidates are all columns that it ranks; -inf marks an empty slot.
    """
    width, first = sides.block.shape[0], sides.first
    values, indices, doubtful = candidates
    for q in range(start, stop):
        for n in range(width if doubtful[q] else indices.shape[1]):
            j = n if doubtful[q] else indices[q, n] - first
            if doubtful[q]:
                low, high = listed(unranked, q, first + j, first + j + 1)
                is_own_camera = unranked.block_cameras[j] == unranked.query_cameras[q]
                if low < high or (unranked.hide and is_own_camera):
                    continue
            elif j < 0 or j >= width or values[q, n] == -np.inf:
                continue
            exact = exact_score(q, j, sides, extras)
            insert_exact(scores[q], nearest[q], held[q], exact, first + j)
            held[q] = min(held[q] + 1, scores.shape[1])


@kernel
def add_weighted(start, stop, first, block, nearest, weights, total):  # type: ignore[no-untyped-def]
    """Add to total [Q, D] the weighted rows of each query's nearest [Q, k] that the block holds."""
    for q in range(start, stop):
        for n in range(nearest.shape[1]):
            j = nearest[q, n] - first
            if nearest[q, n] >= 0 and 0 <= j < block.shape[0]:
                for i in range(block.shape[1]):
                    total[q, i] += weights[q, n] * block[j, i]


# ---- neighbours ----


@kernel
def insert(values, indices, value, index):  # type: ignore[no-untyped-def]
    """Insert `value` into values [K], descending; the last drops out."""
    at = values.size - 1
    while at > 0 and values[at - 1] < value:
        values[at], indices[at] = values[at - 1], indices[at - 1]
        at -= 1
    values[at], indices[at] = value, index


@kernel
def outside(part, half, low, high):  # type: ignore[no-untyped-def]
    """How many of part - half [c] lie below `low` or above `high`.

    Slices walked from 0 need no check for negative indices, which would prevent vector code.
    """
    hits = np.int32(0)
    for c in range(part.size):
        value = part[c] - half[c]
        hits = np.int32(hits + np.int32(value > high) + np.int32(value < low))
    return hits


@kernel
def outside_own(part, half, lows, highs):  # type: ignore[no-untyped-def]
    """How many of part [c] - half lie outside their own bounds lows, highs [c]."""
    hits = np.int32(0)
    for c in range(part.size):
        value = part[c] - half
        hits = np.int32(hits + np.int32(value > highs[c]) + np.int32(value < lows[c]))
    return hits


@kernel
def keep_by_row(start, stop, product, half, row0, column0, kept):  # type: ignore[no-untyped-def]
    """Keep each row's largest scores and negated smallest scores of product [r, c].

    Columns are tested 64 at a time: nearly always none of them beats the worst kept.
    """
    near, near_rows, far, far_rows = kept
    last, most = near.shape[1] - 1, far.shape[1] - 1
    for r in range(start, stop):
        i = row0 + r
        for low in range(0, product.shape[1], 64):
            part = product[r, low : low + 64]
            halves = half[column0 + low : column0 + low + part.size]
            if outside(part, halves, -far[i, most], near[i, last]) == 0:
                continue
            for c in range(part.size):
                value = part[c] - halves[c]
                if value > near[i, last]:
                    insert(near[i], near_rows[i], value, column0 + low + c)
                if -value > far[i, most]:
                    insert(far[i], far_rows[i], -value, column0 + low + c)


@kernel
def keep_by_column(start, stop, product, half, row0, column0, kept, lows, highs):  # type: ignore[no-untyped-def]
    """Do what `keep_by_row` does for the columns; lows, highs [N]: the bounds, contiguous."""
    near, near_rows, far, far_rows = kept
    last, most = near.shape[1] - 1, far.shape[1] - 1
    for r in range(product.shape[0]):
        own = half[row0 + r]
        for low in range(start, stop, 64):
            part = product[r, low : min(low + 64, stop)]
            first = column0 + low
            bounds = slice(first, first + part.size)
            if outside_own(part, own, lows[bounds], highs[bounds]) == 0:
                continue
            for c in range(part.size):
                value = part[c] - own
                if value > highs[first + c]:
                    insert(near[first + c], near_rows[first + c], value, row0 + r)
                    highs[first + c] = near[first + c, last]
                if value < lows[first + c]:
                    insert(far[first + c], far_rows[first + c], -value, row0 + r)
                    lows[first + c] = -far[first + c, most]


@kernel
def insert_exact(scores, indices, held, value, index):  # type: ignore[no-untyped-def]
    """Insert a pair into lists of `held` entries, best first; equal values in index order."""
    at = min(held, scores.size - 1)
    if held == scores.size and (
        scores[at] > value or (scores[at] == value and indices[at] < index)
    ):
        return
    while at > 0 and (
        scores[at - 1] < value or (scores[at - 1] == value and indices[at - 1] > index)
    ):
        scores[at], indices[at] = scores[at - 1], indices[at - 1]
        at -= 1
    scores[at], indices[at] = value, index


@kernel
def order_exactly(start, stop, base, rows, half, slack, sign, values, indices, nearest, scores):  # type: ignore[no-untyped-def]
    """Fill nearest, scores [N, k] of rows `base`...: candidates by exact score, then by index.

    There are more than k candidates, the last mostly too far away to be compared; where even the
    last may be nearer than the k-th (many copies of one image), all rows are compared. An image
    always ranks first in its own list, before its copies.
    """
    total, kept = rows.shape[0], values.shape[1]
    wanted = nearest.shape[1]
    for i in range(base + start, base + stop):
        enough = values[i, wanted - 1] - 2 * slack[i]
        doubtful = kept < total and values[i, kept - 1] >= enough
        for n in range(total if doubtful else kept):
            if not doubtful and values[i, n] < enough:
                break
            j = n if doubtful else indices[i, n]
            exact = sign * (dot(rows[i], rows[j]) - half[j])
            if j == i and sign > 0:
                exact = np.inf
            insert_exact(scores[i], nearest[i], min(n, wanted), exact, j)
        scores[i] *= sign
