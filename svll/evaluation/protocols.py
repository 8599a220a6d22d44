"""How a dataset is tested: who is a query, what is in the gallery, and which images do not count.

    cross_camera     the query's own identity under the query's own camera is left out
    all_gallery      nothing is left out: there is one camera, or it does not matter
    random_gallery   VehicleID: one image of each identity, drawn at random, is the gallery and all
                     others are queries; the mean over ten seeded draws
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, Unpack, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.errors import UserError
from harness.rng import generator
from svll.evaluation.ranking import Options, RankingResult, evaluate_settings
from svll.evaluation.reranking import KReciprocal
from svll.evaluation.rows import JUNK

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
    rerank: KReciprocal | None = None,
    **options: Unpack[Options],
) -> RankingResult:
    """Score features [Q, D] and [G, D] as a dataset's protocol wants it; see `evaluate_ranking`.

    Under random_gallery the gallery holds all test images, and the query's arguments are not used.
    Raises UserError for an unknown protocol and for what `evaluate_ranking` refuses.
    """
    return evaluate_protocol_settings(
        protocol, query, gallery, query_identities, gallery_identities, query_cameras,
        gallery_cameras, [rerank], **options,
    )[0]  # fmt: skip


def evaluate_protocol_settings(
    protocol: str,
    query: Any,
    gallery: Any,
    query_identities: ArrayLike,
    gallery_identities: ArrayLike,
    query_cameras: ArrayLike,
    gallery_cameras: ArrayLike,
    settings: Sequence[KReciprocal | None],
    **options: Unpack[Options],
) -> list[RankingResult]:
    """Do so under several settings of re-ranking (None: without); see `evaluate_settings`."""
    if protocol not in PROTOCOLS:
        raise UserError(f"no protocol {protocol!r}; known are {', '.join(PROTOCOLS)}")
    if protocol == "random_gallery":
        return evaluate_draws(gallery, gallery_identities, settings, **options)
    if protocol == "all_gallery":
        options["camera_filter"] = False
    return evaluate_settings(
        query, gallery, query_identities, gallery_identities, query_cameras, gallery_cameras,
        settings, **options,
    )  # fmt: skip


def evaluate_draws(
    features: Any,
    identities: ArrayLike,
    settings: Sequence[KReciprocal | None] = (None,),
    *,
    draws: int = DRAWS,
    seed: int = 0,
    **options: Unpack[Options],
) -> list[RankingResult]:
    """Return the mean over seeded draws of one gallery image per identity, the rest being queries.

    features [n, D], identities [n]. Every query has exactly one match, so mINP equals mAP. The
    arrays for single queries are those of the first draw, over all n images: the gallery's have
    NaN and rank 0. Raises UserError when no identity has two images.
    """
    identities = np.asarray(identities, dtype=np.int64)
    cameras = np.zeros(len(identities), dtype=np.int64)  # they play no part
    options |= {"camera_filter": False, "cross_camera_only": False}
    found = []
    for draw in range(draws):
        labels = drawn_labels(identities, seed, draw)
        found.append(
            evaluate_settings(features, features, *labels, cameras, cameras, settings, **options)
        )
    return [_mean(results) for results in zip(*found, strict=True)]


def _mean(results: Sequence[RankingResult]) -> RankingResult:
    first = results[0]
    return replace(
        first,
        mAP=float(np.mean([result.mAP for result in results])),
        mINP=float(np.mean([result.mINP for result in results])),
        cmc=np.mean([result.cmc for result in results], axis=0),
        skipped=0,  # every image that is not in the gallery has its match there
    )


def drawn_labels(
    identities: ArrayLike, seed: int = 0, draw: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the identities of all images as queries and as gallery images of a draw, [n] each.

    An image that is not one of them is junk there, so no feature has to be copied. Raises UserError
    when no identity has two images.
    """
    identities = np.asarray(identities, dtype=np.int64)
    chosen = np.zeros(len(identities), bool)
    chosen[_one_per_identity(identities, seed, draw)] = True
    queries = np.where(chosen, JUNK, identities)
    if not (queries != JUNK).any():
        raise UserError("no identity has two images: one would be the gallery's, one a query")
    return queries, np.where(chosen, identities, JUNK)


def _one_per_identity(identities: NDArray[np.int64], seed: int, draw: int) -> NDArray[np.int64]:
    """Return the rows of one image of each identity (junk, -1, has none)."""
    order = generator(seed, draw, 5).permutation(len(identities))
    known, first = np.unique(identities[order], return_index=True)
    return np.sort(order[first[known >= 0]])
