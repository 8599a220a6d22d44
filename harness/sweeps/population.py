"""Population based training (Jaderberg et al. 2017): bad runs go on from good ones, changed a bit.

Runs are compared at every k-th epoch, each with those that have come there before it. Nothing is
waited for, so runs may also be trained one after the other. What is drawn is a function of the run
and the epoch alone.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from harness.base.rng import generator
from harness.sweeps.dimensions import Dimension, short

Settings = Mapping[str, Any]


def source_for(
    name: str, scores: Mapping[str, float], *, share: float, mode: str, epoch: int
) -> str | None:
    """Return the run from which `name` should go on, None when it should go on by itself.

    scores: of all that have come to this epoch, by name; at least two. One of the worst `share`
    goes on from one of the best.
    """
    order = sorted(scores, key=lambda one: (scores[one], one), reverse=mode == "max")
    count = math.ceil(len(order) * share)
    if len(order) < 2 or 2 * count > len(order) or name not in order[-count:]:
        return None
    return order[int(_random(name, epoch, 0).integers(count))]


def explore(
    dimensions: Sequence[Dimension], settings: Settings, changeable: set[str], *, name: str,
    epoch: int, factor: float, resample: float,
) -> dict[str, Any]:
    """Return settings near others: each changeable one by a factor up or down, or drawn anew.

    resample: the probability of the latter. Others stay, as those that shape the model must.
    """
    random = _random(name, epoch, 1)
    found = dict(settings)
    for dimension in dimensions:
        anew, up, place = random.random(), random.random() < 0.5, int(random.integers(2**31))
        if dimension.key not in changeable or dimension.key not in settings:
            continue
        before = settings[dimension.key]
        after = dimension.draw(place) if anew < resample else (
            _moved(dimension, before, factor, up=up)
        )
        # a weight of 0 leaves out what it weighs, and with it what would have been trained
        found[dimension.key] = before if (after == 0) != (before == 0) else after
    return found


def _moved(dimension: Dimension, value: Any, factor: float, *, up: bool) -> Any:
    if dimension.kind in ("grid", "choice"):
        place = dimension.values.index(value) + (1 if up else -1)
        return dimension.values[min(max(place, 0), len(dimension.values) - 1)]
    low, high = dimension.values
    moved = value * factor if up else value / factor
    if dimension.kind == "randint":
        whole = math.ceil(moved) if up else math.floor(moved)
        return min(max(whole, low), high - 1)
    return min(max(short(moved), low), high)


def _random(name: str, epoch: int, purpose: int) -> np.random.Generator:
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
    return generator(key, epoch, purpose)
