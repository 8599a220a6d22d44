"""The results of a sweep: its points ranked, with confidence intervals and each key's importance.
Read from the run folders and from sweep.json there, whichever backend ran the trials."""

import csv
import io
import json
import math
import random
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from harness.base.errors import UserError
from harness.base.files import atomic_write, read_json, write_text
from harness.base.mappings import numeric_leaves
from harness.base.paths import typed
from harness.config.casts import at_type
from harness.config.sources import Setting
from harness.config.yaml_files import read_yaml, to_text
from harness.runs.run import NAME, Run, epoch_lines, state_of
from harness.runs.takeovers import changed_settings, changes
from harness.sweeps.dimensions import Dimension, read_dimension
from harness.sweeps.space import Point

MOST_POINTS = 100
"""Points from which importance is computed at most, as its time grows with their square: a second
for 100, 5 for 200."""
LEAST_POINTS = 10
"""Fewer complete points give no importance, as it would be chance: of three keys of which one makes
60 % of the variance, a forest names that one first in 37 % of searches with 4 points, 65 % with 6,
70 % with 8, 83 % with 10; and a grid of 2 x 2 gives pure noise to one of its keys."""
CONFIDENCE = 0.95
Mode = Literal["max", "min"]
BEST = "best.yaml"
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
    dropped: int = 0
    """0: the sweep file has it. Else trials of one number have left the file together."""


@dataclass(frozen=True)
class Ranked:
    """A point with the metric of each of its seeds."""

    point: Point
    outcomes: Sequence[Outcome]
    """Of its complete trials."""
    trial_count: int = 1
    """All trials of the point, also those that are not complete or were stopped early."""

    @property
    def values(self) -> list[float]:
        return [one.value for one in self.outcomes if one.value is not None]

    @property
    def is_whole(self) -> bool:
        """Return whether all its trials are complete."""
        return len(self.outcomes) == self.trial_count

    @property
    def in_file(self) -> bool:
        """Return whether the sweep file still has the point."""
        return not self.outcomes[0].dropped

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
        count = len(self.values)
        return _student(count - 1) * self.spread / math.sqrt(count)


@dataclass(frozen=True)
class SweepResults:
    """The trials of a sweep folder."""

    name: str
    folder: Path
    metric: str
    mode: Mode
    outcomes: Sequence[Outcome]
    objectives: Mapping[str, str] = field(default_factory=dict)
    """Further objectives: `max` or `min` by key."""
    search: Mapping[str, Dimension] = field(default_factory=dict)
    """What the sweep file searches; nothing in a sweep.json of an earlier version."""

    @property
    def selected_on(self) -> str:
        """The part of the data on which the metric is computed."""
        return "validation" if self.metric.startswith("validation.") else "test"

    @cached_property
    def keys(self) -> list[str]:
        """The searched keys, in order."""
        return list(dict.fromkeys(key for one in self.outcomes for key in one.point))

    @cached_property
    def dimensions(self) -> dict[str, Dimension]:
        """How each key is searched; as a grid of the tried values where sweep.json does not say."""
        undeclared = {key: {json.dumps(one.point[key]): one.point[key] for one in self.outcomes
                            if key in one.point} for key in self.keys if key not in self.search}
        grids = {key: Dimension(key, "grid", tuple(values.values()), "sweep.json")
                 for key, values in undeclared.items()}
        return {key: grids.get(key) or self.search[key] for key in self.keys}

    @cached_property
    def in_file(self) -> "SweepResults":
        """The results less the trials that are no longer in the sweep file: their other settings
        may differ."""
        return replace(self, outcomes=[one for one in self.outcomes if not one.dropped])

    def ranked(self) -> list[Ranked]:
        """Return the points that have a complete trial, the best mean first; points with missing
        seeds come last, and after them those that are no longer in the sweep file: their other
        settings may differ."""
        return list(self._ranked)

    @cached_property
    def _ranked(self) -> list[Ranked]:
        groups: dict[str, list[Outcome]] = {}
        for one in self.outcomes:
            key = json.dumps([one.dropped, one.point], sort_keys=True)
            groups.setdefault(key, []).append(one)
        points = [Ranked(group[0].point, complete, len(group)) for group in groups.values()
                  if (complete := [one for one in group if one.value is not None])]
        sign = -1.0 if self.mode == "max" else 1.0
        return sorted(points, key=lambda point: (
            not point.in_file, not point.is_whole, sign * point.mean
        ))

    def __repr__(self) -> str:
        complete, best = [one for one in self.outcomes if one.value is not None], ""
        if ranked := self.ranked():
            best = f", best {self.metric} {ranked[0].mean:.4f}"
        return (f"SweepResults({self.name!r}, {len(complete)} of {len(self.outcomes)} trials "
                f"complete{best})")

    def sound(self) -> list[Ranked]:
        """Return the whole points in the sweep file, or all there where none is whole."""
        ranked = [point for point in self.ranked() if point.in_file]
        return [point for point in ranked if point.is_whole] or ranked

    @cached_property
    def shares(self) -> dict[str, float]:
        """The importance of each key: its share in the metric's variance; empty when unknown.

        For a full grid, by analysis of variance, with `interactions` for the rest. Otherwise by
        Optuna's functional ANOVA over a random forest (Hutter et al. 2014); these shares sum to 1.
        Of more than 100 points, 100 are drawn by a fixed seed. Keys that some points lack are left
        out, and so is everything below 10 points.
        """
        ranked = self.sound()
        if self.has_changed:
            return {}
        keys = [key for key in self.keys if all(key in one.point for one in ranked)]
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

    @property
    def weighed(self) -> int:
        """The number of points from which `shares` are computed: all of a full grid."""
        count = len(self.sound())
        return count if "interactions" in self.shares else min(count, MOST_POINTS)

    @cached_property
    def has_changed(self) -> bool:
        """Whether a run's settings changed during training, so that its point means little."""
        return any(_has_changed(one.run) for one in self.outcomes)


