"""What a search starts next: open trials first, then points that its algorithm proposes.

What is known of the points is read from the run folders each time, so nothing is lost with the
process that asks.
"""

import logging
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from harness.base.errors import UserError
from harness.base.files import write_text
from harness.base.mappings import numeric_leaves
from harness.cluster.ray.verdicts import was_ended_early
from harness.cluster.summary import write_summary
from harness.config.values import to_yaml
from harness.runs.run import Run, epoch_lines
from harness.sweeps.outcomes import numbers_of
from harness.sweeps.proposing import TriedPoint, propose
from harness.sweeps.reading import Sweep, Trial, make_trial
from harness.sweeps.space import Point, add_point

log = logging.getLogger(__name__)

FAULTY = 20
"""How many proposals with faults, one after the other, end a search."""


class Points:
    """The runs of a search, one after the other."""

    def __init__(self, sweep: Sweep, due: Sequence[Run]) -> None:
        self.sweep, self.due = sweep, list(due)

    @property
    def most(self) -> int:
        """How many runs there will be at most."""
        return len(self.due) + self.sweep.to_propose * len(self.sweep.seeds)

    def next_run(self) -> Run | None:
        """Return the run to start next, None when there are no more."""
        while not self.due and self.sweep.to_propose:  # one may be complete already
            self.due = [trial.run for trial in self._propose()]
        return self.due.pop(0) if self.due else None

    def _propose(self) -> list[Trial]:
        """Keep a new point, and return its trials with their folders made; none at the end."""
        sweep = self.sweep
        assert sweep.algorithm is not None
        tried = tried_points(sweep)
        for _ in range(FAULTY):
            point = propose(
                sweep.space, sweep.algorithm, tried, modes=[sweep.mode, *sweep.objectives.values()],
                seed=sweep.seeds[0].value,
            )
            if point is None:
                log.info("no new point is found: the space is exhausted")
                self.sweep = replace(sweep, to_propose=0)
                return []
            try:
                count = len(sweep.trials)
                trials = [
                    make_trial(sweep, count + n, point, seed) for n, seed in enumerate(sweep.seeds)
                ]
                break
            except UserError as error:  # keys that do not go together
                log.warning("point %s is left out: %s", point, error)
                tried.append(TriedPoint(point, "failed"))
        else:
            raise UserError(f"{FAULTY} points in a row have faults; see above")
        for trial in trials:
            write_text(trial.run.config_file, to_yaml(trial.config))
            if trial.run.status()["state"] == "new":
                trial.run.set_status("submitted", code=str(sweep.code or ""))
        add_point(sweep.folder, point)
        log.info("point %d: %s", sweep.samples - sweep.to_propose + 1, trials[0].title)
        self.sweep = replace(
            sweep, trials=(*sweep.trials, *trials), to_propose=sweep.to_propose - 1
        )
        write_summary(self.sweep)
        return [trial for trial in trials if not trial.run.is_complete()]


def tried_points(sweep: Sweep) -> list[TriedPoint]:
    """Return what has become of the points that an algorithm has proposed, in order."""
    groups: list[tuple[Point, list[Run]]] = []
    for trial in sweep.trials:
        if not groups or groups[-1][0] != trial.point:
            groups.append((trial.point, []))
        groups[-1][1].append(trial.run)
    keys = [sweep.metric, *sweep.objectives]
    return [_tried(point, runs, keys) for point, runs in groups]


def _tried(point: Point, runs: Sequence[Run], keys: Sequence[str]) -> TriedPoint:
    if all(run.is_complete() for run in runs):
        told = [numbers_of(run) for run in runs]
        known = [[one[key] for one in told if key in one] for key in keys]
        if all(known):
            return TriedPoint(point, "complete", [statistics.fmean(values) for values in known])
        return TriedPoint(point, "failed")
    if any(run.status()["state"] == "failed" for run in runs):
        return TriedPoint(point, "failed")
    if any(was_ended_early(run) for run in runs):
        return TriedPoint(point, "ended early", reached=_reached(runs, keys[0]))
    return TriedPoint(point, "running")


def _reached(runs: Sequence[Run], metric: str) -> dict[int, float]:
    """Return the mean after each epoch that all runs have come to."""
    told = []
    for run in runs:
        lines = [numeric_leaves(line) for line in epoch_lines(run)]
        told.append({int(line["epoch"]): line[metric] for line in lines if metric in line})
    common = set(told[0]).intersection(*told[1:])
    return {epoch: statistics.fmean(one[epoch] for one in told) for epoch in sorted(common)}


def searcher(points: Points, shared: dict[str, Any]) -> Any:
    """Return Tune's view of the points; `shared` goes to every trial."""
    from ray.tune.search import Searcher

    class Runs(Searcher):
        def suggest(self, trial_id: str) -> Any:
            run = points.next_run()
            return Searcher.FINISHED if run is None else {"run": str(run.folder), **shared}

        def on_trial_complete(self, trial_id: str, **facts: Any) -> None:
            """Do nothing: what has become of a trial is in its folder."""

        def save(self, checkpoint_path: str) -> None:
            """Do nothing: there is nothing to be restored."""

        def restore(self, checkpoint_path: str) -> None:
            """Do nothing."""

    return Runs(metric=points.sweep.metric, mode=points.sweep.mode)


