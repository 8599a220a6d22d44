"""The loops of ranking and re-ranking that no array operation expresses well, compiled by Numba.

Letters: Q queries, G gallery images, N both together, D width, c columns of one block.

Each kernel works on items `start` to `stop` and does not hold Python's lock, so `rows.spread` runs
it in several threads, each on its own part. They stand in one file because Numba's cache notices a
change in a kernel's own file only, not in a file that it calls. Compiling all takes some 8 s, once.

A list per row (true matches, members of a neighbourhood, ...) is `offsets` [rows + 1] into arrays
that hold all lists end to end.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile `function` at its first call; the result is cached where the disk allows it."""
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no folder to write a cache to: compile anew in each process
        return njit(nogil=True)(function)


# ---- exact scores ----


@kernel
def dot(a, b):  # type: ignore[no-untyped-def]
    """a . b in float64 of two float32 rows [D], the products exact and the order of the sum ours.

    The result depends on the two rows only, never on block shapes, threads or the machine: that
    makes ties of equal rows exact. A BLAS product does not promise it: seen at the edges of its
    tiles, and for few queries, equal rows come out different in their last bits.
    """
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = 0.0
    whole = a.size - a.size % 8
    for i in range(0, whole, 8):
        s0 += np.float64(a[i]) * np.float64(b[i])
        s1 += np.float64(a[i + 1]) * np.float64(b[i + 1])
        s2 += np.float64(a[i + 2]) * np.float64(b[i + 2])
        s3 += np.float64(a[i + 3]) * np.float64(b[i + 3])
        s4 += np.float64(a[i + 4]) * np.float64(b[i + 4])
        s5 += np.float64(a[i + 5]) * np.float64(b[i + 5])
        s6 += np.float64(a[i + 6]) * np.float64(b[i + 6])
        s7 += np.float64(a[i + 7]) * np.float64(b[i + 7])
    for i in range(whole, a.size):
        s0 += np.float64(a[i]) * np.float64(b[i])
    return ((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7))


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
def score(query, row, half, scale, bonus):  # type: ignore[no-untyped-def]
    """The exact score of a pair: larger is nearer."""
    return scale * (dot(query, row) - half) + bonus


@kernel
def score_pairs(start, stop, queries, block, half, scale, owners, columns, bonuses, out):  # type: ignore[no-untyped-def]
    """out[k] = exact score of query owners[k] and row columns[k] of the block."""
    for k in range(start, stop):
        q, c = owners[k], columns[k]
        out[k] = score(queries[q], block[c], half[c], scale[q], bonuses[k])


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
    """How many of row [c] lie above `upper`, and how many at `lower` or above."""
    above = np.int32(0)
    reach = np.int32(0)
    for j in range(row.size):
        above += np.int32(row[j] > upper)
        reach += np.int32(row[j] >= lower)
    return above, reach


@kernel
def adjust(row, bonus, first, scale, removed, columns, values):  # type: ignore[no-untyped-def]
    """Turn one row of the product into scores; bonus [c] gets the exact float64 extras."""
    if scale != 1.0:
        for j in range(row.size):
            row[j] *= np.float32(scale)
    e = first_at_least(columns, 0, columns.size, first)
    while e < columns.size and columns[e] < first + row.size:
        bonus[columns[e] - first] = values[e]
        row[columns[e] - first] += np.float32(values[e])
        e += 1
    e = first_at_least(removed, 0, removed.size, first)
    while e < removed.size and removed[e] < first + row.size:
        row[removed[e] - first] = -np.inf
        e += 1