@cache
def _student(freedom: int) -> float:
    """Return the quantile of Student's t that bounds a confidence interval."""
    from scipy.stats import t  # takes a second to import

    return float(t.ppf(0.5 + CONFIDENCE / 2, freedom))


def _has_changed(run: Run) -> bool:
    with suppress(UserError):  # what it was is not known
        return bool(changes(run))
    return True


def unbeaten(results: SweepResults, ranked: Sequence[Ranked]) -> list[bool]:
    """Return whether each point is Pareto-optimal in the metric and the objectives: no other in the
    sweep file is at least as good in all of them and better in one."""
    import numpy as np  # not needed by --help and --status

    modes = [results.mode, *results.objectives.values()]
    signs = np.array([1.0 if mode == "max" else -1.0 for mode in modes])
    means = [[one.mean, *map(one.mean_of, results.objectives)] for one in ranked]
    scores = np.reshape(means, (-1, len(modes))) * signs
    scores[[not one.in_file for one in ranked]] = np.nan
    is_better = (scores[:, None] >= scores).all(axis=2) & (scores[:, None] > scores).any(axis=2)
    found: list[bool] = (~is_better.any(axis=0) & ~np.isnan(scores).any(axis=1)).tolist()
    return found


def read_outcomes(folder: Path) -> SweepResults:
    """Read a sweep folder. Raises UserError for any other folder."""
    file = folder / "sweep.json"
    try:
        record = at_type(read_json(file), dict[str, Any])
        name, metric = _plain_name(record["name"]), at_type(record["metric"], str)
        mode = at_type(record["mode"], Mode)
        objectives = at_type(record.get("objectives", {}), dict[str, Mode])
        search = _search(at_type(record.get("search", {}), dict[str, Any]), file)
        results = SweepResults(name, folder, metric, mode, [], objectives, search)
        trials = [(at_type(t["point"], dict[str, Any]), at_type(t["seed"], int),
                   Run(folder / _plain_name(t["signature"])), at_type(t.get("dropped", 0), int))
                  for t in at_type(record["trials"], list[dict[str, Any]])]
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{folder}: not a sweep folder: it has no sweep.json") from None
    except (ValueError, KeyError, RecursionError, IsADirectoryError) as error:
        raise UserError(f"{file}: cannot be read: {error!r}; the sweep's next launch writes it "
                        "again") from None
    outcomes = []
    for point, seed, run, dropped in trials:
        try:
            numbers = numbers_of(run) if objectives else numeric_leaves(run.result() or {})
        except (UserError, ValueError):
            numbers = {}
        for key in POSITION:
            numbers.pop(key, None)
        value = numbers.get(metric)
        outcomes.append(Outcome(point, seed, run, state_of(run), value, numbers, dropped))
    return replace(results, outcomes=outcomes)


