"""The results of a sweep: its points ranked, with confidence intervals and each key's importance.

Read from the run folders and from sweep.json there, whichever backend ran the trials.
"""

import json
import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from harness.base.errors import UserError
from harness.base.files import read_json
from harness.base.mappings import numeric_leaves
from harness.runs.run import Run, epoch_lines, state_of
from harness.runs.takeovers import changes
from harness.sweeps.space import Point

MOST_POINTS = 200
"""More would take a random forest minutes."""
LEAST_POINTS = 4
"""Fewer complete points give no importance."""
CONFIDENCE = 0.95
POSITION = ("epoch", "step")
"""Numbers of an epoch's line that are no metrics."""


@dataclass(frozen=True)
class Outcome:
    """The present state and numbers of one trial."""

    point: Point
    seed: int
    run: Run
    state: str
    value: float | None
    """Its metric; None while it is not complete."""
    numbers: Mapping[str, float]
    """Of its result, by dotted key."""


@dataclass(frozen=True)
class Ranked:
    """A point with the metric of each of its seeds."""

    point: Point
    outcomes: Sequence[Outcome]
    """Of its complete trials."""
    asked: int = 1
    """How many trials it has; those of bad seeds may have been stopped early."""

    @property
    def values(self) -> list[float]:
        return [one.value for one in self.outcomes if one.value is not None]

    @property
    def is_whole(self) -> bool:
        """Return whether all its trials are complete."""
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
        from scipy.stats import t  # takes a second to import

        count = len(self.values)
        return float(t.ppf(0.5 + CONFIDENCE / 2, count - 1) * self.spread / math.sqrt(count))


@dataclass(frozen=True)
class SweepResults:
    """The trials of a sweep folder."""

    name: str
    folder: Path
    metric: str
    mode: Literal["max", "min"]
    outcomes: Sequence[Outcome]
    objectives: Mapping[str, str] = field(default_factory=dict)
    """Further objectives: `max` or `min` by key."""

    @property
    def selected_on(self) -> str:
        """The part of the data on which the metric is computed."""
        return "validation" if self.metric.startswith("validation.") else "test"

    @property
    def keys(self) -> list[str]:
        """The searched keys, in order."""
        return list(dict.fromkeys(key for one in self.outcomes for key in one.point))

    def ranked(self) -> list[Ranked]:
        """Return the points that have a complete trial, the best mean first; points with missing
        seeds come last."""
        groups: dict[str, list[Outcome]] = {}
        for one in self.outcomes:
            groups.setdefault(json.dumps(one.point, sort_keys=True), []).append(one)
        points = [
            Ranked(group[0].point, complete, len(group)) for group in groups.values()
            if (complete := [one for one in group if one.value is not None])
        ]
        sign = -1.0 if self.mode == "max" else 1.0
        return sorted(points, key=lambda point: (not point.is_whole, sign * point.mean))

    def sound(self) -> list[Ranked]:
        """Return the whole points, or all where there are none."""
        ranked = self.ranked()
        return [point for point in ranked if point.is_whole] or ranked

    @cached_property
    def shares(self) -> dict[str, float]:
        """The result of `importance`, computed once."""
        return importance(self)

    @property
    def has_changed(self) -> bool:
        """Whether a run's settings changed during training, so that its point means little."""
        return any(changes(one.run) for one in self.outcomes)


def unbeaten(results: SweepResults, ranked: Sequence[Ranked]) -> list[bool]:
    """Return whether each point is Pareto-optimal in the metric and the objectives: no other is at
    least as good in all of them and better in one."""
    modes = [results.mode, *results.objectives.values()]
    signs = [1.0 if mode == "max" else -1.0 for mode in modes]
    scores = []
    for one in ranked:
        means = [one.mean, *(one.mean_of(key) for key in results.objectives)]
        scores.append([sign * mean for sign, mean in zip(signs, means, strict=True)])
    return [
        not any(map(math.isnan, mine)) and not any(
            all(a >= b for a, b in zip(other, mine, strict=True)) and other != mine
            for other in scores
        )
        for mine in scores
    ]


def read_outcomes(folder: Path) -> SweepResults:
    """Read a sweep folder. Raises UserError for any other folder."""
    try:
        record = read_json(folder / "sweep.json")
        metric, objectives = str(record["metric"]), record.get("objectives", {})
        results = SweepResults(record["name"], folder, metric, record["mode"], [], objectives)
        trials = [(t["point"], int(t["seed"]), Run(folder / t["signature"]))
                  for t in record["trials"]]
    except FileNotFoundError:
        raise UserError(f"{folder}: not a sweep folder: it has no sweep.json") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / 'sweep.json'}: cannot be read: {error!r}") from None
    outcomes = []
    for point, seed, run in trials:
        try:
            numbers = numbers_of(run) if objectives else numeric_leaves(run.result() or {})
        except (UserError, ValueError):
            numbers = {}
        numbers = {k: v for k, v in numbers.items() if k not in POSITION}
        outcomes.append(Outcome(point, seed, run, state_of(run), numbers.get(metric), numbers))
    return replace(results, outcomes=outcomes)


def numbers_of(run: Run) -> dict[str, float]:
    """Return the numbers of a run's last epoch, replaced by those of its result."""
    lines = epoch_lines(run)
    return numeric_leaves(lines[-1] if lines else {}) | numeric_leaves(run.result() or {})


def importance(results: SweepResults) -> dict[str, float]:
    """Return the share of each key in the metric's variance over the points; empty when unknown.

    For a full grid, by analysis of variance, with `interactions` for the rest. Otherwise by
    Optuna's functional ANOVA over a random forest (Hutter et al. 2014); these shares sum to 1. Of
    more than 200 points, 200 are drawn by a fixed seed. Keys that some points lack are left out.
    """
    ranked = results.sound()
    if results.has_changed:
        return {}
    keys = [key for key in results.keys if all(key in one.point for one in ranked)]
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
    import optuna  # takes a third of a second to import

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    columns = {key: [one.point[key] for one in ranked] for key in keys}
    kinds: dict[str, Any] = {}
    for key, values in columns.items():
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            kinds[key] = optuna.distributions.FloatDistribution(min(values), max(values))
        else:
            columns[key] = texts = [json.dumps(value) for value in values]
            kinds[key] = optuna.distributions.CategoricalDistribution(sorted(set(texts)))
    for place, one in enumerate(ranked):
        params = {key: values[place] for key, values in columns.items()}
        study.add_trial(optuna.trial.create_trial(
            params=params, distributions=kinds, value=one.mean
        ))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))