@kernel
def count_better(  # type: ignore[no-untyped-def]
    start, stop, product, base, first, queries, block, half, scale, slack,
    match_offsets, match_columns, match_scores, removed_offsets, removed_columns,
    bonus_offsets, bonus_columns, bonus_values, counts,
):  # fmt: skip
    """Add to counts [matches] the columns of this block that rank before each true match.

    product [q, c] float32 holds queries `base`... against gallery rows `first`...; it is changed in
    place. Whatever lies within `slack` [Q] of a match's exact score is decided by its own exact
    score, and by the gallery index when these are equal.
    """
    width = product.shape[1]
    bonus = np.zeros(width)
    exact = np.empty(width)
    for r in range(start, stop):
        q = base + r
        row = product[r]
        extras = slice(bonus_offsets[q], bonus_offsets[q + 1])
        removed = removed_columns[removed_offsets[q] : removed_offsets[q + 1]]
        bonus[:] = 0.0
        exact[:] = np.nan
        adjust(row, bonus, first, scale[q], removed, bonus_columns[extras], bonus_values[extras])
        for k in range(match_offsets[q], match_offsets[q + 1]):
            lower = np.float32(match_scores[k] - slack[q])
            upper = np.float32(match_scores[k] + slack[q])
            above, reach = tally(row, lower, upper)
            counts[k] += above
            own = match_columns[k] - first
            if reach - above == np.int32(0 <= own < width):
                continue  # nothing but the match itself is near
            for j in range(width):
                if row[j] < lower or row[j] > upper or j == own:
                    continue
                if np.isnan(exact[j]):
                    exact[j] = score(queries[q], block[j], half[j], scale[q], bonus[j])
                if exact[j] > match_scores[k] or (exact[j] == match_scores[k] and j < own):
                    counts[k] += 1


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
def keep_by_row(start, stop, product, half, sign, row0, column0, values, indices):  # type: ignore[no-untyped-def]
    """Keep for each row of product [r, c] its largest sign * score in values, indices [N, K].

    Columns are looked at 64 at a time: nearly always none of them beats the worst that is kept.
    """
    last = values.shape[1] - 1
    for r in range(start, stop):
        i = row0 + r
        for low in range(0, product.shape[1], 64):
            high = min(low + 64, product.shape[1])
            bar = values[i, last]
            hits = np.int32(0)
            for c in range(low, high):
                hits += np.int32(sign * (product[r, c] - half[column0 + c]) > bar)
            if hits:
                for c in range(low, high):
                    value = sign * (product[r, c] - half[column0 + c])
                    if value > values[i, last]:
                        insert(values[i], indices[i], value, column0 + c)


@kernel
def keep_by_column(start, stop, product, half, sign, row0, column0, values, indices, bars):  # type: ignore[no-untyped-def]
    """The same for the columns: the product of two blocks serves both.

    bars [N] repeats the worst value kept, side by side in memory.
    """
    last = values.shape[1] - 1
    for r in range(product.shape[0]):
        for low in range(start, stop, 64):
            high = min(low + 64, stop)
            hits = np.int32(0)
            for c in range(low, high):
                hits += np.int32(sign * (product[r, c] - half[row0 + r]) > bars[column0 + c])
            if hits:
                for c in range(low, high):
                    value = sign * (product[r, c] - half[row0 + r])
                    if value > bars[column0 + c]:
                        insert(values[column0 + c], indices[column0 + c], value, row0 + r)
                        bars[column0 + c] = values[column0 + c, last]


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
def settle(start, stop, rows, half, slack, sign, values, indices, nearest, scores):  # type: ignore[no-untyped-def]
    """Order the kept candidates by exact score, equal ones by index: nearest, scores [N, k].

    More candidates are kept than asked for. Where even the last of them is too near the k-th to be
    sure that none is missing (many copies of one image), all rows are looked at. Nearest to itself
    is always the image itself, before its copies.
    """
    total, kept = rows.shape[0], values.shape[1]
    wanted = nearest.shape[1]
    for i in range(start, stop):
        doubtful = kept < total and values[i, kept - 1] >= values[i, wanted - 1] - 2 * slack[i]
        for n in range(total if doubtful else kept):
            j = n if doubtful else indices[i, n]
            exact = sign * score(rows[i], rows[j], half[j], 1.0, 0.0)
            if j == i and sign > 0:
                exact = np.inf
            place(scores[i], nearest[i], min(n, wanted), exact, j)
        for n in range(wanted):
            scores[i, n] *= sign


# ---- k-reciprocal neighbourhoods ----


@kernel
def reciprocal(start, stop, nearest, size, members, counts):  # type: ignore[no-untyped-def]
    """members [N, size], counts [N]: those of i's nearest that have i among their own nearest."""
    for i in range(start, stop):
        counts[i] = 0
        for n in range(size):
            j = nearest[i, n]
            for m in range(size):
                if nearest[j, m] == i:
                    members[i, counts[i]] = j
                    counts[i] += 1
                    break


@kernel
def neighbourhood(  # type: ignore[no-untyped-def]
    start, stop, full, full_counts, small, small_counts, fill, offsets, columns, weights
):  # fmt: skip
    """The expanded sets R* of the paper; without `fill`, only their sizes (offsets[1:]).

    A neighbour's small set joins when more than two thirds of it are in i's full set. `weights` is
    for `weigh` to fill.
    """
    total = full.shape[0]
    in_full = np.full(total, -1, np.int32)
    in_union = np.full(total, -1, np.int32)
    union = np.empty(total, np.int32)
    for i in range(start, stop):
        size = 0
        for n in range(full_counts[i]):
            j = full[i, n]
            in_full[j] = i
            in_union[j] = i
            union[size] = j
            size += 1
        for n in range(full_counts[i]):
            j = full[i, n]
            common = 0
            for m in range(small_counts[j]):
                common += in_full[small[j, m]] == i
            if 3 * common <= 2 * small_counts[j]:
                continue
            for m in range(small_counts[j]):
                if in_union[small[j, m]] != i:
                    in_union[small[j, m]] = i
                    union[size] = small[j, m]
                    size += 1
        if fill:
            for n in range(size):
                columns[offsets[i] + n] = union[n]
        else:
            offsets[i + 1] = size


