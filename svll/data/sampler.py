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
    samples).
    """
    rng = generator(seed, epoch, 1)
    labels, counts = np.unique(identities, return_counts=True)
    # one sort instead of a search per identity: there may be tens of thousands
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
    left = list(range(len(labels)))
    while len(left) >= per_batch:
        chosen = rng.choice(len(left), size=per_batch, replace=False).tolist()
        batches.append(np.concatenate([groups[left[place]].pop() for place in chosen]))
        # listing the identities anew for each batch would take minutes
        for place in sorted(chosen, reverse=True):
            if not groups[left[place]]:
                del left[place]
    return batches


def shuffled_batches(count: int, *, batch: int, seed: int, epoch: int) -> list[Rows]:
    """Return an epoch of all `count` rows in random order; the last batch may be smaller."""
    order = generator(seed, epoch, 2).permutation(count)
    return [order[start : start + batch] for start in range(0, count, batch)]
