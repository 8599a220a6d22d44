"""Population based training (Jaderberg et al. 2017): bad runs continue from good ones with slightly
changed settings.

Runs are compared at every k-th epoch, each with those that reached it earlier. No run waits, so
runs may also be trained one after the other. Draws are a function of search seed, run and epoch
alone.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from harness.base.rng import generator
from harness.sweeps.dimensions import Dimension, seeded, short


def source_for(
    name: str, scores: Mapping[str, float], *, share: float, mode: str, epoch: int,
    seed: int = 0,
) -> str | None:
    """Return the run from which `name` should continue, None for its own state.

    scores: of all runs that reached this epoch, by name. Runs in the worst `share` continue from
    random ones in the best.
    """
    order = sorted(scores, key=lambda one: (scores[one], one), reverse=mode == "max")
    count = math.ceil(len(order) * share)
    if len(order) < 2 or 2 * count > len(order) or name not in order[-count:]:
        return None
    return order[int(_random(seeded(name, seed), epoch, 0).integers(count))]


def explore(
    dimensions: Sequence[Dimension], settings: Mapping[str, Any], changeable: set[str], *,
    name: str, epoch: int, factor: float, resample: float, seed: int = 0,
) -> dict[str, Any]:
    """Return settings with each changeable one multiplied or divided by `factor`, or redrawn with
    the probability `resample`; others, such as those that shape the model, stay."""
    random = _random(seeded(name, seed), epoch, 1)
    found = dict(settings)
    for dimension in dimensions:
        anew, up, place = random.random(), random.random() < 0.5, int(random.integers(2**31))
        if dimension.key not in changeable or dimension.key not in settings:
            continue
        before = settings[dimension.key]
        moved = _moved(dimension, before, factor, up=up)
        after = dimension.draw(place, seed=seed) if anew < resample else moved
        # a loss of weight 0 is left out, and so are the parameters that it trains
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
