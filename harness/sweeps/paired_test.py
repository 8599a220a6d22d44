"""Paired comparison of two methods by a sign-flip test (Fisher 1935).

If both were the same, each difference could as well have the other sign. All signs are tried for
few differences, random ones for many. The test assumes no distribution.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.base.errors import UserError
from harness.base.rng import generator

EXACT = 14
"""Up to this many differences all signs are tried."""
DRAWS = 20_000
PURPOSE = 7
"""Keeps these random numbers apart from others of the same seed."""
PIECE = 2**22
"""Signs drawn at a time."""


@dataclass(frozen=True)
class Verdict:
    """The result of the test for the differences A - B."""

    pairs: int
    mean: float
    wins: int
    losses: int
    p: float
    """Two-sided p-value of the mean under the hypothesis that A and B are the same."""


def compare(a: ArrayLike, b: ArrayLike, *, seed: int = 0) -> Verdict:
    """Test whether the mean of `a` differs from that of `b`; both [n], in the same order. Pairs
    with a NaN are left out. Raises UserError when none is left, or shapes differ."""
    left, right = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if left.shape != right.shape or left.ndim != 1:
        raise UserError(f"cannot be compared in pairs: shapes {left.shape} and {right.shape}")
    differences = left - right
    differences = differences[~np.isnan(differences)]
    if not len(differences):
        raise UserError("nothing to compare: no pair has two values")
    return Verdict(len(differences), float(differences.mean()), int((differences > 0).sum()),
                   int((differences < 0).sum()), _p(differences, seed))


def _p(differences: NDArray[np.float64], seed: int) -> float:
    count = len(differences)
    observed = abs(differences.sum()) * (1 - 1e-12)  # sums that differ by rounding are equal
    if count <= EXACT:
        signs = 1.0 - 2.0 * ((np.arange(2**count)[:, None] >> np.arange(count)) & 1)
        return float((np.abs(signs @ differences) >= observed).mean())
    random, extreme, piece = generator(seed, PURPOSE), 0, max(1, PIECE // count)
    for start in range(0, DRAWS, piece):
        signs = 1.0 - 2.0 * random.integers(0, 2, (min(piece, DRAWS - start), count))
        extreme += int((np.abs(signs @ differences) >= observed).sum())
    return (extreme + 1) / (DRAWS + 1)  # counts the observed signs as a draw
