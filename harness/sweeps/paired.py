"""Whether one is better than another when both were measured on the same things.

A sign-flip test (Fisher 1935): were both the same, each difference might as well have had the other
sign. All signs are tried where there are few, else many at random. Nothing is assumed about how the
differences are distributed.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.base.errors import UserError
from harness.base.rng import generator

EXACT = 14
"""Up to so many differences all signs are tried."""
DRAWS = 20_000
PURPOSE = 7
"""Keeps these random numbers apart from others of the same seed."""
PIECE = 2**22
"""Signs drawn at a time."""


@dataclass(frozen=True)
class Verdict:
    """What the test says of A - B."""

    pairs: int
    mean: float
    """Of the differences."""
    wins: int
    losses: int
    p: float
    """How probable a mean as far from 0, either way, would be if A and B were the same."""


def compare(a: ArrayLike, b: ArrayLike, *, seed: int = 0) -> Verdict:
    """Test whether the mean of `a` differs from that of `b`; both [n], in the same order.

    Pairs with a NaN are left out. Raises UserError when nothing is left, or shapes differ.
    """
    left, right = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if left.shape != right.shape or left.ndim != 1:
        raise UserError(f"cannot be compared in pairs: shapes {left.shape} and {right.shape}")
    differences = left - right
    differences = differences[~np.isnan(differences)]
    if not len(differences):
        raise UserError("nothing can be compared: no pair has two values")
    return Verdict(
        len(differences), float(differences.mean()), int((differences > 0).sum()),
        int((differences < 0).sum()), _p(differences, seed),
    )


def _p(differences: NDArray[np.float64], seed: int) -> float:
    count = len(differences)
    # sums that are equal but for rounding count as equal
    seen = abs(differences.sum()) * (1 - 1e-12)
    if count <= EXACT:
        signs = 1.0 - 2.0 * ((np.arange(2**count)[:, None] >> np.arange(count)) & 1)
        return float((np.abs(signs @ differences) >= seen).mean())
    random = generator(seed, PURPOSE)
    extreme, left = 0, DRAWS
    while left:
        draws = min(left, max(1, PIECE // count))
        signs = 1.0 - 2.0 * random.integers(0, 2, (draws, count))
        extreme += int((np.abs(signs @ differences) >= seen).sum())
        left -= draws
    return (extreme + 1) / (DRAWS + 1)  # the signs as they are belong to it
