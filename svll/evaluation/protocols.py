"""How a dataset is tested: who is a query, what is in the gallery, and which images do not count.

    cross_camera     the query's own identity under the query's own camera is left out
    all_gallery      nothing is left out: there is one camera, or it does not matter
    random_gallery   VehicleID: one image of each identity, drawn at random, is the gallery and all
                     others are queries; the mean over ten seeded draws
"""

from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.errors import UserError
from harness.rng import generator
from svll.evaluation.ranking import RankingResult, evaluate_ranking
from svll.evaluation.reranking import KReciprocal

Protocol = Literal["cross_camera", "all_gallery", "random_gallery"]
PROTOCOLS: tuple[str, ...] = get_args(Protocol)
DRAWS = 10


def evaluate_protocol(
    protocol: str,
    query: Any,
    gallery: Any,
    query_identities: ArrayLike,
    gallery_identities: ArrayLike,
    query_cameras: ArrayLike,
    gallery_cameras: ArrayLike,
    *,
    camera_filter: bool = True,
    rerank: KReciprocal | None = None,
) -> RankingResult:
    """Score features [Q, D] and [G, D] as a dataset's protocol wants it; see `evaluate_ranking`.

    Under random_gallery the gallery holds all test images, and the query's arguments are not used.
    Raises UserError for an unknown protocol and for what `evaluate_ranking` refuses.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"no protocol {protocol!r}; known are {', '.join(PROTOCOLS)}")
    if protocol == "random_gallery":
        return evaluate_draws(gallery, gallery_identities, rerank=rerank)
    return evaluate_ranking(
        query, gallery, query_identities, gallery_identities, query_cameras, gallery_cameras,
        camera_filter=camera_filter and protocol == "cross_camera", rerank=rerank,
    )


def evaluate_draws(
    features: Any,
    identities: ArrayLike,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    rerank: KReciprocal | None = None,
) -> RankingResult:
    """Return the mean over seeded draws of one gallery image per identity, the rest being queries.

    features [n, D], identities [n]. Every query has exactly one match, so mINP equals mAP. The
    arrays for single queries are those of the first draw, over all n images: the gallery's have
    NaN and rank 0. Raises UserError when no identity has two images.
    """
    identities = np.asarray(identities, dtype=np.int64)
    rows = np.arange(len(features))
    results = []
    for draw in range(draws):
        chosen = _one_per_identity(identities, seed, draw)
        rest = np.setdiff1d(rows, chosen)
        if not len(rest):
            raise UserError("no identity has two images: one would be the gallery's, one a query")
        cameras = np.zeros(len(rows), dtype=np.int64)
        results.append((rest, evaluate_ranking(
            features[rest], features[chosen], identities[rest], identities[chosen],
            cameras[rest], cameras[chosen], camera_filter=False, rerank=rerank,
        )))
    rest, first = results[0]
    precision, rank = np.full(len(rows), np.nan), np.zeros(len(rows), dtype=np.int64)
    precision[rest], rank[rest] = first.average_precision, first.first_rank
    return replace(
        first,
        mAP=float(np.mean([result.mAP for _, result in results])),
        mINP=float(np.mean([result.mINP for _, result in results])),
        cmc=np.mean([result.cmc for _, result in results], axis=0),
        average_precision=precision, first_rank=rank,
    )


def _one_per_identity(identities: NDArray[np.int64], seed: int, draw: int) -> NDArray[np.int64]:
    """Return the rows of one image of each identity (junk, -1, has none)."""
    order = generator(seed, draw, 5).permutation(len(identities))
    known, first = np.unique(identities[order], return_index=True)
    return np.sort(order[first[known >= 0]])
