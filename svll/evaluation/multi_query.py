"""Multi-query: all images of one identity under one camera ask as one, by their mean feature."""

from typing import Any

import numpy as np

from svll.base.feature_file import FeatureGroup
from svll.evaluation.engine.feature_rows import JUNK, Floats, Integers, Rows

BLOCK = 4096


def pooled(queries: FeatureGroup, more: FeatureGroup | None = None) -> FeatureGroup:
    """Return one feature [P, D] for each identity and camera of the queries [Q, D].

    `more` holds further images, as Market-1501 has them for this purpose: where an identity and
    camera has some, they alone are averaged. Rows are brought to unit length first. Junk asks
    nothing.
    """
    labels = _labels(queries)
    groups = np.unique(labels[queries.identities != JUNK], axis=0)
    totals, counts = _sums(queries.features, labels, groups)
    if more is not None:
        own, own_counts = _sums(more.features, _labels(more), groups)
        totals = np.where(own_counts[:, None] > 0, own, totals)
        counts = np.where(own_counts > 0, own_counts, counts)
    means = (totals / counts[:, None]).astype(np.float32)
    return FeatureGroup(means, groups[:, 0], groups[:, 1])


def _labels(group: FeatureGroup) -> Integers:
    """Identities and cameras [n, 2]."""
    return np.stack([group.identities, group.cameras], axis=1)


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
