"""Confidence intervals of means over queries: a percentile bootstrap over identities.

Queries of one identity show one person or vehicle, and succeed or fail together: resampling them
one by one would give too narrow an interval. A draw takes as many identities as there are, with
replacement, each with all its queries (the cluster bootstrap; Davison and Hinkley, Bootstrap
Methods and their Application, 1997, section 3.8), and its mean is over the queries taken.

Letters: Q queries, I identities with a query that counts.
"""

import numpy as np
from numpy.typing import ArrayLike

from harness.base.errors import UserError
from harness.base.rng import generator
from svll.base.labels import on_host

PURPOSE = 6
"""Separates these random numbers from others of the same seed."""
NUMBERS = 2**20
"""Identities drawn at a time: some 30 MB."""


def interval(
    values: ArrayLike, groups: ArrayLike, *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Return the bounds that hold the mean of values [Q] with probability `level`.

    values: such as average precisions; queries with NaN are left out. groups [Q]: the identities.
    With one identity, both bounds are the mean. Raises UserError for shapes that do not fit, if
    every value is NaN, and for an impossible level or number of draws.
    """
    values = np.asarray(on_host(values), dtype=np.float64)
    groups = np.asarray(on_host(groups))
    faults = []
    if values.ndim != 1 or groups.shape != values.shape:
        shapes = f"{list(values.shape)} and {list(groups.shape)}"
        faults.append(f"values and identities have shapes {shapes}; expected [queries] both")
    elif np.isnan(values).all():
        faults.append("every value is NaN, so no query counts and there is no mean")
    if not 0.0 < level < 1.0:
        faults.append(f"level is {level}; a share between 0 and 1 is needed, such as 0.95")
    if draws < 1:
        faults.append(f"draws is {draws}; at least 1 is needed, and some 1,000 for steady bounds")
    if faults:
        raise UserError("\n".join(faults))
    used = ~np.isnan(values)
    _, owner = np.unique(groups[used], return_inverse=True)
    sums, counts = np.bincount(owner, weights=values[used]), np.bincount(owner)
    random, total, means = generator(seed, PURPOSE), len(sums), np.empty(draws)
    step = max(1, NUMBERS // total)
    for first in range(0, draws, step):
        last = min(first + step, draws)
        chosen = random.integers(0, total, (last - first, total))
        means[first:last] = sums[chosen].sum(axis=1) / counts[chosen].sum(axis=1)
    low, high = np.quantile(means, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return float(low), float(high)
