"""Which identities a model confuses with which, from the gallery rows it ranks first.

Letters: Q queries, G gallery images, k rows ranked first per query, n wrong rows among all of them.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from svll.evaluation.engine.feature_rows import Integers
from svll.evaluation.ranking import RankingResult


@dataclass(frozen=True)
class Confusion:
    """How often images of one identity rank where images of another one should."""

    identity: int
    """The queries' identity."""
    wrong: int
    """The identity of the wrong gallery images."""
    queries: int
    """Queries with one of these images before their first match, and among the first k."""
    asked: int
    """All queries of the identity that have a match."""
    images: int
    """These images among the first k of all such queries."""
    query: int
    """Row of an example query: the one with the smallest distance, ..."""
    gallery: int
    """... and row of the image nearest to it; before its first match, if any query has that."""
    distance: float


def hardest_confusions(
    result: RankingResult, query_identities: Integers, gallery_identities: Integers, count: int = 20
) -> list[Confusion]:
    """Return the pairs of identities [Q], [G] most often confused, most queries first, then images.

    result: with its nearest rows [Q, k], the only ones considered. Queries without a match do not
    count: for them, every row is wrong.
    """
    other = gallery_identities[result.nearest] != query_identities[:, None]
    has_match = (result.first_rank > 0)[:, None]
    query, place = np.nonzero((result.nearest >= 0) & other & has_match)
    gallery, distance = result.nearest[query, place], result.distances[query, place]
    is_before = place < result.first_rank[query] - 1  # the first match

    named = np.stack([query_identities[query], gallery_identities[gallery]], axis=1)
    pairs, owner = np.unique(named, axis=0, return_inverse=True)
    images = np.bincount(owner, minlength=len(pairs))
    asking = np.unique(np.stack([owner, query])[:, is_before], axis=1)[0]
    queries = np.bincount(asking, minlength=len(pairs))
    order = np.lexsort((gallery, query, distance, ~is_before, owner))
    example = order[np.searchsorted(owner[order], np.arange(len(pairs)))]
    asked = Counter(query_identities[result.first_rank > 0].tolist())
    hardest = np.lexsort((-images, -queries))[:count]  # equal ones in the order of the identities
    return [Confusion(int(pairs[p, 0]), int(pairs[p, 1]), int(queries[p]), asked[int(pairs[p, 0])],
                      int(images[p]), int(query[example[p]]), int(gallery[example[p]]),
                      float(distance[example[p]]))
            for p in hardest.tolist()]