def words_of(runs: Path, name: str) -> list[str]:
    """Return the recipe and the settings with which a sweep without a file was launched. Raises
    UserError when there is no such sweep below `runs`."""
    if not NAME.fullmatch(name):
        raise UserError(f"--sweep-name: {name!r} must be a plain folder name")
    file = runs / name / "sweep.json"
    try:
        record = at_type(read_json(file), dict[str, Any])
        words, recipes = (at_type(record.get(key, []), list[str]) for key in ("words", "recipes"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"--sweep-name {name}: no such sweep in {runs.absolute()}; a new one needs "
                        "--recipe NAME and its settings") from None
    except (ValueError, RecursionError, IsADirectoryError) as error:
        raise UserError(f"{file}: cannot be read: {error!r}; give --recipe and the settings "
                        "again") from None
    if not words:
        source = record.get("file")
        if source in recipes:
            raise UserError(f"--sweep-name {name}: this is the run of a recipe; give --recipe "
                            f"{source}")
        raise UserError(f"--sweep-name {name}: this sweep has a file; give --sweep {source}")
    return words


def _search(entries: Mapping[str, Any], file: Path) -> dict[str, Dimension]:
    """Return what is searched, by key. Raises ValueError for what no launch has written."""
    faults: list[str] = []
    found = [one for key, entry in entries.items()
             for one in read_dimension(Setting(key, entry, str(file)), faults)]
    if faults:
        raise ValueError("; ".join(faults))
    return {one.key: one for one in found}


def _plain_name(value: Any) -> str:
    """Return the name of a sweep or run. Raises ValueError for any other value."""
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise ValueError(f"{value!r} is not the name of a sweep or run")
    return value


def numbers_of(run: Run) -> dict[str, float]:
    """Return the numbers of a run's last epoch, replaced by those of its result."""
    lines = epoch_lines(run)
    return numeric_leaves(lines[-1] if lines else {}) | numeric_leaves(run.result() or {})


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
    found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {key: float(share) for key, share in found.items()}


# --- files ---


def write_best(
    results: SweepResults, *, without: Mapping[str, Any],
    absent: Mapping[str, Any] = MappingProxyType({}),
) -> Path | None:
    """Write the best point in the sweep file as a recipe; return the file, None when no trial of
    one is complete.

    without: values by dotted key that replace the run's (None: leave the key out), for keys that
    only a search needs. absent: values of keys that an earlier version's run lacks.
    """
    ranked = results.in_file.ranked()
    if not ranked:
        return None
    best = ranked[0]
    run = best.outcomes[0].run
    settings, _ = read_yaml(run.config_file)
    changed = {setting.key: setting.value for setting in changed_settings(run)}
    for key, value in {**absent, **changed, **without}.items():
        node, (*above, last) = settings, key.split(".")
        for part in above:
            node = node.get(part, {})
            if not isinstance(node, dict):
                raise UserError(f"{run.config_file}: {part} is {node!r}, not a group of keys; put "
                                "a copy back")
        if value is None:
            node.pop(last, None)
        elif key in absent and key not in changed:
            node.setdefault(last, value)
        else:
            node[last] = value
    width = f" +- {best.half_width:.4f} (95 %)" if best.half_width is not None else ""
    point = " ".join(f"{key}={json.dumps(value)}" for key, value in best.point.items())
    runs = ", ".join(one.run.signature for one in best.outcomes)
    warning = f"# Settings changed during training ({typed(run.changes_file)}): the last.\n"
    path = results.folder / BEST
    head = (f"# The best of {len(ranked)} points of the sweep {typed(results.name)}, selected on "
            f"{results.selected_on}:\n# {results.metric} {best.mean:.4f}{width}, "
            f"{len(best.values)} seed(s), runs {runs}\n# {point}\n{warning if changed else ''}"
            f"#   python launch/train.py --recipe {typed(path)}\n")
    write_text(path, head + to_text(settings))
    return path


def write_tables(results: SweepResults) -> list[Path]:
    """Write every trial (point, seed, state, all numbers of its result) to trials.csv and, with
    types, to trials.parquet; return the files. A column `in_file` tells trials apart that are no
    longer in the sweep file, if there are any."""
    names = list(dict.fromkeys(name for one in results.outcomes for name in one.numbers))
    marks = ["in_file"] if any(one.dropped for one in results.outcomes) else []
    columns = [*results.keys, "seed", "run", "state", *marks, *names]
    rows = [{key: one.point.get(key) for key in results.keys}
            | {"seed": one.seed, "run": one.run.signature, "state": one.state}
            | dict.fromkeys(marks, not one.dropped)
            | {name: one.numbers.get(name) for name in names} for one in results.outcomes]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    table, typed = results.folder / "trials.csv", results.folder / "trials.parquet"
    write_text(table, text.getvalue())
    import pyarrow  # takes half a second to import
    import pyarrow.parquet

    plain = {column: _of_one_type([row[column] for row in rows]) for column in columns}
    with atomic_write(typed) as private:
        pyarrow.parquet.write_table(pyarrow.table(plain), private)
    return [table, typed]


def _of_one_type(values: Sequence[Any]) -> Sequence[Any]:
    """Return values that fit into a column: numbers, one other type, or else their texts."""
    kinds = {float if type(v) is int else type(v) for v in values if v is not None}
    if len(kinds) <= 1 and not kinds & {list, dict}:
        return values
    return [v if v is None or isinstance(v, str) else json.dumps(v) for v in values]
