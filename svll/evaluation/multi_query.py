"""Multi-query: all images of one identity under one camera ask as one, by their mean feature."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from svll.evaluation.engine.feature_rows import JUNK, Floats, Integers, Rows

BLOCK = 4096


def pooled(
    features: Any,
    identities: ArrayLike,
    cameras: ArrayLike,
    more: tuple[Any, ArrayLike, ArrayLike] | None = None,
) -> tuple[NDArray[np.float32], Integers, Integers]:
    """Return one feature [P, D] for each identity and camera of the queries, and both labels [P].

    features [Q, D], identities [Q], cameras [Q]. `more` holds the same of further images, as
    Market-1501 has them for this purpose: where an identity and camera has some, they alone are
    averaged. Rows are brought to unit length first. Junk asks nothing.
    """
    identities, cameras = (np.asarray(x, dtype=np.int64) for x in (identities, cameras))
    labels = np.stack([identities, cameras], axis=1)
    groups = np.unique(labels[identities != JUNK], axis=0)
    totals, counts = _sums(features, labels, groups)
    if more is not None:
        found, others = more[0], np.stack([np.asarray(x, dtype=np.int64) for x in more[1:]], axis=1)
        own, own_counts = _sums(found, others, groups)
        totals = np.where(own_counts[:, None] > 0, own, totals)
        counts = np.where(own_counts > 0, own_counts, counts)
    return (totals / counts[:, None]).astype(np.float32), groups[:, 0], groups[:, 1]


def _sums(features: Any, labels: Integers, groups: Integers) -> tuple[Floats, Integers]:
    """The sum [P, D] and number [P] of the rows of each group of labels [P, 2]."""
    every, place = np.unique(np.concatenate([groups, labels]), axis=0, return_inverse=True)
    place = place.reshape(-1)  # of numpy 2.0 only, it has two axes
    of_every = np.full(len(every), -1)
    of_every[place[: len(groups)]] = np.arange(len(groups))
    group = of_every[place[len(groups) :]]
    wanted = Rows("query", features, np.where(group < 0, JUNK, group), group, unit=True)
    totals = np.zeros((len(groups), features.shape[1]))
    for first, block in wanted.blocks(BLOCK):
        np.add.at(totals, wanted.identities[first : first + BLOCK], block.features)
    return totals, np.bincount(wanted.identities, minlength=len(groups))
