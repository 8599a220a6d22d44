"""The loops of ranking and of finding neighbours that no array operation expresses well, in Numba.

Letters: Q queries, G gallery images, N both together, D width, c columns of one block.

Each kernel works on items `start` to `stop` and does not hold Python's lock, so `machine.spread`
runs it in several threads, each on its own part.

A list per row (true matches, members of a neighbourhood, ...) is `offsets` [rows + 1] into arrays
that hold all lists end to end.
"""

import numpy as np

from harness.base.compiled import kernel

# ---- exact scores ----


@kernel
def sum_products(a, b, sums):  # type: ignore[no-untyped-def]
    """a . b by way of sums [16], 64 products at a time: a shape that becomes vector code."""
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
    """a . b in float64 of two float32 rows [D], the products exact and the order of the sum ours.

    The result depends on the two rows only, never on block shapes, threads or the machine: that
    makes ties of equal rows exact. A BLAS product does not promise it: seen at the edges of its
    tiles, and for few queries, equal rows come out different in their last bits.
    """
    return sum_products(a, b, np.empty(16))


@kernel
def prepare(start, stop, rows, unit, norms, half):  # type: ignore[no-untyped-def]
    """Fill norms [n]; divide rows [n, D] by them in place if `unit`, else fill half [n]."""
    for r in range(start, stop):
        square = dot(rows[r], rows[r])
        norms[r] = np.sqrt(square)
        if unit:
            if square > 0.0:  # an all-zero row stays as it is
                for i in range(rows.shape[1]):
                    rows[r, i] = np.float32(np.float64(rows[r, i]) / norms[r])
        else:
            half[r] = square / 2.0


@kernel
def measure(start, stop, rows, squares):  # type: ignore[no-untyped-def]
    """Fill squares [n], each row's product with itself."""
    for r in range(start, stop):
        squares[r] = dot(rows[r], rows[r])


@kernel
def score(query, row, half):  # type: ignore[no-untyped-def]
    """The exact score of a pair of prepared rows: larger is nearer."""
    return dot(query, row) - half


@kernel
def score_pairs(start, stop, queries, block, inverse, half, owners, columns, out):  # type: ignore[no-untyped-def]
    """out[k] = exact plain score of query owners[k] and row columns[k] of the block."""
    for k in range(start, stop):
        q, c = owners[k], columns[k]
        out[k] = dot(queries[q], block[c]) * inverse[c] - half[c]


