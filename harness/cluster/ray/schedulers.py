"""Tune's schedulers on our runs: decisions depend on the logged metrics, not on their timing.

Time is our `epoch`, because Tune's own count restarts with a trial. When a driver was killed, its
successor first replays all logged epochs to a new scheduler, which then decides as the old one.
Only the driver of a search imports this file.
"""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ray.tune import schedulers as tune

from harness.base.mappings import numeric_leaves
from harness.cluster.ray.search_notes import end_early, end_paused, judged, note_judged
from harness.config.build import build
from harness.config.fields import changeable_keys
from harness.config.recipes import read_recipe
from harness.config.values import value_at
from harness.runs import takeovers
from harness.runs.run import Run, epoch_lines
from harness.sweeps import population
from harness.sweeps.keys import Asha, HyperBand, Median, Pbt
from harness.sweeps.reading import Sweep

log = logging.getLogger(__name__)

NO_END = 10**9
"""ASHA's last rung: it never limits a trial's length."""
NEVER = float("inf")
CONTINUE, PAUSE, STOP = "CONTINUE", "PAUSE", "STOP"
"""Tune's decisions."""


def make_scheduler(sweep: Sweep) -> Any:
    """Return Tune's scheduler for a sweep; its `replay` shows it what was logged before."""
    asked = sweep.scheduler
    common = {"time_attr": "epoch", "metric": sweep.metric, "mode": sweep.mode}
    match asked:
        case None:
            return EarlyStopping("", {})
        case Asha():
            metrics = [sweep.metric, *([asked.early] if asked.early else [])]
            return EarlyStopping("ASHA", {
                metric: tune.ASHAScheduler(**{**common, "metric": metric}, max_t=NO_END,
                                           grace_period=asked.grace,
                                           reduction_factor=asked.reduction)
                for metric in metrics
            })
        case Median():
            rule = tune.MedianStoppingRule(
                **common, grace_period=asked.grace, min_samples_required=asked.trials,
                min_time_slice=NEVER,  # otherwise it pauses trials until others catch up
                hard_stop=False,  # otherwise it accepts no more results of a trial that it stops
            )
            return EarlyStopping("median stopping", {sweep.metric: rule})
        case Pbt():
            return Population(sweep, asked)
        case HyperBand():
            return Bands(
                **common, max_t=asked.epochs, reduction_factor=asked.reduction,
                stop_last_trials=False,  # the last ones train to their end
            )
    raise AssertionError(f"unreachable: {asked}")


class StableTrial(NamedTuple):
    """A run as ASHA and median stopping see it: with a name that outlives the driver."""

    trial_id: str


class EarlyStopping(tune.FIFOScheduler):
    """Ends trials as ASHA or median stopping decide. rules: by metric; an epoch goes to the first
    rule whose metric it has."""

    def __init__(self, name: str, rules: Mapping[str, Any]) -> None:
        super().__init__()
        self.name, self.rules = name, rules
        self.trials: dict[str, StableTrial] = {}

    def replay(self, finished: Iterable[Run], due: Iterable[Run]) -> None:
        """Show what the runs logged before this scheduler existed.

        The order differs from the original one, so decisions made now do not count. Of runs that
        are due only the judged epochs are shown, because Tune will report the others.
        """
        for run, is_open in ((run, runs is due) for runs in (finished, due) for run in runs):
            seen = judged(run) if is_open else None
            for line in epoch_lines(run):
                if seen is None or (line.get("stage"), line["epoch"]) in seen:
                    self._show(run.signature, numeric_leaves(line))
        for rule in self.rules.values():
            if isinstance(rule, tune.MedianStoppingRule):
                rule._stopped_trials.clear()

    def _show(self, name: str, result: dict[str, Any]) -> str:
        if name not in self.trials:
            self.trials[name] = StableTrial(name)
            for rule in self.rules.values():
                rule.on_trial_add(None, self.trials[name])
        for metric, rule in self.rules.items():
            if metric in result:
                return str(rule.on_trial_result(None, self.trials[name], result))
        return CONTINUE

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        run = Run(Path(trial.config["run"]))
        if result.get("done"):
            return CONTINUE
        decision = self._show(run.signature, result)
        if decision in (STOP, PAUSE):  # median stopping pauses, see `make_scheduler`
            decision = STOP
            log.info("%s: ended at epoch %s", trial, result["epoch"])
            end_early(run, by=self.name, epoch=result["epoch"])
        note_judged(run, result.get("stage"), result["epoch"])
        return decision


class Bands(tune.HyperBandScheduler):
    """HyperBand over the epochs that have the metric; others are ignored."""

    def replay(self, finished: Iterable[Run], due: Iterable[Run]) -> None:
        """Do nothing: Tune starts all trials again, and each reports all its epochs."""

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if self._metric not in result or "epoch" not in result:
            return CONTINUE
        decision = str(super().on_trial_result(controller, trial, result))
        if decision == STOP:
            log.info("%s: ended at epoch %s", trial, result["epoch"])
            end_early(Run(Path(trial.config["run"])), by="HyperBand", epoch=result["epoch"])
        return decision

    def on_trial_remove(self, controller: Any, trial: Any) -> None:
        super().on_trial_remove(controller, trial)
        run = Run(Path(trial.config["run"]))
        if not run.is_complete():
            epoch = epoch_lines(run)[-1]["epoch"]
            log.info("%s: ended at epoch %s", trial, epoch)
            end_paused(run, by="HyperBand", epoch=epoch)


class Population(tune.FIFOScheduler):
    """Lets bad runs continue from good ones; see `population` and `takeovers`."""

    def __init__(self, sweep: Sweep, options: Pbt) -> None:
        super().__init__()
        self.sweep, self.options = sweep, options
        self.changeable = changeable_keys(sweep.base.schema)
        self.runs: dict[str, Run] = {}

    def replay(self, finished: Iterable[Run], due: Iterable[Run]) -> None:
        """Store the runs; their scores are kept with their exported checkpoints."""
        self.runs |= {run.signature: run for run in (*finished, *due)}

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        run, epoch = Run(Path(trial.config["run"])), result.get("epoch")
        self.runs[run.signature] = run
        if epoch is None or result.get("done"):
            return CONTINUE
        if self.sweep.metric in result and epoch % self.options.every == 0:
            self._compare(run, int(epoch))
        note_judged(run, result.get("stage"), epoch)
        return CONTINUE

    def _compare(self, run: Run, epoch: int) -> None:
        """Plan that a run among the worst continues from one of the best."""
        scores = {name: score for name, one in self.runs.items()
                  if (score := takeovers.exported_score(one, epoch)) is not None}
        source = population.source_for(run.signature, scores, share=self.options.share,
                                       mode=self.sweep.mode, epoch=epoch,
                                       seed=self.sweep.space.seed)
        if source is None:
            return
        settings = population.explore(
            self.sweep.space.dimensions, self._settings(self.runs[source], epoch), self.changeable,
            name=run.signature, epoch=epoch, factor=self.options.factor,
            resample=self.options.resample, seed=self.sweep.space.seed,
        )
        takeovers.plan(run, of=self.runs[source], epoch=epoch, settings=settings)
        log.info("%s: continues from %s after epoch %d with %s", run.signature, source, epoch,
                 settings)

    def _settings(self, run: Run, epoch: int) -> dict[str, Any]:
        """Return the values of the searched keys with which a run trained up to an epoch."""
        schema = self.sweep.base.schema
        config = build(schema, [
            *read_recipe(run.config_file, schema), *takeovers.exported_settings(run, epoch)
        ])
        return {d.key: value_at(config, d.key) for d in self.sweep.space.dimensions}
