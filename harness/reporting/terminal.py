"""A sweep in a terminal: live view, log lines, final ranking, failures. A trial takes one line."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from harness.base.mappings import is_number, lookup, short_names
from harness.base.units import counted
from harness.cluster.states import ALIVE, DONE, TrialState
from harness.reporting.columns import Column, one_line_table
from harness.reporting.overview import (
    Newest,
    Overview,
    elapsed,
    epochs_in,
    progress,
    stage_and_epoch,
)
from harness.sweeps.reading import Sweep
from harness.training.progress import in_words

COLOURS = {"missing": "dim", "queued": "cyan", "running": "blue", "stopped": "yellow",
           "died": "red", "failed": "red", "unreadable": "red", "ended early": "magenta",
           "complete": "green"}
BAD = ("failed", "died", "stopped", "unreadable")
FIRST_SHOWN = ("running", "unreadable", "failed", "died", "stopped", "queued", "missing", *DONE)
"""States in the order in which tables show them."""
trials = partial(counted, one="trial")  # 1 trial, 2 trials, ...
ROWS = 50
"""Of more trials, tables show only the first; the counts include all."""
ERROR_LINES = 6
LEAST_TITLE = 32
"""The fewest characters that titles are cut to, as long as a column can be left out."""
BAR_WIDTH = 30


def live_view(
    sweep: Sweep, states: Sequence[TrialState], seen: Overview, most: int, width: int
) -> RenderableType:
    """Return the sweep as it is now: the counts, a bar, the best trial, and `most` trials."""
    bar = Table.grid(padding=(0, 1))
    bar.add_row(ProgressBar(total=1.0, completed=seen.done, width=BAR_WIDTH), done_and_left(seen))
    best = Text(best_line(sweep, seen), no_wrap=True, overflow="ellipsis")
    return Group(Text(f"{sweep.name}: {counts(states)}"), bar, *([best] if best else []), "",
                 *trial_rows(sweep, states, most=most, width=width, newest=seen.newest))


def done_and_left(seen: Overview) -> str:
    """Return how many trials have ended, and an estimate of the time left, if there is one."""
    left = f", about {in_words(seen.left_s)} left" if seen.left_s else ""
    return f"{seen.ended} of {trials(seen.total)} ended{left}"


def best_line(sweep: Sweep, seen: Overview) -> str:
    """Return the best metric so far and its trial; "" while no trial is complete."""
    if seen.best is None:
        return ""
    one, value = seen.best
    return f"best {sweep.metric} {fraction(value)}: trial {one.trial.index} ({one.trial.title})"


def trial_rows(
    sweep: Sweep, states: Sequence[TrialState], *, most: int | None, width: int,
    newest: Mapping[str, Newest] | None = None,
) -> list[RenderableType]:
    """Return a table with a line for each trial, running and failed ones first, and a line on those
    beyond `most` (None: show all). newest: the progress of trials for which it is known."""
    every = sorted(states, key=lambda one: FIRST_SHOWN.index(one.state))
    shown, known = every[:most], newest or {}
    logs = [known.get(one.trial.signature) or progress(one.trial.run, sweep.metric)
            for one in shown]
    results = [one.trial.run.result() if one.state == "complete" else None for one in shown]
    places = [_place(sweep, one, log) for one, log in zip(shown, logs, strict=True)]
    uncut = [len(place) for one, place in zip(shown, places, strict=True)
             if one.state == "running"]
    metrics = [lookup(result, sweep.metric) if result else log.get("metric")
               for result, log in zip(results, logs, strict=True)]
    table = one_line_table([
        Column("#", [str(one.trial.index) for one in shown], 0, is_number=True),
        Column("trial", _titles(shown, states), 3, least=LEAST_TITLE),
        Column("state", [Text(one.state, COLOURS[one.state]) for one in shown], 1),
        Column("progress or cause", places, 2, least=max([width // 3, *uncut])),
        Column(sweep.metric.split(".")[-1], [fraction(value) for value in metrics], 4,
               is_number=True),
        Column("time", [clock(elapsed(one)) for one in shown], 5, is_number=True),
        Column("loss", [number(log.get("loss")) for log in logs], 6, is_number=True),
        Column("host", [one.status.get("host", "") for one in shown], 7),
        Column("run", [one.trial.signature for one in shown], 8),
        Column("attempts", [str(one.status.get("attempts") or "") for one in shown], 9,
               is_number=True),
    ], width)
    left = every[len(shown):]
    rest = [Text(f"and {len(left)} more: {_by_state(left)}")] if left else []
    return [table, *rest] if shown else []


def _titles(shown: Sequence[TrialState], states: Sequence[TrialState]) -> list[str]:
    """Return the trials' titles without the words that all trials of the sweep share."""
    words = [one.trial.title.split(" ") for one in states]
    if len(states) == 1 or len(set(map(len, words))) > 1:  # conditional keys
        return [one.trial.title for one in shown]
    telling = [len(set(column)) > 1 for column in zip(*words, strict=True)]
    return [" ".join(compress(one.trial.title.split(" "), telling)) for one in shown]