@kernel
def weigh(start, stop, rows, half, base, farthest, offsets, columns, weights):  # type: ignore[no-untyped-def]
    """weights: exp(-distance / farthest) of each member, each list summing to one."""
    for i in range(start, stop):
        total = 0.0
        part = np.empty(offsets[i + 1] - offsets[i])
        for n in range(part.size):
            j = columns[offsets[i] + n]
            distance = base[i] - 2.0 * score(rows[i], rows[j], half[j], 1.0, 0.0)
            part[n] = np.exp(-distance / farthest[i])
            total += part[n]
        for n in range(part.size):
            weights[offsets[i] + n] = part[n] / total


@kernel
def average(  # type: ignore[no-untyped-def]
    start, stop, nearest, size, offsets, columns, weights,
    fill, new_offsets, new_columns, new_weights,
):  # fmt: skip
    """Mean of the weight vectors of i's `size` nearest; without `fill`, only the lists' sizes."""
    total = nearest.shape[0]
    seen = np.full(total, -1, np.int32)
    sums = np.zeros(total)
    touched = np.empty(total, np.int32)
    for i in range(start, stop):
        count = 0
        for n in range(size):
            j = nearest[i, n]
            for e in range(offsets[j], offsets[j + 1]):
                c = columns[e]
                if seen[c] != i:
                    seen[c] = i
                    sums[c] = 0.0
                    touched[count] = c
                    count += 1
                sums[c] += weights[e]
        if fill:
            for n in range(count):
                new_columns[new_offsets[i] + n] = touched[n]
                new_weights[new_offsets[i] + n] = sums[touched[n]] / size
        else:
            new_offsets[i + 1] = count


@kernel
def invert(first, offsets, columns, weights, by_column, owners, owner_weights):  # type: ignore[no-untyped-def]
    """Lists of rows `first`... turned round: for each column, the rows (counted from `first`)."""
    for e in range(offsets[first], offsets[-1]):
        by_column[columns[e] + 1] += 1
    for c in range(1, by_column.size):
        by_column[c] += by_column[c - 1]
    at = by_column[:-1].copy()
    for i in range(first, offsets.size - 1):
        for e in range(offsets[i], offsets[i + 1]):
            c = columns[e]
            owners[at[c]] = i - first
            owner_weights[at[c]] = weights[e]
            at[c] += 1


@kernel
def ascend(values, count):  # type: ignore[no-untyped-def]
    """Sort the first `count` values in place (Shell sort; np.sort takes 6 s to compile)."""
    gap = 1
    while 3 * gap < count:
        gap = 3 * gap + 1
    while gap:
        for n in range(gap, count):
            value = values[n]
            at = n
            while at >= gap and values[at - gap] > value:
                values[at] = values[at - gap]
                at -= gap
            values[at] = value
        gap //= 3


@kernel
def overlap(  # type: ignore[no-untyped-def]
    start, stop, base, offsets, columns, weights, by_column, owners, owner_weights, gallery,
    fill, out_offsets, out_columns, out_values,
):  # fmt: skip
    """Jaccard similarity of query base + i with every gallery row that shares a member with it,
    in the order of the rows.

    Both weight vectors sum to one, so with m the sum of the minima the maxima sum to 2 - m, and
    the similarity is m / (2 - m).
    """
    seen = np.full(gallery, -1, np.int32)
    sums = np.zeros(gallery)
    touched = np.empty(gallery, np.int32)
    for i in range(start, stop):
        count = 0
        for e in range(offsets[base + i], offsets[base + i + 1]):
            c = columns[e]
            for n in range(by_column[c], by_column[c + 1]):
                g = owners[n]
                if seen[g] != i:
                    seen[g] = i
                    sums[g] = 0.0
                    touched[count] = g
                    count += 1
                sums[g] += min(weights[e], owner_weights[n])
        if fill:
            ascend(touched, count)
            for n in range(count):
                g = touched[n]
                out_columns[out_offsets[i] + n] = g
                out_values[out_offsets[i] + n] = sums[g] / (2.0 - sums[g])
        else:
            out_offsets[i + 1] = count
