"""What came out of a sweep: its points ranked, how sure that is, and what mattered.

    runs/<name>/best.yaml       the best point as a recipe
    runs/<name>/trials.csv      every trial: point, seed, state, all numbers of its result
    runs/<name>/trials.parquet  likewise, with types

Read from the run folders and from sweep.json there, whichever backend ran the trials.
"""

import json
import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from harness.base.errors import UserError
from harness.base.files import read_json
from harness.base.mappings import flatten
from harness.runs.run import Run, epoch_lines, state_of
from harness.runs.takeovers import changes
from harness.sweeps.space import Point

MOST_POINTS = 200
LEAST_POINTS = 4
"""Fewer complete points say nothing about what mattered."""
CONFIDENCE = 0.95
PLACES = ("epoch", "step")
"""Numbers of an epoch's line that say where it stands."""


@dataclass(frozen=True)
class Outcome:
    """One trial as it ended, or is now."""

    point: Point
    seed: int
    run: Run
    state: str
    value: float | None
    """Its metric; None as long as it is not complete."""
    numbers: Mapping[str, float]
    """Of its result, by dotted key."""


@dataclass(frozen=True)
class Ranked:
    """A point with the metric of each of its seeds."""

    point: Point
    outcomes: Sequence[Outcome]
    """Of its complete trials."""
    asked: int = 1
    """How many trials it has: those of bad seeds may have been ended early."""

    @property
    def values(self) -> list[float]:
        return [one.value for one in self.outcomes if one.value is not None]

    @property
    def is_whole(self) -> bool:
        """Whether all its trials are complete."""
        return len(self.outcomes) == self.asked

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    def mean_of(self, key: str) -> float:
        """Return the mean of a number of the results, NaN where one does not have it."""
        return statistics.fmean(one.numbers.get(key, math.nan) for one in self.outcomes)

    @property
    def spread(self) -> float | None:
        """Standard deviation over the seeds, None of one seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def half_width(self) -> float | None:
        """Half of the 95 % confidence interval of the mean (Student's t), None of one seed."""
        if self.spread is None:
            return None
        from scipy.stats import t  # a second to import

        count = len(self.values)
        factor = t.ppf(0.5 + CONFIDENCE / 2, count - 1)
        return float(factor * self.spread / math.sqrt(count))


@dataclass(frozen=True)
class Sweeping:
    """A sweep folder, read."""

    name: str
    folder: Path
    metric: str
    mode: Literal["max", "min"]
    outcomes: Sequence[Outcome]
    objectives: Mapping[str, str] = field(default_factory=dict)
    """What was weighed against the metric: `max` or `min` by key."""

    @property
    def selected_on(self) -> str:
        """The part of the data that the metric is of."""
        return "validation" if self.metric.startswith("validation.") else "test"

    @property
    def keys(self) -> list[str]:
        """The searched keys, in order."""
        return list(dict.fromkeys(key for one in self.outcomes for key in one.point))

    def ranked(self) -> list[Ranked]:
        """Return the points that have a complete trial: whole ones, the best mean first, then those
        of which seeds are missing."""
        groups: dict[str, list[Outcome]] = {}
        for one in self.outcomes:
            groups.setdefault(json.dumps(one.point, sort_keys=True), []).append(one)
        found = []
        for group in groups.values():
            complete = [one for one in group if one.value is not None]
            if complete:
                found.append(Ranked(group[0].point, complete, len(group)))
        sign = -1.0 if self.mode == "max" else 1.0
        return sorted(found, key=lambda point: (not point.is_whole, sign * point.mean))

    def sound(self) -> list[Ranked]:
        """Return the whole points, or all where there are none."""
        ranked = self.ranked()
        return [point for point in ranked if point.is_whole] or ranked

    @cached_property
    def shares(self) -> dict[str, float]:
        """What mattered, see `importance`; of many points it takes its time."""
        return importance(self)

    @property
    def has_changed(self) -> bool:
        """Whether settings of any run changed while it was trained, so that points say little."""
        return any(changes(one.run) for one in self.outcomes)


def unbeaten(sweeping: Sweeping, ranked: Sequence[Ranked]) -> list[bool]:
    """Return of each point whether no other is at least as good in everything, and better in one.

    What counts is the metric and the objectives (the Pareto front).
    """
    signs = [1.0 if sweeping.mode == "max" else -1.0]
    signs += [1.0 if mode == "max" else -1.0 for mode in sweeping.objectives.values()]
    scores = []
    for one in ranked:
        means = [one.mean, *(one.mean_of(key) for key in sweeping.objectives)]
        scores.append([sign * mean for sign, mean in zip(signs, means, strict=True)])
    return [
        not any(map(math.isnan, mine)) and not any(
            all(a >= b for a, b in zip(other, mine, strict=True)) and other != mine
            for other in scores
        )
        for mine in scores
    ]


def read_outcomes(folder: Path) -> Sweeping:
    """Read a sweep folder. Raises UserError for a folder that is none."""
    try:
        said = read_json(folder / "sweep.json")
        metric, mode = str(said["metric"]), said["mode"]
        objectives = said.get("objectives", {})
        trials = [(t["point"], int(t["seed"]), Run(folder / t["signature"]))
                  for t in said["trials"]]
    except FileNotFoundError:
        raise UserError(f"{folder}: not a sweep's folder: there is no sweep.json in it") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / 'sweep.json'}: cannot be read: {error!r}") from None
    outcomes = []
    for point, seed, run in trials:
        try:
            numbers = numbers_of(run) if objectives else flatten(run.result() or {})
        except (UserError, ValueError):
            numbers = {}
        numbers = {k: v for k, v in numbers.items() if k not in PLACES}
        outcomes.append(Outcome(point, seed, run, state_of(run), numbers.get(metric), numbers))
    return Sweeping(said["name"], folder, metric, mode, outcomes, objectives)


