"""Multi-query: one query per identity and camera, the mean feature of its images."""

from typing import Any

import numpy as np

from svll.base.feature_file import FeatureGroup
from svll.evaluation.engine.feature_rows import JUNK, Floats, Integers, Rows

BLOCK = 4096


def pooled(queries: FeatureGroup, more: FeatureGroup | None = None) -> FeatureGroup:
    """Return one feature [P, D] for each identity and camera of the queries [Q, D] without junk.

    `more` holds further images, such as Market-1501's for this purpose: an identity and camera with
    some uses only these. Rows are L2-normalised first.
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
    """Return identities and cameras [n, 2]."""
    return np.stack([group.identities, group.cameras], axis=1)


def _sums(features: Any, labels: Integers, groups: Integers) -> tuple[Floats, Integers]:
    """Return the sum [P, D] and number [P] of the rows of each group of labels [P, 2]."""
    numbers = {tuple(group): number for number, group in enumerate(groups.tolist())}
    group = np.array([numbers.get(tuple(label), JUNK) for label in labels.tolist()], np.int64)
    wanted = Rows("query", features, group, group, unit=True)
    totals = np.zeros((len(groups), features.shape[1]))
    for first, block in wanted.blocks(BLOCK):
        np.add.at(totals, wanted.identities[first : first + BLOCK], block.features)
    return totals, np.bincount(wanted.identities, minlength=len(groups))
