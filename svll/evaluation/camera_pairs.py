"""Ranking for every pair of a query's and a gallery's camera: where a model fails to carry over."""

from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
from numpy.typing import ArrayLike

from svll.evaluation.ranking import Options, evaluate_ranking
from svll.evaluation.rows import JUNK


@dataclass(frozen=True)
class CameraPair:
    """What the queries of one camera score in the gallery of one other alone."""

    query_camera: int
    gallery_camera: int
    queries: int
    """Those with a match under the gallery's camera."""
    mAP: float
    rank1: float


def evaluate_camera_pairs(
    query: Any,
    gallery: Any,
    query_identities: ArrayLike,
    gallery_identities: ArrayLike,
    query_cameras: ArrayLike,
    gallery_cameras: ArrayLike,
    **options: Unpack[Options],
) -> list[CameraPair]:
    """Score each pair of cameras with at least one query to score, in ascending order.

    Arguments as for `evaluate_ranking`, and errors. The gallery is one camera's at a time, so all
    pairs together compare each query with each gallery image at most once.
    """
    q_ids, g_ids, q_cams, g_cams = (
        np.asarray(x, dtype=np.int64)
        for x in (query_identities, gallery_identities, query_cameras, gallery_cameras)
    )
    across = options.get("camera_filter", True) or options.get("cross_camera_only", False)
    pairs = []
    for camera in np.unique(g_cams[g_ids != JUNK]).tolist():
        here = np.where(g_cams == camera, g_ids, JUNK)
        asks = np.isin(q_ids, here[here != JUNK]) & (q_ids != JUNK)
        if across:
            asks &= q_cams != camera
        if not asks.any():
            continue
        found = evaluate_ranking(
            query, gallery, np.where(asks, q_ids, JUNK), here, q_cams, g_cams, **options
        )
        for asking in np.unique(q_cams[asks]).tolist():
            rows = asks & (q_cams == asking)
            pairs.append(CameraPair(
                asking, camera, int(rows.sum()), float(found.average_precision[rows].mean()),
                float((found.first_rank[rows] == 1).mean()),
            ))
    return sorted(pairs, key=lambda pair: (pair.query_camera, pair.gallery_camera))