def numbers_of(run: Run) -> dict[str, float]:
    """Return the numbers of a complete run's result, and of its last epoch those that are not."""
    lines = epoch_lines(run)
    return flatten(lines[-1] if lines else {}) | flatten(run.result() or {})


def importance(sweeping: Sweeping) -> dict[str, float]:
    """Return the share of each key in the metric's variance over the points; empty when unknown.

    Of a full grid by its analysis of variance, what keys do together under `interactions`; of other
    points by functional ANOVA over a random forest (Hutter et al. 2014), by Optuna, the shares
    summing to 1; of more than 200, which would take minutes, 200 drawn by a fixed seed. Keys that
    are not part of every point are left out.
    """
    ranked = sweeping.sound()
    if sweeping.has_changed:
        return {}
    keys = [key for key in sweeping.keys if all(key in one.point for one in ranked)]
    kinds = {key: sorted({json.dumps(one.point[key]) for one in ranked}) for key in keys}
    kinds = {key: values for key, values in kinds.items() if len(values) > 1}
    means = [one.mean for one in ranked]
    if len(ranked) < LEAST_POINTS or not kinds or max(means) == min(means):
        return {}
    if math.prod(map(len, kinds.values())) == len(ranked):
        return _of_grid(ranked, kinds)
    if len(ranked) > MOST_POINTS:
        ranked = random.Random(0).sample(ranked, MOST_POINTS)
    return _of_forest(ranked, list(kinds))


def _of_grid(ranked: Sequence[Ranked], kinds: Mapping[str, Sequence[str]]) -> dict[str, float]:
    total = statistics.pvariance([one.mean for one in ranked])
    shares = {}
    for key, values in kinds.items():
        levels = [
            statistics.fmean(one.mean for one in ranked if json.dumps(one.point[key]) == value)
            for value in values
        ]
        shares[key] = statistics.pvariance(levels) / total
    found = dict(sorted(shares.items(), key=lambda item: -item[1]))
    if len(found) == 1:
        return found
    return found | {"interactions": max(0.0, 1.0 - sum(shares.values()))}


def _of_forest(ranked: Sequence[Ranked], keys: Sequence[str]) -> dict[str, float]:
    import optuna  # a third of a second

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    kinds = {key: _distribution([one.point[key] for one in ranked]) for key in keys}
    named = [key for key, kind in kinds.items() if hasattr(kind, "choices")]
    for one in ranked:
        params = {
            key: json.dumps(one.point[key]) if key in named else one.point[key] for key in keys
        }
        study.add_trial(optuna.trial.create_trial(
            params=params, distributions=kinds, value=one.mean
        ))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))


def _distribution(values: Sequence[Any]) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return FloatDistribution(min(values), max(values))
    return CategoricalDistribution(sorted({json.dumps(value) for value in values}))


# --- files ---


def _of_one_type(values: Sequence[Any]) -> Sequence[Any]:
    """Return values that fit into a column: numbers, one other type, or else their texts."""
    kinds = {float if type(v) is int else type(v) for v in values if v is not None}
    if len(kinds) <= 1 and not kinds & {list, dict}:
        return values
    return [v if v is None or isinstance(v, str) else json.dumps(v) for v in values]
