"""Ranking for every pair of a query's and a gallery's camera: where a model fails to carry over."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from svll.evaluation.engine.feature_rows import JUNK, Integers
from svll.evaluation.pair import Pair
from svll.evaluation.protocols import compared
from svll.evaluation.ranking import USUAL, NoMatch, Options, RankingResult, evaluate_settings
from svll.evaluation.reranking import KReciprocal


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
    pair: Pair, settings: Sequence[KReciprocal | None] = (None,), options: Options = USUAL, *,
    protocol: str = "cross_camera",
) -> list[list[CameraPair]]:
    """Score each pair of cameras with a query to score, in ascending order, under each setting.

    Arguments and errors as for `evaluate_protocol`. The gallery is one camera's at a time, so all
    pairs together compare each query with each gallery image at most once. Re-ranking looks at the
    images of one pair alone.
    """
    q_ids, q_cams = pair.query.identities, pair.query.cameras
    g_ids, g_cams = pair.gallery.identities, pair.gallery.cameras
    used = compared(protocol, pair)
    found: list[list[CameraPair]] = [[] for _ in settings]
    for camera in np.unique(g_cams[g_ids != JUNK]).tolist():
        here = np.where(g_cams == camera, g_ids, JUNK)
        asks = np.isin(q_ids, here[here != JUNK]) & (q_ids != JUNK)
        if protocol != "all_gallery":
            asks &= q_cams != camera
        for some in _together(asks, q_cams, apart=any(settings)):
            these = used.labelled(np.where(some, q_ids, JUNK), here)
            try:
                results = evaluate_settings(these, settings, options, protocol=protocol)
            except NoMatch:  # their own images alone are there
                continue
            for pairs, result in zip(found, results, strict=True):
                pairs += _pairs(result, q_cams, camera)
    return [sorted(p, key=lambda pair: (pair.query_camera, pair.gallery_camera)) for p in found]


def _together(
    asks: NDArray[np.bool_], cameras: Integers, *, apart: bool
) -> Iterator[NDArray[np.bool_]]:
    """Yield which queries [Q] are ranked at once: all that ask, or each camera's."""
    if not apart and asks.any():
        yield asks
    for camera in np.unique(cameras[asks]) if apart else ():
        yield asks & (cameras == camera)


def _pairs(result: RankingResult, cameras: Integers, camera: int) -> Iterator[CameraPair]:
    """Yield the pairs of a gallery camera with each camera [Q] of the queries that were scored."""
    scored = ~np.isnan(result.average_precision)
    for asking in np.unique(cameras[scored]).tolist():
        rows = scored & (cameras == asking)
        yield CameraPair(
            asking, camera, int(rows.sum()), float(result.average_precision[rows].mean()),
            float((result.first_rank[rows] == 1).mean()),
        )
