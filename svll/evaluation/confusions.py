"""Which identities a model takes for which others, from the gallery rows it ranks first.

Letters: Q queries, G gallery images, k rows told for each query, n wrong rows among all of them.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from svll.evaluation.engine.feature_rows import Integers
from svll.evaluation.ranking import RankingResult


@dataclass(frozen=True)
class Confusion:
    """How often images of one identity stand where images of another one should."""

    identity: int
    """Whom the queries show."""
    wrong: int
    """Whom the gallery images in question show."""
    queries: int
    """Queries with one of these images before their first match, and among the first k."""
    asked: int
    """All queries of the identity that have a match."""
    images: int
    """These images among the first k of all such queries."""
    query: int
    """Row of a query that is an example: the one with the smallest distance, ..."""
    gallery: int
    """... and row of the image nearest to it; before its first match, where any query has that."""
    distance: float


@dataclass(frozen=True, eq=False)
class _Wrong:
    """The wrong rows among the first k: [n] each."""

    query: Integers
    gallery: Integers
    before: NDArray[np.bool_]
    """Whether a row stands before the first match."""
    distance: NDArray[np.float64]


def hardest_confusions(
    result: RankingResult, query_identities: Integers, gallery_identities: Integers, count: int = 20
) -> list[Confusion]:
    """Return the pairs of identities [Q], [G] most often confused, most queries first, then images.

    result: with its nearest rows [Q, k]; what is ranked behind them is not looked at. Queries
    without a match do not count: for them, every row is wrong.
    """
    wrong = _wrong_rows(result, query_identities, gallery_identities)
    named = np.stack([query_identities[wrong.query], gallery_identities[wrong.gallery]], axis=1)
    pairs, owner = np.unique(named, axis=0, return_inverse=True)
    images = np.bincount(owner, minlength=len(pairs))
    asking = np.unique(np.stack([owner, wrong.query])[:, wrong.before], axis=1)[0]
    queries = np.bincount(asking, minlength=len(pairs))
    order = np.lexsort((wrong.gallery, wrong.query, wrong.distance, ~wrong.before, owner))
    example = order[np.searchsorted(owner[order], np.arange(len(pairs)))]
    known, counts = np.unique(query_identities[result.first_rank > 0], return_counts=True)
    asked = dict(zip(known.tolist(), counts.tolist(), strict=True))
    hardest = np.lexsort((-images, -queries))[:count]  # equal ones in the order of the identities
    return [
        Confusion(
            int(pairs[p, 0]), int(pairs[p, 1]), int(queries[p]), asked[int(pairs[p, 0])],
            int(images[p]), int(wrong.query[example[p]]), int(wrong.gallery[example[p]]),
            float(wrong.distance[example[p]]),
        )
        for p in hardest.tolist()
    ]


def _wrong_rows(
    result: RankingResult, query_identities: Integers, gallery_identities: Integers
) -> _Wrong:
    nearest, first = result.nearest, result.first_rank
    other = gallery_identities[nearest] != query_identities[:, None]
    query, place = np.nonzero((nearest >= 0) & other & (first > 0)[:, None])
    return _Wrong(
        query, nearest[query, place], place < first[query] - 1, result.distances[query, place]
    )
