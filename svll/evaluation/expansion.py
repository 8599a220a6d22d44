"""Query expansion: a query's feature becomes a mean of itself and of its nearest gallery images.

- average (AQE; Chum et al., ICCV 2007, sec. 4): all have equal weight, `alpha` 0;
- alpha (Radenovic, Tolias and Chum, TPAMI 2019, sec. 3.4): the weight of each is its cosine
  similarity to the query, to the power of `alpha`; the query itself has weight 1.

Neighbours come from the whole gallery except junk, without any labels.
"""

import math
from copy import copy
from dataclasses import dataclass

import numpy as np

from harness.base.errors import UserError
from svll.evaluation.engine import kernels
from svll.evaluation.engine.comparison import GALLERY_BLOCK, Comparison
from svll.evaluation.engine.feature_rows import STRANGER, Rows
from svll.evaluation.engine.kernels import Extras, Float32
from svll.evaluation.engine.matches import Matches
from svll.evaluation.engine.products import Products, spread
from svll.evaluation.engine.shared_work import Share


@dataclass(frozen=True)
class QueryExpansion:
    """Settings of query expansion.

    >>> svll.QueryExpansion(count=3)
    QueryExpansion(count=3, alpha=0.0)
    """

    count: int = 5
    """Number of nearest gallery images."""
    alpha: float = 0.0
    """Power of the similarity that weights a neighbour; 0: equal weights."""

    def __post_init__(self) -> None:
        values = ("count", self.count, 1), ("alpha", self.alpha, 0)
        if faults := [f"{name} is {value}; at least {least} is needed"
                      for name, value, least in values if not least <= value < math.inf]:
            raise UserError("query expansion: " + "; ".join(faults))


def expand_queries(
    queries: Rows, gallery: Rows, products: Products, options: QueryExpansion, share: Share
) -> Float32:
    """Return expanded features of all query rows [n, D], zeros for junk; UserError unless unit."""
    if not queries.unit:
        raise UserError("query expansion needs features of unit length; turn normalisation on")
    blind = copy(queries)
    blind.identities = np.full(len(queries), STRANGER)
    comparison = Comparison(blind, gallery, products, nearest=options.count, share=share)
    features = np.zeros(queries.features.shape, np.float32)
    for chunk in Matches(blind, gallery).chunks():
        [found] = comparison(chunk, [Extras.none(len(chunk))])
        block = queries.block(chunk.first, chunk.last)
        # by gallery row, so that sums do not depend on blocks
        order = np.argsort(found.nearest, axis=1)
        nearest = np.take_along_axis(found.nearest, order, 1)
        weights = np.take_along_axis(found.scores, order, 1).clip(min=0.0) ** options.alpha
        total = block.features.astype(np.float64)
        share.check_stop()
        for first, part in gallery.blocks(GALLERY_BLOCK):
            lists = first, part.features, nearest, weights, total
            spread(kernels.add_weighted, len(total), *lists)
        features[queries.kept[chunk.first : chunk.last]] = total
    return features
