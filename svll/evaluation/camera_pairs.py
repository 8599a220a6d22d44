"""Ranking for every pair of a query's and a gallery's camera: where a model fails to transfer."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from svll.evaluation.engine.feature_rows import JUNK
from svll.evaluation.pair import Pair
from svll.evaluation.protocols import protocol_pair
from svll.evaluation.ranking import USUAL, NoMatch, Options, evaluate_settings
from svll.evaluation.reranking import KReciprocal


@dataclass(frozen=True)
class CameraPair:
    """The score of one camera's queries in the gallery of one camera alone."""

    query_camera: int
    gallery_camera: int
    queries: int
    """Queries with a match under the gallery's camera."""
    mAP: float
    rank1: float


def evaluate_camera_pairs(
    pair: Pair, settings: Sequence[KReciprocal | None] = (None,), options: Options = USUAL, *,
    protocol: str = "cross_camera",
) -> list[list[CameraPair]]:
    """Score each pair of cameras with a query to score, in ascending order, under each setting.

    Arguments and errors as for `evaluate_protocol`. The gallery is one camera's at a time, so each
    query meets each gallery image at most once. Re-ranking uses the images of one pair only.
    """
    q_ids, q_cams = pair.query.identities, pair.query.cameras
    g_ids, g_cams = pair.gallery.identities, pair.gallery.cameras
    used = protocol_pair(protocol, pair)
    found: list[list[CameraPair]] = [[] for _ in settings]
    for camera in np.unique(g_cams[g_ids != JUNK]).tolist():
        gallery = np.where(g_cams == camera, g_ids, JUNK)
        asks = np.isin(q_ids, gallery[gallery != JUNK]) & (q_ids != JUNK)
        if protocol != "all_gallery":
            asks &= q_cams != camera
        # without re-ranking, the queries of all cameras are ranked at once
        groups = [asks & (q_cams == one) for one in np.unique(q_cams[asks])]
        for asking in groups if any(settings) else [asks] if asks.any() else []:
            these = used.labelled(np.where(asking, q_ids, JUNK), gallery)
            try:
                results = evaluate_settings(these, settings, options, protocol=protocol)
            except NoMatch:  # the only matches are the queries' own images
                continue
            for pairs, result in zip(found, results, strict=True):
                scored = ~np.isnan(result.average_precision)
                for one in np.unique(q_cams[scored]).tolist():
                    rows = scored & (q_cams == one)
                    mean = float(result.average_precision[rows].mean())
                    rank1 = float((result.first_rank[rows] == 1).mean())
                    pairs.append(CameraPair(one, camera, int(rows.sum()), mean, rank1))
    return [sorted(p, key=lambda pair: (pair.query_camera, pair.gallery_camera)) for p in found]
