"""How far apart identities lie among features, without comparing all images with each other.

The cosine distance 1 - x . y is linear in unit rows, so the sum of an identity's rows gives the sum
of distances to all its images: every number here is exact and of all images, with one product of
rows and identities. Letters: n images, K identities, D width.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.base.errors import UserError
from svll.evaluation.engine.feature_rows import Rows

BLOCK = 4096
"""Rows that are compared with all identities at a time."""


@dataclass(frozen=True)
class Separation:
    """Cosine distances between images, and what they say of the identities."""

    within: float
    """Mean over all pairs of images of one identity; NaN where no identity has two images."""
    between: float
    """Mean over all pairs of images of different identities."""
    silhouette: float
    """Mean over images (Rousseeuw 1987): 1 far from the nearest other identity, 0 on the border,
    negative nearer to another one. An identity's only image counts 0."""

    @property
    def ratio(self) -> float:
        """How many times as far apart different identities are as images of one."""
        return self.between / self.within


@dataclass(frozen=True, eq=False)
class _Classes:
    """Unit rows summed by identity, in the order of the identities' numbers."""

    places: NDArray[np.int64]
    """[n] of each row, 0..K-1."""
    sums: NDArray[np.float64]
    """[K, D]"""
    counts: NDArray[np.int64]
    """[K]"""
    squares: NDArray[np.float64]
    """[K] sums of each row's product with itself: 1 each, but for rounding and rows of zeros."""


def separation(rows: Rows) -> Separation:
    """Return the distances among rows that are read at unit length.

    Raises UserError for fewer than two identities, and for rows that are not finite.
    """
    assert rows.unit
    classes = _classes(rows)
    if len(classes.counts) < 2:
        raise UserError(
            f"{rows.name}: {len(classes.counts)} identities with images; separation needs at "
            "least 2"
        )
    own = (classes.sums**2).sum()  # products of all pairs of one identity, both ways round
    total = (classes.sums.sum(axis=0) ** 2).sum()
    pairs = (classes.counts**2).sum()
    repeated = pairs - len(rows)
    return Separation(
        within=float(1 - (own - classes.squares.sum()) / repeated) if repeated else float("nan"),
        between=float(1 - (total - own) / (len(rows) ** 2 - pairs)),
        silhouette=_silhouette(rows, classes),
    )


def _classes(rows: Rows) -> _Classes:
    _, places, counts = np.unique(rows.identities, return_inverse=True, return_counts=True)
    sums = np.zeros((len(counts), rows.features.shape[1]))
    squares = np.zeros(len(counts))
    for first, block in rows.blocks(BLOCK):
        own = places[first : first + len(block.features)]
        np.add.at(sums, own, block.features)
        np.add.at(squares, own, np.einsum("nd,nd->n", block.features, block.features))
    return _Classes(places, sums, counts, squares)


def _silhouette(rows: Rows, classes: _Classes) -> float:
    """Return the mean silhouette of all rows."""
    means = (classes.sums / classes.counts[:, None]).astype(np.float32).T  # [D, K]
    total = 0.0
    for first, block in rows.blocks(BLOCK):
        own = classes.places[first : first + len(block.features)]
        to_all = (block.features @ means).astype(np.float64)  # mean cosines [b, K]
        each = np.arange(len(own))
        others = classes.counts[own] - 1
        itself = np.einsum("nd,nd->n", block.features, block.features)
        cosine = (to_all[each, own] * (others + 1) - itself) / np.maximum(others, 1)
        to_all[each, own] = -np.inf
        to_own, to_nearest = 1 - cosine, 1 - to_all.max(axis=1)
        scale = np.maximum(to_own, to_nearest)
        found = np.divide(to_nearest - to_own, scale, out=np.zeros(len(own)), where=scale > 0)
        total += float(found[others > 0].sum())
    return total / len(rows)