def _place(sweep: Sweep, one: TrialState, newest: Newest) -> str:
    """Return where a running or stopped trial is, why it waits, or why it ended."""
    is_on = one.state in (*ALIVE, "stopped")
    at = _epoch(sweep, one, newest) if is_on else ""
    if one.state == "running":
        at = at or "starting"
    parts = [at, " ".join(one.note.split())]
    return ", ".join(filter(None, parts))


def _epoch(sweep: Sweep, one: TrialState, newest: Newest) -> str:
    """Return the stage and epoch that a trial has reached, such as `work, epoch 3 of 60`."""
    epochs = epochs_in(one, sweep)
    if place := stage_and_epoch(newest, epochs):
        return f"{place[0]}, epoch {place[1]} of {epochs[place[0]]}"
    labels = {"stage": "", "epoch": "epoch "}
    return ", ".join(f"{labels[key]}{number(newest[key])}" for key in labels if key in newest)


def _by_state(states: Iterable[TrialState]) -> str:
    found = Counter[str](one.state for one in states)
    return ", ".join(f"{found[state]} {state}" for state in COLOURS if state in found)


def counts(states: Sequence[TrialState]) -> str:
    """Return how many trials are in which state."""
    return f"{trials(len(states))}: {_by_state(states)}" if states else "no trial yet"


def final_table(
    sweep: Sweep, states: Sequence[TrialState], columns: Mapping[str, str], *, width: int,
    most: int | None = ROWS,
) -> list[RenderableType]:
    """Return a title, a table of complete trials, best first, and a line on those beyond `most`
    (None: show all); nothing without complete trials. columns: title and result key of further
    numbers."""
    results = [(one, one.trial.run.result() or {}) for one in states if one.state == "complete"]
    results.sort(key=lambda pair: _rank(sweep, lookup(pair[1], sweep.metric)))
    shown = results[:most]
    names = short_names(dict.fromkeys(key for one in states for key in one.trial.point))
    metrics = {sweep.metric: sweep.metric, **columns}
    parts = [
        Column("rank", [str(rank) for rank in range(1, len(shown) + 1)], 0, is_number=True),
        *(Column(name, [number(one.trial.point.get(key)) for one, _ in shown], 2 + at,
                 is_number=True)
          for at, (key, name) in enumerate(names.items())),
        Column("seed", [str(one.trial.seed) for one, _ in shown], 300, is_number=True),
        *(Column(title, [fraction(lookup(result, key)) for _, result in shown],
                 200 + at if at else 1, is_number=True)
          for at, (title, key) in enumerate(metrics.items())),
        Column("time", [clock(elapsed(one)) for one, _ in shown], 302, is_number=True),
        Column("run", [one.trial.signature for one, _ in shown], 301),
    ]
    selection = f": {sweep.selected_on} ({sweep.metric}, {sweep.mode})" if len(states) > 1 else ""
    left = len(results) - len(shown)
    rest = [Text(f"and {left} more")] if left else []
    return [Text(f"{sweep.name}{selection}"), one_line_table(parts, width), *rest] if shown else []


def _rank(sweep: Sweep, value: Any) -> float:
    if not is_number(value):
        return math.inf
    return -value if sweep.mode == "max" else value


def troubles(states: Sequence[TrialState]) -> Iterator[str]:
    """Yield the error and the log file, if there is one, of each trial that failed, died or
    stopped."""
    for one in states:
        if one.state in BAD:
            yield f"trial {one.trial.index} ({one.trial.title}) {one.state}: {one.note}"
            yield from (f"    {line}" for line in one.status.get("lines", [])[-ERROR_LINES:])
            log = Path(one.status.get("log", one.trial.run.log_file))
            yield from [f"    log: {log}"] if log.exists() else []  # some jobs end before Python


def trial_line(sweep: Sweep, one: TrialState) -> str:
    """Return one plain line on a trial's state and progress."""
    newest = progress(one.trial.run, sweep.metric)
    parts = [f"trial {one.trial.index} ({one.trial.title}): {one.state}"]
    if one.state in (*ALIVE, "stopped"):
        parts += filter(None, [_epoch(sweep, one, newest)])
        parts += [f"loss {number(newest['loss'])}"] if "loss" in newest else []
    metric = newest.get("metric")
    if one.state == "complete":
        metric = lookup(one.trial.run.result(), sweep.metric)
    parts += [f"{sweep.metric} {fraction(metric)}"] if metric is not None else []
    if one.state == "running" and "host" in one.status:
        parts.append(f"on {one.status['host']}")
    return " ".join([*parts, f"({one.note})"] if one.note else parts)


def say(console: Console, *lines: str) -> None:
    """Print lines that are not empty, without markup and wrapping."""
    for line in filter(None, lines):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def wide(console: Console) -> Console:
    """Return a console that does not squeeze tables when the output is no terminal."""
    return console if console.is_terminal else Console(file=console.file, width=200)


def number(value: Any) -> str:
    """Return a number in four digits, any other value as it is, "" for None."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def fraction(value: Any) -> str:
    """Return a metric in four decimals, any other value as `number` does."""
    return f"{value:.4f}" if is_number(value) else number(value)


def clock(seconds: float | None) -> str:
    """Return seconds as 1:02:03 or 2:03."""
    if seconds is None:
        return ""
    left, second = divmod(round(seconds), 60)
    hour, minute = divmod(left, 60)
    return f"{hour}:{minute:02d}:{second:02d}" if hour else f"{minute}:{second:02d}"
