"""How far apart identities lie among features, without comparing all pairs of images.

The cosine distance 1 - x . y is linear in unit rows, so the sum of an identity's rows gives the sum
of distances to all its images: every number here is exact, over all images, at the cost of one
product of rows and identities. Letters: n images, K identities, D width, b rows of a block.
"""

from typing import NamedTuple

import numpy as np

from harness.base.errors import UserError
from svll.evaluation.engine.feature_rows import Floats, Integers, Rows

BLOCK = 4096  # rows compared with all identities at a time


class Separation(NamedTuple):
    """Mean cosine distances between images, and the mean silhouette."""

    within: float  # over all pairs of images of one identity; NaN where no identity has two images
    between: float  # over all pairs of images of different identities
    silhouette: float
    """Over images (Rousseeuw 1987): 1 far from the nearest other identity, 0 on the border,
    negative nearer to another one. An identity's only image counts 0."""
    ratio: float  # between / within


def separation(rows: Rows) -> Separation:
    """Return distances among unit rows; UserError for under 2 identities, non-finite rows."""
    assert rows.unit
    places, sums, counts, squares = _identity_sums(rows)
    if len(counts) < 2:
        raise UserError(
            f"{rows.name}: {len(counts)} identities with images; separation needs at least 2"
        )
    own = (sums**2).sum()  # products of all pairs of one identity, both ways round
    total = (sums.sum(axis=0) ** 2).sum()
    pairs = (counts**2).sum()
    repeated = pairs - len(rows)
    within = float(1 - (own - squares) / repeated) if repeated else float("nan")
    between = float(1 - (total - own) / (len(rows) ** 2 - pairs))
    ratio = between / within if within else float("inf")
    return Separation(within, between, _silhouette(rows, places, sums, counts), ratio)


def _identity_sums(rows: Rows) -> tuple[Integers, Floats, Integers, float]:
    """Return each row's identity [n] as 0..K-1, identities' sums [K, D] and counts [K] of rows.

    Last the sum of rows' products with themselves: n, but for rounding and rows of zeros.
    """
    _, places, counts = np.unique(rows.identities, return_inverse=True, return_counts=True)
    sums = np.zeros((len(counts), rows.features.shape[1]))
    squares = np.zeros(len(counts))
    for first, block in rows.blocks(BLOCK):
        own = places[first : first + len(block.features)]
        np.add.at(sums, own, block.features)
        np.add.at(squares, own, np.einsum("nd,nd->n", block.features, block.features))
    return places, sums, counts, squares.sum()


def _silhouette(rows: Rows, places: Integers, sums: Floats, counts: Integers) -> float:
    means = (sums / counts[:, None]).astype(np.float32).T  # [D, K]
    total = 0.0
    for first, block in rows.blocks(BLOCK):
        own = places[first : first + len(block.features)]
        to_all = (block.features @ means).astype(np.float64)  # mean cosines [b, K]
        each = np.arange(len(own))
        others = counts[own] - 1
        itself = np.einsum("nd,nd->n", block.features, block.features)
        cosine = (to_all[each, own] * (others + 1) - itself) / np.maximum(others, 1)
        to_all[each, own] = -np.inf
        to_own, to_nearest = 1 - cosine, 1 - to_all.max(axis=1)
        scale = np.maximum(to_own, to_nearest)
        values = np.divide(to_nearest - to_own, scale, out=np.zeros(len(own)), where=scale > 0)
        total += float(values[others > 0].sum())
    return total / len(rows)
