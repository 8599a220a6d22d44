"""A sweep in a terminal: live table, log lines, final ranking, failures."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from harness.base.files import tail
from harness.base.mappings import is_number, lookup
from harness.base.reading import from_json
from harness.base.units import counted
from harness.cluster.states import ALIVE, DONE, TrialState
from harness.runs.run import Run
from harness.sweeps.reading import Sweep

COLOURS = {"missing": "dim", "queued": "cyan", "running": "blue", "stopped": "yellow",
           "died": "red", "failed": "red", "unreadable": "red", "ended early": "magenta",
           "complete": "green"}
BAD = ("failed", "died", "stopped", "unreadable")
FIRST_SHOWN = ("running", "unreadable", "failed", "died", "stopped", "queued", "missing", *DONE)
"""States in the order in which a live table of many trials shows them."""
trials = partial(counted, one="trial")  # 1 trial, 2 trials, ...
TAIL_BYTES = 65536  # how much of a metric log is read for its last lines
ERROR_LINES = 6


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


def live_table(sweep: Sweep, states: Sequence[TrialState], most: int = 40) -> Table:
    """Return the trials as they are now; of more than `most`, running and failed ones first."""
    shown = sorted(states, key=lambda one: FIRST_SHOWN.index(one.state))[:most]
    table = Table(
        *(Column(name, overflow="fold") for name in ("#", "trial", "run", "state", "host")),
        *(Column(name, justify="right")
          for name in ("attempts", "stage", "epoch", "loss", sweep.metric, "time")),
        "", title=f"{sweep.name}: {counts(states)}",
    )
    for one in sorted(shown, key=lambda one: one.trial.index):
        newest = progress(one.trial.run, sweep.metric)
        result = one.trial.run.result() if one.state == "complete" else None
        table.add_row(str(one.trial.index), escape(one.trial.title), one.trial.signature,
                      f"[{COLOURS[one.state]}]{one.state}[/]", escape(one.status.get("host", "")),
                      str(one.status.get("attempts") or ""), escape(str(newest.get("stage", ""))),
                      escape(str(newest.get("epoch", ""))), escape(number(newest.get("loss"))),
                      escape(fraction(lookup(result, sweep.metric) if result
                                      else newest.get("metric"))),
                      clock(elapsed(one)), escape(one.note))
    if len(shown) < len(states):
        table.caption = f"{len(states) - len(shown)} more"
    return table


def counts(states: Sequence[TrialState]) -> str:
    """Return how many trials are in which state."""
    each = [one.state for one in states]
    parts = [f"{each.count(state)} {state}" for state in COLOURS if state in each]
    return f"{trials(len(each))}: {', '.join(parts)}" if each else "no trial yet"


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


def final_table(sweep: Sweep, states: Sequence[TrialState], columns: Mapping[str, str]) -> Table:
    """Return the complete trials, best first; columns: title and result key of further numbers."""
    results = [(one, one.trial.run.result() or {}) for one in states if one.state == "complete"]
    results.sort(key=lambda pair: _rank(sweep, lookup(pair[1], sweep.metric)))
    keys = list(dict.fromkeys(key for one in states for key in one.trial.point))
    right = ("rank", *keys, "seed", sweep.metric, *columns, "time")
    selection = f": {sweep.selected_on} ({sweep.metric}, {sweep.mode})" if len(states) > 1 else ""
    table = Table(
        *(Column(name, justify="right") for name in right), Column("run", overflow="fold"),
        title=f"{sweep.name}{selection}",
    )
    for rank, (one, result) in enumerate(results, start=1):
        table.add_row(str(rank), *(escape(number(one.trial.point.get(key))) for key in keys),
                      str(one.trial.seed),
                      *(escape(fraction(lookup(result, key)))
                        for key in (sweep.metric, *columns.values())),
                      clock(elapsed(one)), escape(str(one.trial.run.folder)))
    return table


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
        labels = {"stage": "", "epoch": "epoch ", "loss": "loss "}
        parts += [f"{labels[key]}{number(newest[key])}" for key in labels if key in newest]
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
