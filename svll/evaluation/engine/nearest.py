"""The few nearest gallery rows of each query, exact, from float32 scores that pass by in blocks.

Letters: Q queries of a chunk, G gallery images, k how many are wanted.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from svll.evaluation.engine import kernels
from svll.evaluation.engine.feature_rows import Floats
from svll.evaluation.engine.products import spread

SPARE = 8
"""Candidates kept beyond k, so that float32 rounding loses none."""


class Candidates:
    """The best k + SPARE rows of each query by their float32 scores, so far."""

    def __init__(self, queries: int, count: int, gallery: int) -> None:
        self.count = min(count, gallery)
        values = np.full((queries, min(count + SPARE, gallery)), -np.inf, np.float32)
        nobody = np.full((queries, 1), np.inf, np.float32)  # of the farthest, none is wanted
        self._best = kernels.Extremes(
            values, np.zeros(values.shape, np.int32), nobody, np.zeros((queries, 1), np.int32)
        )
        self._half = np.zeros(gallery, np.float32)

    def see(self, scores: NDArray[np.float32], base: int, first: int) -> None:
        """Take in scores [q, c] of queries `base`... and gallery rows `first`...."""
        spread(kernels.keep_by_row, len(scores), scores, self._half, base, first, self._best)

    def kept(self, slack: Floats) -> kernels.Candidates:
        """What was kept; doubtful are queries of whose nearest k a row not kept could be one.

        That takes many rows that float32 cannot tell apart, such as copies of one image.
        """
        values, indices = self._best.near, self._best.near_rows
        last, full = values[:, -1], values.shape[1] < len(self._half)
        doubtful = full & (last > -np.inf) & (last >= values[:, self.count - 1] - 2 * slack)
        return kernels.Candidates(values, indices, doubtful)


def merged(
    scores: NDArray[Any], nearest: NDArray[np.int32]
) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """The best k of several lists of k, each [parts, Q, k], equal scores by their row: [Q, k]."""
    parts, queries, count = scores.shape
    if parts == 1:
        return scores[0], nearest[0]
    scores = scores.transpose(1, 0, 2).reshape(queries, parts * count)
    nearest = nearest.transpose(1, 0, 2).reshape(queries, parts * count)
    order = np.lexsort((nearest, -scores), axis=1)[:, :count]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(nearest, order, 1)
