"""Ranking by a dataset's protocol: which images are queries, gallery images, and matches.

`svll.base.protocol_names` describes what each protocol leaves out. Under random_gallery
(VehicleID), one random image of each identity is the gallery and all others are queries; metrics
are means over ten seeded draws.
"""

import logging
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from harness.base.errors import UserError, named
from harness.base.rng import generator
from harness.base.units import counted
from svll.base.labels import on_host, whole_numbers
from svll.base.protocol_names import check_protocol
from svll.evaluation.engine.feature_rows import JUNK, Integers
from svll.evaluation.engine.shared_work import Share
from svll.evaluation.expansion import QueryExpansion
from svll.evaluation.own_images import image_numbers
from svll.evaluation.pair import SIDES, Pair, check_pair, group_of
from svll.evaluation.ranking import USUAL, Metric, Options, RankingResult, evaluate_settings
from svll.evaluation.reranking import KReciprocal

DRAWS = 10
SHOWN = 5
"""Rows that a warning names."""

log = logging.getLogger(__name__)


@named
def evaluate_ranking(
    query: Any, gallery: Any, query_identities: ArrayLike, gallery_identities: ArrayLike,
    query_cameras: ArrayLike | None = None, gallery_cameras: ArrayLike | None = None, *,
    protocol: str | None = None, max_rank: int = 50, metric: Metric = "euclidean",
    rerank: KReciprocal | bool | None = None, expand: QueryExpansion | None = None,
    normalise: bool = True, top_k: int = 0, query_images: Sequence[Hashable] | None = None,
    gallery_images: Sequence[Hashable] | None = None, share: Share | None = None,
) -> RankingResult:
    """Rank the gallery [G, D] for every query [Q, D] and score the ranking.

    Args:
        query, gallery: features as numpy arrays, tensors (multiplied on their device) or sliceable
            files, in float16 to float64; compared as float32.
        query_identities, gallery_identities: integers [Q], [G]; -1 is junk: no match, not ranked.
        query_cameras, gallery_cameras: integers [Q] and [G]; None for both if unknown.
        protocol: which images are not ranked. `cross_camera`: images of the query's own identity
            and camera; `other_cameras`: all images of its camera; `all_gallery`: only the query's
            own image; `random_gallery`: the gallery holds all test images, ten galleries of one
            image per identity are drawn, and the query's arguments are ignored. None:
            `cross_camera` if cameras are given, else `all_gallery`.
        max_rank: length of the CMC curve.
        metric: `euclidean` or `cosine`; both rank alike at unit length.
        rerank: True for k-reciprocal re-ranking by its usual settings, or `KReciprocal(k1=...)`.
        expand: `QueryExpansion(count=...)` for query expansion.
        normalise: L2-normalise features first.
        top_k: number of nearest gallery rows per query in the result.
        query_images, gallery_images: names of the images, such as their paths. `all_gallery` takes
            a gallery image of the query's name for its own; for a query without one, the first one
            of its identity and camera whose features are the same to the last bit.
        share: processes that evaluate together; each calls this with the same arguments, compares
            with its part of the gallery, and gets the whole result.

    Raises UserError for shapes and values that do not fit, rows that are not finite, and when no
    query has a match; TypeError for an unknown argument.

    >>> gallery = np.array([[1.0, 0.1], [0.2, 1.0], [0.9, 0.5]])
    >>> result = svll.evaluate(np.eye(2), gallery, [0, 1], [1, 1, 0], top_k=1)
    >>> result
    RankingResult(mAP 0.6667, mINP 0.5833, Rank-1 0.5000, 2 queries)
    >>> result.nearest
    array([[0],
           [1]])
    """
    if protocol == "random_gallery":
        query, query_identities = gallery, gallery_identities
        query_cameras = gallery_cameras = None
    protocol = _usable(protocol, query_cameras is not None, gallery_cameras is not None)
    _check_labels(query_identities=query_identities, gallery_identities=gallery_identities,
                  query_cameras=query_cameras, gallery_cameras=gallery_cameras)
    pair = Pair(group_of(query, query_identities, query_cameras, query_images),
                group_of(gallery, gallery_identities, gallery_cameras, gallery_images))
    if isinstance(rerank, bool):
        rerank = KReciprocal() if rerank else None
    if not (rerank is None or isinstance(rerank, KReciprocal)):
        raise UserError(f"rerank is {rerank!r}; give True for the usual settings, or others as in "
                        f"KReciprocal({KReciprocal()})")
    options = Options(max_rank, metric, normalise, expand, top_k, share)
    result = evaluate_protocol(protocol, pair, [rerank], options)[0]
    warn_of_zeros(result)
    return result


