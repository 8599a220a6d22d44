"""The loops of k-reciprocal re-ranking over lists of neighbours; conventions as in `kernels`."""

from typing import Any, NamedTuple

import numpy as np

from harness.base.compiled import kernel
from svll.evaluation.engine.kernels import Int32, Integers, dot

STRETCH = 64
"""Rows that are scanned in order where one of them is wanted: faster than sorting the wanted ones.
"""


class Members(NamedTuple):
    """Sets of images: the first counts[i] of rows[i] are those of set i."""

    rows: Int32
    counts: Integers


class Lists(NamedTuple):
    """A sparse matrix by rows: row i has `values` at `columns`, from offsets[i] to offsets[i+1]."""

    offsets: Integers
    columns: Int32
    values: Any


@kernel
def reciprocal(start, stop, nearest, size, found):  # type: ignore[no-untyped-def]
    """Members [N, size]: the rows among i's nearest that have i among their own nearest."""
    members, counts = found
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
def neighbourhood(start, stop, full_sets, small_sets, fill, made):  # type: ignore[no-untyped-def]
    """The expanded sets R* of the paper; without `fill`, only their sizes (offsets[1:]).

    A neighbour's small set joins if more than 2/3 of it are in i's full set. `weigh` fills values.
    """
    full, full_counts = full_sets
    small, small_counts = small_sets
    total = full.shape[0]
    in_full = np.full(total, -1, np.int32)
    in_union = np.full(total, -1, np.int32)
    union = np.empty(total, np.int32)
    for i in range(start, stop):
        size = full_counts[i]
        for n in range(size):
            j = full[i, n]
            in_full[j] = i
            in_union[j] = i
            union[n] = j
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
            made.columns[made.offsets[i] : made.offsets[i + 1]] = union[:size]
        else:
            made.offsets[i + 1] = size


@kernel
def weigh(start, stop, rows, half, nearest, scores, base, farthest, lists):  # type: ignore[no-untyped-def]
    """Fill the values: exp(-distance / farthest) of each member, each list summing to one.

    Most members are among the nearest, whose scores (but the image's own, the first) are known.
    """
    offsets, columns, weights = lists
    for i in range(start, stop):
        total = 0.0
        part = np.empty(offsets[i + 1] - offsets[i])
        for n in range(part.size):
            j = columns[offsets[i] + n]
            at = 1
            while at < nearest.shape[1] and nearest[i, at] != j:
                at += 1
            known = at < nearest.shape[1]
            score = scores[i, at] if known else dot(rows[i], rows[j]) - half[j]
            part[n] = np.exp(-(base[i] - 2.0 * score) / farthest[i])
            total += part[n]
        for n in range(part.size):
            weights[offsets[i] + n] = part[n] / total


@kernel
def average(start, stop, nearest, size, lists, fill, made):  # type: ignore[no-untyped-def]
    """Mean of the weight vectors of i's `size` nearest; without `fill`, only the lists' sizes."""
    offsets, columns, weights = lists
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
                made.columns[made.offsets[i] + n] = touched[n]
                made.values[made.offsets[i] + n] = sums[touched[n]] / size
        else:
            made.offsets[i + 1] = count


@kernel
def invert(first, lists, turned):  # type: ignore[no-untyped-def]
    """Transpose lists of rows `first`...: for each column, the rows counted from `first`."""
    offsets, columns, weights = lists
    by_column, owners, owner_weights = turned
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
def overlap(start, stop, base, lists, turned, gallery, fill, made):  # type: ignore[no-untyped-def]
    """Jaccard similarity of query base + i and every gallery row that shares a member, by row.

    Both weight vectors sum to one, so if their minima sum to m, their maxima sum to 2 - m, and the
    similarity is m / (2 - m).
    """
    offsets, columns, weights = lists
    by_column, owners, owner_weights = turned
    seen = np.full(gallery, -1, np.int32)
    sums = np.zeros(gallery)
    stretches = np.zeros(gallery // STRETCH + 1, np.bool_)  # in which some row is seen
    for i in range(start, stop):
        count = 0
        for e in range(offsets[base + i], offsets[base + i + 1]):
            c = columns[e]
            for n in range(by_column[c], by_column[c + 1]):
                g = owners[n]
                if seen[g] != i:
                    seen[g] = i
                    sums[g] = 0.0
                    stretches[g // STRETCH] = True
                    count += 1
                if fill:
                    sums[g] += min(weights[e], owner_weights[n])
        if not fill:
            made.offsets[i + 1] = count
            continue
        at = made.offsets[i]
        for s in range(stretches.size):
            if not stretches[s]:
                continue
            stretches[s] = False
            for g in range(s * STRETCH, min((s + 1) * STRETCH, gallery)):
                if seen[g] == i:
                    made.columns[at] = g
                    made.values[at] = sums[g] / (2.0 - sums[g])
                    at += 1