@kernel
def first_at_least(values, low, high, wanted):  # type: ignore[no-untyped-def]
    """The first place from `low` to `high` whose value (ascending) is `wanted` or more."""
    while low < high:
        middle = (low + high) // 2
        if values[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low


@kernel
def look_up(start, stop, owners, wanted, offsets, columns, values, out):  # type: ignore[no-untyped-def]
    """out[k] = the value stored for column wanted[k] in list owners[k] (columns ascend), or 0."""
    for k in range(start, stop):
        high = offsets[owners[k] + 1]
        at = first_at_least(columns, offsets[owners[k]], high, wanted[k])
        out[k] = values[at] if at < high and columns[at] == wanted[k] else 0.0


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
def adjust(  # type: ignore[no-untyped-def]
    row, q, first, inverse, half, scale, removed_offsets, removed_columns,
    query_cameras, block_cameras, hide, bonus_offsets, bonus_columns, bonus_values,
):  # fmt: skip
    """Turn query q's row [c] of the product with gallery rows `first`... into scores.

    What a query does not rank becomes -inf: the columns listed as removed and, with `hide`, all
    under its own camera.
    """
    width = row.size
    for j in range(width):
        row[j] = row[j] * inverse[j] - half[j]
    if scale[q] != 1.0:
        for j in range(width):
            row[j] *= np.float32(scale[q])
    high = bonus_offsets[q + 1]
    e = first_at_least(bonus_columns, bonus_offsets[q], high, first)
    while e < high and bonus_columns[e] < first + width:
        row[bonus_columns[e] - first] += np.float32(bonus_values[e])
        e += 1
    high = removed_offsets[q + 1]
    e = first_at_least(removed_columns, removed_offsets[q], high, first)
    while e < high and removed_columns[e] < first + width:
        row[removed_columns[e] - first] = -np.inf
        e += 1
    if hide:
        for j in range(width):
            if block_cameras[j] == query_cameras[q]:
                row[j] = -np.inf


@kernel
def exact_score(q, j, first, queries, block, inverse, half, scale, offsets, columns, values):  # type: ignore[no-untyped-def]
    """The exact score of query q and row j of the block, with what is added to it."""
    high = offsets[q + 1]
    e = first_at_least(columns, offsets[q], high, first + j)
    bonus = values[e] if e < high and columns[e] == first + j else 0.0
    return scale[q] * (dot(queries[q], block[j]) * inverse[j] - half[j]) + bonus


@kernel
def reaching(row, lower, values):  # type: ignore[no-untyped-def]
    """Put what of row [c] is at `lower` or above into values; returns how many."""
    found = np.uint32(0)  # unsigned: a place that may be negative would be checked each time
    for low in range(0, row.size, 32):
        part = row[low : low + 32]
        _, reach = tally(part, lower, lower)
        if reach:
            for j in range(part.size):  # without a branch: which ones cannot be foreseen
                values[found] = part[j]
                found = np.uint32(found + np.uint32(part[j] >= lower))
    return np.int64(found)


@kernel
def decide(  # type: ignore[no-untyped-def]
    row, lower, upper, own, wanted, exact, q, first, queries, block, inverse, half, scale,
    bonus_offsets, bonus_columns, bonus_values,
):  # fmt: skip
    """How many of row [c] from `lower` to `upper` are better than the exact score `wanted`.

    `exact` [c] remembers exact scores, NaN where there is none yet.
    """
    better = 0
    for low in range(0, row.size, 64):  # few of which hold one
        part = row[low : low + 64]
        above, reach = tally(part, lower, upper)
        if reach == above:
            continue
        for j in range(low, low + part.size):
            if row[j] < lower or row[j] > upper or j == own:
                continue
            if np.isnan(exact[j]):
                exact[j] = exact_score(
                    q, j, first, queries, block, inverse, half, scale,
                    bonus_offsets, bonus_columns, bonus_values,
                )
            better += exact[j] > wanted or (exact[j] == wanted and j < own)
    return better


@kernel
def count_better(  # type: ignore[no-untyped-def]
    start, stop, product, near_inverse, base, first, queries, block, inverse, half, scale, slack,
    match_offsets, match_columns, match_scores, removed_offsets, removed_columns,
    query_cameras, block_cameras, hide, bonus_offsets, bonus_columns, bonus_values, counts,
):  # fmt: skip
    """Add to counts [matches] the columns of this block that rank before each true match.

    product [q, c] float32 holds queries `base`... against gallery rows `first`...; times
    near_inverse [c], and so on, it becomes their scores. Whatever lies within `slack` [Q] of a
    match's exact score is decided by its own exact score, and by the gallery index when these are
    equal. Only what reaches the query's worst match is looked at for each of them: most of a row is
    further away than all.
    """
    width = product.shape[1]
    values = np.empty(width + 1, np.float32)
    exact = np.empty(width)
    near_half = half.astype(np.float32)
    for r in range(start, stop):
        q = base + r
        row = product[r]
        adjust(
            row, q, first, near_inverse, near_half, scale, removed_offsets, removed_columns,
            query_cameras, block_cameras, hide, bonus_offsets, bonus_columns, bonus_values,
        )
        low, high = match_offsets[q], match_offsets[q + 1]
        if low == high:
            continue
        worst = match_scores[low]
        for k in range(low, high):
            worst = min(worst, match_scores[k])
        found = reaching(row, np.float32(worst - slack[q]), values)
        known = False  # whether `exact` is this row's
        for k in range(low, high):
            lower = np.float32(match_scores[k] - slack[q])
            upper = np.float32(match_scores[k] + slack[q])
            above, reach = tally(values[:found], lower, upper)
            counts[k] += above
            own = match_columns[k] - first
            if reach - above == np.int32(0 <= own < width):
                continue  # nothing but the match itself is near
            if not known:
                exact[:] = np.nan
                known = True
            counts[k] += decide(
                row, lower, upper, own, match_scores[k], exact, q, first, queries, block,
                inverse, half, scale, bonus_offsets, bonus_columns, bonus_values,
            )


@kernel
def order_block(  # type: ignore[no-untyped-def]
    start, stop, first, queries, block, inverse, half, scale, doubtful, kept, indices,
    removed_offsets, removed_columns, query_cameras, block_cameras, hide,
    bonus_offsets, bonus_columns, bonus_values, scores, nearest, held,
):  # fmt: skip
    """Put this block's candidates into each query's list of nearest: scores, nearest [Q, k].

    Candidates of query q are indices[q] where kept[q] is not -inf; of a doubtful one, all columns
    that it ranks.
    """
    width = block.shape[0]
    for q in range(start, stop):
        for n in range(width if doubtful[q] else indices.shape[1]):
            j = n if doubtful[q] else indices[q, n] - first
            if doubtful[q]:
                high = removed_offsets[q + 1]
                e = first_at_least(removed_columns, removed_offsets[q], high, first + j)
                if e < high and removed_columns[e] == first + j:
                    continue
                if hide and block_cameras[j] == query_cameras[q]:
                    continue
            elif j < 0 or j >= width or kept[q, n] == -np.inf:
                continue
            exact = exact_score(
                q, j, first, queries, block, inverse, half, scale,
                bonus_offsets, bonus_columns, bonus_values,
            )
            place(scores[q], nearest[q], held[q], exact, first + j)
            held[q] = min(held[q] + 1, scores.shape[1])


@kernel
def add_weighted(start, stop, first, block, nearest, weights, total):  # type: ignore[no-untyped-def]
    """Add to total [Q, D] those of each query's nearest [Q, k] that are in the block, weighted."""
    for q in range(start, stop):
        for n in range(nearest.shape[1]):
            j = nearest[q, n] - first
            if nearest[q, n] >= 0 and 0 <= j < block.shape[0]:
                for i in range(block.shape[1]):
                    total[q, i] += weights[q, n] * block[j, i]


# ---- neighbours ----


@kernel
def insert(values, indices, value, index):  # type: ignore[no-untyped-def]
    """Put `value` into values [K], descending, in place of the last."""
    at = values.size - 1
    while at > 0 and values[at - 1] < value:
        values[at], indices[at] = values[at - 1], indices[at - 1]
        at -= 1
    values[at], indices[at] = value, index


@kernel
def outside(part, half, low, high):  # type: ignore[no-untyped-def]
    """How many of part - half [c] lie below `low` or above `high`.

    Slices that are walked from 0 need no check for negative places, which would keep the loop from
    being turned into vectors.
    """
    hits = np.int32(0)
    for c in range(part.size):
        value = part[c] - half[c]
        hits = np.int32(hits + np.int32(value > high) + np.int32(value < low))
    return hits


@kernel
def outside_own(part, half, lows, highs):  # type: ignore[no-untyped-def]
    """The same, of part [c] - half, with bounds for each."""
    hits = np.int32(0)
    for c in range(part.size):
        value = part[c] - half
        hits = np.int32(hits + np.int32(value > highs[c]) + np.int32(value < lows[c]))
    return hits


@kernel
def keep_by_row(start, stop, product, half, row0, column0, near, near_rows, far, far_rows):  # type: ignore[no-untyped-def]
    """Keep for each row of product [r, c] its largest scores, and the negatives of its smallest.

    near [N, K] with the columns near_rows, and far [N, F] with far_rows, both descending. Columns
    are looked at 64 at a time: nearly always none of them is better than the worst that is kept.
    """
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
def keep_by_column(  # type: ignore[no-untyped-def]
    start, stop, product, half, row0, column0, near, near_rows, far, far_rows, lows, highs
):  # fmt: skip
    """The same for the columns: the product of two blocks serves both.

    lows and highs [N] repeat the bounds to be beaten, side by side in memory.
    """
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
def place(scores, indices, held, value, index):  # type: ignore[no-untyped-def]
    """Put a pair into lists that hold `held`, best first; equal values stand by index."""
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
def settle(start, stop, base, rows, half, slack, sign, values, indices, nearest, scores):  # type: ignore[no-untyped-def]
    """Fill nearest, scores [N, k] of rows `base`...: candidates by exact score, then by index.

    More candidates are kept than asked for. Where even the last of them is too near the k-th to be
    sure that none is missing (many copies of one image), all rows are looked at; mostly the last of
    them are too far from it to be looked at. Nearest to itself is always the image itself, before
    its copies.
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
            exact = sign * score(rows[i], rows[j], half[j])
            if j == i and sign > 0:
                exact = np.inf
            place(scores[i], nearest[i], min(n, wanted), exact, j)
        for n in range(wanted):
            scores[i, n] *= sign
