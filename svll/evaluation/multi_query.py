"""Multi-query: one query per identity and camera, the mean feature of its images."""

import numpy as np

from svll.base.feature_file import FeatureGroup
from svll.evaluation.engine.feature_rows import JUNK, Floats, Integers, Rows

BLOCK = 4096


def average_queries(queries: FeatureGroup, more: FeatureGroup | None = None) -> FeatureGroup:
    """Return one feature [P, D] for each identity and camera of the queries [Q, D] without junk.

    `more` holds further images, such as Market-1501's for this purpose: an identity and camera with
    some uses only these. Rows are L2-normalised first.
    """
    labels = np.stack([queries.identities, queries.cameras], axis=1)
    groups = np.unique(labels[queries.identities != JUNK], axis=0)
    totals, counts = _sums(queries, groups)
    if more is not None:
        own, own_counts = _sums(more, groups)
        totals = np.where(own_counts[:, None] > 0, own, totals)
        counts = np.where(own_counts > 0, own_counts, counts)
    means = (totals / counts[:, None]).astype(np.float32)
    return FeatureGroup(means, groups[:, 0], groups[:, 1])


def _sums(images: FeatureGroup, groups: Integers) -> tuple[Floats, Integers]:
    """Return the sum [P, D] and number [P] of the rows of each identity and camera [P, 2]."""
    numbers = {tuple(group): number for number, group in enumerate(groups.tolist())}
    labels = zip(images.identities.tolist(), images.cameras.tolist(), strict=True)
    group = np.array([numbers.get(label, JUNK) for label in labels], np.int64)
    wanted = Rows("query", images.features, group, group, unit=True)
    totals = np.zeros((len(groups), images.features.shape[1]))
    for first, block in wanted.blocks(BLOCK):
        np.add.at(totals, wanted.identities[first : first + BLOCK], block.features)
    return totals, np.bincount(wanted.identities, minlength=len(groups))
