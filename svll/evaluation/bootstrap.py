"""How sure a mean over queries is: a percentile bootstrap that resamples whole identities.

Queries of one identity show one person or vehicle, and succeed or fail together: resampling them
one by one would give an interval that is too narrow. A draw takes as many identities as there are,
with replacement, each with all its queries (the cluster bootstrap; Davison and Hinkley, Bootstrap
Methods and their Application, 1997, section 3.8), and its mean is over the queries taken.

Letters: Q queries, I identities with a query that counts.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.base.errors import UserError
from harness.base.rng import generator

PURPOSE = 6
"""Keeps these random numbers apart from others of the same seed."""
NUMBERS = 2**20
"""Identities drawn at a time: some 30 MB."""

Floats = NDArray[np.float64]


def interval(
    values: ArrayLike, groups: ArrayLike, *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Bounds that hold the mean of values [Q] with probability `level`.

    values: such as the average precisions; NaN where a query was skipped, which leaves it out of
    everything. groups [Q]: the identities. The same seed gives the same bounds. With one identity
    both are the mean: nothing tells how others would fare. Raises UserError for shapes that do not
    fit, when every value is NaN, and for a level or number of draws that cannot be.
    """
    values, groups = np.asarray(values, dtype=np.float64), np.asarray(groups)
    _check(values, groups, level, draws)
    used = ~np.isnan(values)
    _, owner = np.unique(groups[used], return_inverse=True)
    sums = np.bincount(owner, weights=values[used]).astype(np.float64)
    counts = np.bincount(owner)
    means = _means(sums, counts, draws, seed)
    low, high = np.quantile(means, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return float(low), float(high)


def _means(sums: Floats, counts: NDArray[np.int64], draws: int, seed: int) -> Floats:
    """The mean of every draw [draws], from each identity's sum and number of queries [I]."""
    random, total = generator(seed, PURPOSE), len(sums)
    means = np.empty(draws)
    step = max(1, NUMBERS // total)
    for first in range(0, draws, step):
        last = min(first + step, draws)
        chosen = random.integers(0, total, (last - first, total))
        means[first:last] = sums[chosen].sum(axis=1) / counts[chosen].sum(axis=1)
    return means


def _check(values: Floats, groups: NDArray[np.int64], level: float, draws: int) -> None:
    faults = []
    if values.ndim != 1 or groups.shape != values.shape:
        shapes = f"{list(values.shape)} and {list(groups.shape)}"
        faults.append(f"values and identities have shapes {shapes}; expected [queries] both")
    elif np.isnan(values).all():
        faults.append("no query counts (every value is NaN), so there is no mean to be sure of")
    if not 0.0 < level < 1.0:
        faults.append(f"level is {level}; a share between 0 and 1 is needed, such as 0.95")
    if draws < 1:
        faults.append(f"draws is {draws}; at least 1 is needed, and some 1,000 for steady bounds")
    if faults:
        raise UserError("\n".join(faults))
