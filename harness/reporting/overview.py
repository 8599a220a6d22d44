"""A sweep in three lines: how many trials are in which state, the time left, the best so far."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

from harness.base.files import tail
from harness.base.mappings import is_number, lookup
from harness.base.reading import from_json
from harness.cluster.states import ALIVE, DONE, TrialState
from harness.runs.run import Run
from harness.sweeps.reading import Sweep

TAIL_BYTES = 65536  # how much of a metric log is read for its last lines
Newest = Mapping[str, Any]
"""What `progress` returns."""


def progress(run: Run, metric: str) -> dict[str, Any]:
    """Return the newest stage, epoch, loss and metric of a run, from the end of its metric log."""
    newest: dict[str, Any] = {}
    # what follows the last newline is still being written
    for text in reversed(tail(run.metrics_file, TAIL_BYTES).split("\n")[:-1]):
        try:
            entry = from_json(text)
        except ValueError:  # the first line of the tail, cut; or NULs, on a network file system
            continue
        if not isinstance(entry, dict):
            continue
        value = lookup(entry, metric)
        values = {key: entry[key] for key in ("stage", "epoch", "loss") if key in entry}
        newest = values | ({} if value is None else {"metric": value}) | newest
        if len(newest) == 4:
            break
    return newest


def epochs_in(one: TrialState, sweep: Sweep) -> dict[str, int]:
    """Return the number of epochs of each stage of a trial, in order, where that is known."""
    stages, config = sweep.experiment.stages, one.trial.config
    return {name: reduce(getattr, key.split("."), config) for name, key in stages.items()}


def stage_and_epoch(newest: Newest, epochs: Mapping[str, int]) -> tuple[str, int] | None:
    """Return where a trial is; None where its log does not say it, or something odd."""
    stage, epoch = newest.get("stage"), newest.get("epoch")
    if isinstance(stage, str) and stage in epochs and isinstance(epoch, int):
        return stage, epoch
    return None


def elapsed(one: TrialState) -> float | None:
    """Return how long the trial's last attempt ran, in seconds."""
    if one.state == "complete":
        # the status is written a moment after the result
        seconds = one.status.get("seconds") or (one.trial.run.result() or {}).get("seconds")
        return seconds if is_number(seconds) else None
    started = one.status.get("started")
    if started is None:
        return None
    end = time.time() if one.state in ALIVE else one.status.get("time", started)
    return float(end - started)


@dataclass(frozen=True)
class Overview:
    """A sweep at one moment."""

    total: int
    """Trials, with those that an algorithm still has to propose."""
    ended: int
    done: float
    """Share of the sweep that is over, 0 to 1; running trials count by their epochs."""
    left_s: float | None
    """Estimate of the time that is left; None: there is nothing yet to estimate it from."""
    best: tuple[TrialState, float] | None
    """The best complete trial and its metric."""
    newest: Mapping[str, Newest]
    """The progress of each running trial, by signature."""


class Watch:
    """What was seen of a sweep since it is followed: each result is read once."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep
        self._metrics: dict[str, Any] = {}
        self._seconds: dict[str, float] = {}
        self._paces: dict[str, _Pace] = {}
        self._most_running = 0

    def look(self, states: Sequence[TrialState]) -> Overview:
        """Return the sweep as it is now."""
        running = [one for one in states if one.state == "running"]
        newest = {one.trial.signature: progress(one.trial.run, self._sweep.metric)
                  for one in running}
        self._most_running = max(self._most_running, len(running))
        ended = sum(one.state not in (*ALIVE, "missing") for one in states)
        proposed = len(self._sweep.trials) + self._sweep.to_propose * len(self._sweep.seeds)
        total = max(len(states), proposed) if self._sweep.first is None else len(states)
        share = sum(self._share(one, newest[one.trial.signature]) for one in running)
        best = self._best(states)
        return Overview(total, ended, min(1.0, (ended + share) / max(total, 1)),
                        self._left(running, newest, total - ended - len(running)), best, newest)

    def _best(self, states: Sequence[TrialState]) -> tuple[TrialState, float] | None:
        for one in states:
            name = one.trial.signature
            if one.state in DONE and name not in self._seconds and (spent := elapsed(one)):
                self._seconds[name] = spent
            if one.state == "complete" and name not in self._metrics:
                self._metrics[name] = lookup(one.trial.run.result(), self._sweep.metric)
        ranked = [(one, self._metrics[one.trial.signature]) for one in states
                  if is_number(self._metrics.get(one.trial.signature))]
        choose = max if self._sweep.mode == "max" else min
        return choose(ranked, key=lambda pair: pair[1]) if ranked else None

    def _share(self, one: TrialState, newest: Newest) -> float:
        """Return the share of a trial's epochs that it has reached."""
        epochs = epochs_in(one, self._sweep)
        if not (place := stage_and_epoch(newest, epochs)):
            return 0.0
        before = list(epochs.values())[: list(epochs).index(place[0])]
        reached = sum(before) + max(0, min(place[1], epochs[place[0]]))
        return reached / max(1, sum(epochs.values()))

    def _left(
        self, running: Sequence[TrialState], newest: Mapping[str, Newest], waiting: int
    ) -> float | None:
        """Return the seconds left, if as many trials as so far run at a time."""
        mean = sum(self._seconds.values()) / len(self._seconds) if self._seconds else None
        lefts = [self._left_of(one, newest[one.trial.signature], mean) for one in running]
        known = [left for left in lefts if left is not None]
        if not known or len(known) < len(lefts):
            return None
        if mean is None:
            spent = [(elapsed(one) or 0.0) + left for one, left in zip(running, known, strict=True)]
            mean = sum(spent) / len(spent)
        at_a_time = min(self._most_running, len(running) + waiting)
        return max(*known, (sum(known) + waiting * mean) / at_a_time) or None

    def _left_of(self, one: TrialState, newest: Newest, mean: float | None) -> float | None:
        """Return the seconds that a running trial still takes: by its pace in the last stage, else
        as long as the finished ones took."""
        epochs = epochs_in(one, self._sweep)
        place = stage_and_epoch(newest, epochs)
        if place and place[0] == list(epochs)[-1]:
            pace = self._paces.setdefault(one.trial.signature, _Pace())
            left = pace.left(place[1], epochs[place[0]])
            if left is not None:
                return left
        spent = elapsed(one)
        return None if mean is None or spent is None else max(0.0, mean - spent)


class _Pace:
    """Seconds per epoch, from the times at which a follower saw new ones."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, int]] = []

    def left(self, epoch: int, of: int) -> float | None:
        """Return the seconds to the last epoch; None before two epochs were seen to begin."""
        if not self._seen or epoch != self._seen[-1][1]:
            self._seen.append((time.monotonic(), epoch))
        if len(self._seen) < 3:  # nobody knows since when the first had been there
            return None
        (first, start), (last, now) = self._seen[1], self._seen[-1]
        if now <= start:  # begun again
            self._seen = self._seen[-1:]
            return None
        pace = (last - first) / (now - start)
        return max(0.0, pace * (of - epoch) - (time.monotonic() - last))
