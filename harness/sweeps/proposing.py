"""Which point an algorithm tries next: Optuna's samplers, asked anew each time.

A proposal is a function of the sweep, of its number, and of what is known of the points before it.
Nothing is kept in a process, so a search that was killed goes on as if it had not been.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from harness.sweeps.dimensions import Dimension, short
from harness.sweeps.keys import Algorithm
from harness.sweeps.space import Point, Space

TRIES = 100
"""How often a proposal that is forbidden, or was made before, is made anew."""
OWN_TRIES = 10
"""How often by the algorithm, which may insist on it; then at random."""


@dataclass(frozen=True)
class Tried:
    """A point that was proposed, and what has become of it."""

    point: Point
    state: Literal["running", "complete", "ended early", "failed"]
    values: Sequence[float] | None = None
    """Its metric and what is weighed against it, means over its seeds; only of a complete one."""
    reached: Mapping[int, float] = field(default_factory=dict)
    """Likewise after each epoch."""


def propose(
    space: Space,
    algorithm: Algorithm,
    tried: Sequence[Tried],
    *,
    modes: Sequence[str],
    seed: int,
) -> Point | None:
    """Return the next point, None when no new one is found: the space is exhausted.

    modes: `max` or `min`, of each of the values. Points that still run count as bad ones, so that
    those side by side differ.
    """
    import optuna  # a third of a second

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    directions = [
        optuna.study.StudyDirection.MAXIMIZE if mode == "max"
        else optuna.study.StudyDirection.MINIMIZE for mode in modes
    ]
    study = optuna.create_study(directions=directions)
    by_key = {dimension.key: dimension for dimension in space.dimensions}
    for one in tried:
        study.add_trial(_as_trial(one, by_key, several=len(modes) > 1))
    known = [one.point for one in tried]
    for attempt in range(TRIES):
        own = _seed(seed, len(tried), attempt)
        study.sampler = (
            _sampler(algorithm, own) if attempt < OWN_TRIES
            else optuna.samplers.RandomSampler(seed=own)
        )
        asked = study.ask()
        point = space.pick(partial(_choose, asked))
        if point not in known and space.allows(point):
            return point
        study.tell(asked, state=optuna.trial.TrialState.FAIL)
    # chance may miss the last ones of a small space
    left = [point for point in space.every() or () if point not in known]
    return left[_seed(seed, len(tried), TRIES) % len(left)] if left else None


def _sampler(algorithm: Algorithm, seed: int) -> Any:
    import optuna

    if algorithm.kind == "gp":
        return optuna.samplers.GPSampler(
            seed=seed, n_startup_trials=algorithm.startup, warn_independent_sampling=False
        )
    return optuna.samplers.TPESampler(
        seed=seed, n_startup_trials=algorithm.startup, constant_liar=True
    )


def _seed(seed: int, number: int, attempt: int) -> int:
    text = f"{seed} {number} {attempt}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def _distribution(dimension: Dimension) -> Any:
    from optuna import distributions as kinds

    if dimension.kind == "choice":  # by place: a value may be a list
        return kinds.CategoricalDistribution(range(len(dimension.values)))
    low, high = dimension.values
    if dimension.kind == "randint":
        return kinds.IntDistribution(low, high - 1)
    return kinds.FloatDistribution(low, high, log=dimension.kind == "loguniform")


def _choose(asked: Any, dimension: Dimension) -> Any:
    value = asked._suggest(dimension.key, _distribution(dimension))
    if dimension.kind == "choice":
        return dimension.values[value]
    if dimension.kind == "randint":
        return int(value)
    low, high = dimension.values
    return min(max(short(value), low), high)


def _as_trial(one: Tried, dimensions: Mapping[str, Dimension], *, several: bool) -> Any:
    """Return a point as Optuna would know it, had it proposed it itself.

    several: values, of which those of one that was ended early cannot be compared.
    """
    from optuna.trial import TrialState, create_trial

    states = {
        "running": TrialState.RUNNING, "complete": TrialState.COMPLETE,
        "ended early": TrialState.FAIL if several else TrialState.PRUNED,
        "failed": TrialState.FAIL,
    }
    params = {
        key: dimensions[key].values.index(value) if dimensions[key].kind == "choice" else value
        for key, value in one.point.items()
    }
    return create_trial(
        state=states[one.state], params=params, values=one.values,
        distributions={key: _distribution(dimensions[key]) for key in params},
        intermediate_values=dict(one.reached) if states[one.state] == TrialState.PRUNED else {},
    )