def _usable(protocol: str | None, query_cameras: bool, gallery_cameras: bool) -> str:
    """Return the protocol, given which sides have cameras; UserError if it cannot be used."""
    if query_cameras != gallery_cameras:
        given, lacking = ("query", "gallery") if query_cameras else ("gallery", "query")
        raise UserError(f"{given}_cameras are given without {lacking}_cameras; give both or none")
    protocol = protocol or ("cross_camera" if query_cameras else "all_gallery")
    if not query_cameras and protocol in ("cross_camera", "other_cameras"):
        raise UserError(f"the protocol {protocol} compares cameras; give query_cameras and "
                        "gallery_cameras, or protocol='all_gallery'")
    return protocol


def _check_labels(**given: Any) -> None:
    """Raise UserError for integers that their type may have changed, such as -1 in uint8."""
    for name, values in given.items():
        try:
            array = np.asarray(on_host(values))
            if array.dtype.kind in "iu":
                whole_numbers(array)
        except (UserError, ValueError) as error:  # also for lists of lists of other lengths
            raise UserError(f"{name}: {error}") from None


def evaluate_protocol(
    protocol: str, pair: Pair, settings: Sequence[KReciprocal | None] = (None,),
    options: Options = USUAL,
) -> list[RankingResult]:
    """Score a pair under several settings of re-ranking; its paths are names of images."""
    check_protocol(protocol)
    if protocol == "random_gallery":
        return evaluate_draws(pair.gallery.features, pair.gallery.identities, settings, options)
    return evaluate_settings(protocol_pair(protocol, pair), settings, options, protocol=protocol)


def warn_of_zeros(result: RankingResult, where: str = "") -> None:
    """Log which features are all zero: no image is nearer to them than another, so their order is
    that of the gallery."""
    for side, rows in zip(SIDES, result.zero_rows, strict=True):
        if len(rows):
            first = ", ".join(map(str, rows[:SHOWN])) + (", ..." if len(rows) > SHOWN else "")
            log.warning("%s%s features: only zeros in %s (%s), which say nothing of their images; "
                        "extract these features again", where, side, counted(len(rows), "row"),
                        first)


def protocol_pair(protocol: str, pair: Pair) -> Pair:
    """Return the pair, under all_gallery with image numbers in the place of cameras.

    A query does not rank images of its identity with an equal entry.
    """
    check_protocol(protocol)
    if protocol != "all_gallery":
        return pair
    check_pair(pair)
    query, gallery = image_numbers(pair)
    return Pair(replace(pair.query, cameras=query), replace(pair.gallery, cameras=gallery))


def evaluate_draws(
    features: Any, identities: ArrayLike, settings: Sequence[KReciprocal | None] = (None,),
    options: Options = USUAL, *, draws: int = DRAWS, seed: int = 0,
) -> list[RankingResult]:
    """Return the mean over seeded draws of one gallery image per identity, the rest being queries.

    features [n, D], identities [n]. Every query has exactly one match, so mINP equals mAP. Arrays
    per query are those of the first draw, over all n images: gallery images have NaN and rank 0.
    Raises UserError when no identity has two images.
    """
    found = [evaluate_settings(draw_pair(features, identities, seed, draw), settings, options,
                               protocol="random_gallery") for draw in range(draws)]
    # none is skipped: every image outside the gallery has its match there
    return [replace(results[0], mAP=float(np.mean([one.mAP for one in results])),
                    mINP=float(np.mean([one.mINP for one in results])),
                    cmc=np.mean([one.cmc for one in results], axis=0), skipped=0,
                    draws=np.stack([one.average_precision for one in results]))
            for results in zip(*found, strict=True)]


def draw_pair(features: Any, identities: ArrayLike, seed: int = 0, draw: int = 0) -> Pair:
    """Return queries (camera 0) and gallery (camera 1) of a draw, each with all features [n, D]."""
    queries, gallery = draw_labels(identities, seed, draw)
    return Pair(group_of(features, queries),
                group_of(features, gallery, np.ones(len(gallery), np.int64)))


def draw_labels(identities: ArrayLike, seed: int = 0, draw: int = 0) -> tuple[Integers, Integers]:
    """Return the identities of all images as queries and as gallery images of a draw, [n] each.

    All other images are junk there. Raises UserError when no identity has two images.
    """
    identities = np.asarray(on_host(identities), dtype=np.int64)
    order = generator(seed, draw, 5).permutation(len(identities))
    known, first = np.unique(identities[order], return_index=True)
    chosen = np.zeros(len(identities), bool)
    chosen[order[first[known >= 0]]] = True  # one image of each identity but junk
    queries = np.where(chosen, JUNK, identities)
    if not (queries != JUNK).any():
        raise UserError("no identity has two images: one would be the gallery's, one a query")
    return queries, np.where(chosen, identities, JUNK)
