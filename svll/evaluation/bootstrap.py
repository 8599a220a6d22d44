"""How certain a mean over queries is: the percentile bootstrap, identity by identity.

Queries of one identity rise and fall together, so whole identities are drawn with replacement
(cluster bootstrap; Davison and Hinkley 1997, sec. 3.8), not single queries.
"""

import numpy as np
from numpy.typing import ArrayLike

from harness.rng import generator

DRAWS_AT_ONCE = 100


def interval(
    values: ArrayLike, groups: ArrayLike, *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Between which the mean of values [Q] lies, NaN left out, with this confidence.

    groups [Q] are the identities. Seeded: the same numbers give the same interval.
    """
    values, groups = np.asarray(values, dtype=np.float64), np.asarray(groups)
    used = ~np.isnan(values)
    _, place = np.unique(groups[used], return_inverse=True)
    sums, counts = np.bincount(place, weights=values[used]), np.bincount(place)
    rng, means = generator(seed, 0, 6), []
    for first in range(0, draws, DRAWS_AT_ONCE):
        size = min(DRAWS_AT_ONCE, draws - first), len(sums)
        chosen = rng.integers(0, len(sums), size)
        means.append(sums[chosen].sum(axis=1) / counts[chosen].sum(axis=1))
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(np.concatenate(means), [tail, 1.0 - tail])
    return float(low), float(high)
