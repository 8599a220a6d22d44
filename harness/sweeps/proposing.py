"""The point that an algorithm tries next, by Optuna's samplers.

A proposal is a function of the sweep, its number and the earlier points' results. No state is kept
in a process, so a killed search resumes with the same proposals.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from harness.sweeps.dimensions import Dimension, seeded, short
from harness.sweeps.keys import Algorithm
from harness.sweeps.space import Point, Space

TRIES = 100
"""How often a proposal is repeated when it is forbidden or known."""
OWN_TRIES = 10
"""How many of these the algorithm makes, which may repeat itself; the rest are random."""


@dataclass(frozen=True)
class TriedPoint:
    """A point that was proposed, with its results so far."""

    point: Point
    state: Literal["running", "complete", "ended early", "failed"]
    values: Sequence[float] | None = None
    """Means over its seeds of the metric and the objectives; None unless it is complete."""
    reached: Mapping[int, float] = field(default_factory=dict)
    """The mean of the metric after each epoch."""


def propose(
    space: Space, algorithm: Algorithm, tried: Sequence[TriedPoint], *, modes: Sequence[str],
    seed: int,
) -> Point | None:
    """Return the next point, None when the space is exhausted. modes: `max` or `min` for each of
    the values. Running points count as bad ones, so that parallel trials differ."""
    import optuna  # takes a third of a second to import

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        directions=["maximize" if mode == "max" else "minimize" for mode in modes]
    )
    by_key = {dimension.key: dimension for dimension in space.dimensions}
    for one in tried:
        study.add_trial(_as_trial(one, by_key, several=len(modes) > 1))
    known = [one.point for one in tried]
    for attempt in range(TRIES):
        own = _seed(space.seed, seed, len(tried), attempt)
        study.sampler = (_sampler(algorithm, own) if attempt < OWN_TRIES
                         else optuna.samplers.RandomSampler(seed=own))
        proposal = study.ask()
        point = space.pick(partial(_choose, proposal))
        if point not in known and space.allows(point):
            return point
        study.tell(proposal, state=optuna.trial.TrialState.FAIL)
    # random draws may miss the last points of a small space
    left = [point for point in space.every() or () if point not in known]
    return left[_seed(space.seed, seed, len(tried), TRIES) % len(left)] if left else None


def _sampler(algorithm: Algorithm, seed: int) -> Any:
    from optuna.samplers import GPSampler, TPESampler

    startup = algorithm.startup
    if algorithm.kind == "gp":
        return GPSampler(seed=seed, n_startup_trials=startup, warn_independent_sampling=False)
    return TPESampler(seed=seed, n_startup_trials=startup, constant_liar=True)


def _seed(search_seed: int, seed: int, number: int, attempt: int) -> int:
    text = seeded(f"{seed} {number} {attempt}", search_seed)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def _distribution(dimension: Dimension) -> Any:
    from optuna import distributions as kinds

    if dimension.kind == "choice":  # by place: a value may be a list
        return kinds.CategoricalDistribution(range(len(dimension.values)))
    low, high = dimension.values
    if dimension.kind == "randint":
        return kinds.IntDistribution(low, high - 1)
    return kinds.FloatDistribution(low, high, log=dimension.kind == "loguniform")


def _choose(proposal: Any, dimension: Dimension) -> Any:
    value = proposal._suggest(dimension.key, _distribution(dimension))
    if dimension.kind == "choice":
        return dimension.values[value]
    if dimension.kind == "randint":
        return int(value)
    low, high = dimension.values
    return min(max(short(value), low), high)


def _as_trial(one: TriedPoint, dimensions: Mapping[str, Dimension], *, several: bool) -> Any:
    """Return a point as a trial of Optuna. several: whether there are several values; Optuna prunes
    trials of a single one only."""
    from optuna.trial import TrialState, create_trial

    states = {"running": TrialState.RUNNING, "complete": TrialState.COMPLETE,
              "ended early": TrialState.FAIL if several else TrialState.PRUNED,
              "failed": TrialState.FAIL}
    params = {
        key: dimensions[key].values.index(value) if dimensions[key].kind == "choice" else value
        for key, value in one.point.items()
    }
    return create_trial(
        state=states[one.state], params=params, values=one.values,
        distributions={key: _distribution(dimensions[key]) for key in params},
        intermediate_values=dict(one.reached) if states[one.state] == TrialState.PRUNED else {},
    )
