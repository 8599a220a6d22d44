"""The order of training images: one global order per epoch, for any number of ranks.

A batch is an array of rows into the training records; rank r of W takes the r-th of W equal slices.
"""

import numpy as np
from numpy.typing import NDArray

from harness.base.rng import generator

Rows = NDArray[np.int64]


def identity_batches(
    identities: Rows, *, batch: int, instances: int, seed: int, epoch: int
) -> list[Rows]:
    """Return an epoch of P x K batches: `batch / instances` identities, `instances` images of each.

    identities [n]. Each identity's images are shuffled and cut into groups of `instances`
    (identities with fewer images draw with replacement; a remainder is left out of this epoch);
    groups are drawn until fewer than P identities have any left (Hermans et al. 2017; as CLIP-ReID
    samples). Time: O(n log N) for N identities.
    """
    rng = generator(seed, epoch, 1)
    labels, counts = np.unique(identities, return_counts=True)
    # one sort, not a search per identity: there may be tens of thousands
    of_label = np.split(np.argsort(identities, kind="stable"), np.cumsum(counts)[:-1])
    per_batch = batch // instances
    groups: list[list[Rows]] = []
    for rows in of_label:
        if len(rows) < instances:
            rows = rng.choice(rows, size=instances, replace=True)
        rows = rng.permutation(rows)
        whole = len(rows) // instances * instances
        groups.append(list(rows[:whole].reshape(-1, instances)))
    batches: list[Rows] = []
    left = _Left(len(labels))
    while left.count >= per_batch:
        ranks = rng.choice(left.count, size=per_batch, replace=False)
        chosen = [left.at(rank) for rank in ranks.tolist()]
        batches.append(np.concatenate([groups[place].pop() for place in chosen]))
        for place in chosen:
            if not groups[place]:
                left.remove(place)
    return batches


class _Left:
    """The places 0 .. n - 1 that are not removed yet, in order: a Fenwick tree (Fenwick 1994).

    Finding and removing take log2(n) steps; listing the rest for each batch would take n.
    """

    def __init__(self, n: int) -> None:
        self.count = n
        self._sums = [last & -last for last in range(n + 1)]  # each of the places up to `last`

    def at(self, rank: int) -> int:
        """Return the remaining place that has `rank` remaining places before it."""
        place, step = 0, 1 << len(self._sums).bit_length()
        while step := step >> 1:
            if place + step < len(self._sums) and self._sums[place + step] <= rank:
                place += step
                rank -= self._sums[place]
        return place

    def remove(self, place: int) -> None:
        """Remove a remaining place."""
        self.count -= 1
        last = place + 1
        while last < len(self._sums):
            self._sums[last] -= 1
            last += last & -last


def shuffled_batches(count: int, *, batch: int, seed: int, epoch: int) -> list[Rows]:
    """Return an epoch of all `count` rows in random order; the last batch may be smaller."""
    order = generator(seed, epoch, 2).permutation(count)
    return [order[start : start + batch] for start in range(0, count, batch)]
