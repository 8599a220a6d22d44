"""How a sweep looks: the live table, plain lines for a log, the final ranking, what went wrong."""

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.base.mappings import lookup
from harness.base.units import counted
from harness.cluster.states import ALIVE, DONE, TrialState
from harness.runs.run import Run
from harness.sweeps.reading import Sweep

COLOURS = {
    "missing": "dim", "queued": "cyan", "running": "blue", "stopped": "yellow",
    "died": "red", "failed": "red", "ended early": "magenta", "complete": "green",
}
BAD = ("failed", "died", "stopped")
TAIL_BYTES = 65536
"""How much of a metric log is read for its last lines."""


def progress(run: Run, metric: str) -> dict[str, Any]:
    """Return the newest stage, epoch, loss and metric of a run, from the end of its metric log."""
    found: dict[str, Any] = {}
    for entry in _last_entries(run):
        for key in ("stage", "epoch", "loss"):
            if key in entry:
                found.setdefault(key, entry[key])
        value = lookup(entry, metric)
        if value is not None:
            found.setdefault("metric", value)
        if {"stage", "epoch", "loss", "metric"} <= found.keys():
            break
    return found


def _last_entries(run: Run) -> Iterator[dict[str, Any]]:
    """Yield the last entries of a metric log, newest first, without reading all of a long one."""
    try:
        with run.metrics_file.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return
    lines = text.split("\n")[:-1]  # what follows the last newline is still being written
    for line in reversed(lines if size <= TAIL_BYTES else lines[1:]):
        yield json.loads(line)


def live_table(sweep: Sweep, states: Sequence[TrialState], *, most: int = 40) -> Table:
    """Return the trials as they are now; of many, those on their way and those in trouble."""
    shown = list(states)
    if len(states) > most:
        order = ["running", "failed", "died", "stopped", "queued", "missing", *DONE]
        shown = sorted(states, key=lambda one: order.index(one.state))[:most]
        shown.sort(key=lambda one: one.trial.index)
    table = Table(title=f"{sweep.name}: {counts(states)}")
    for name in ("#", "trial", "run", "state", "host"):
        table.add_column(name, overflow="fold")
    for name in ("attempts", "stage", "epoch", "loss", sweep.metric, "time"):
        table.add_column(name, justify="right")
    table.add_column("")
    for one in shown:
        table.add_row(*_row(sweep, one))
    if len(shown) < len(states):
        table.caption = f"{len(states) - len(shown)} more"
    return table


def _row(sweep: Sweep, one: TrialState) -> list[str]:
    newest = progress(one.trial.run, sweep.metric)
    result = one.trial.run.result() if one.state == "complete" else None
    metric = lookup(result, sweep.metric) if result else newest.get("metric")
    return [
        str(one.trial.index), escape(one.trial.title), one.trial.signature,
        f"[{COLOURS[one.state]}]{one.state}[/]", escape(one.status.get("host", "")),
        str(one.status.get("attempts") or ""), str(newest.get("stage", "")),
        str(newest.get("epoch", "")), number(newest.get("loss")), fraction(metric),
        clock(elapsed(one)), escape(one.note),
    ]


def counts(states: Sequence[TrialState]) -> str:
    """Say how many trials are in which state."""
    found = [one.state for one in states]
    said = [f"{found.count(state)} {state}" for state in COLOURS if state in found]
    return f"{trials(len(states))}: {', '.join(said)}" if said else "no trial yet"


def trials(count: int) -> str:
    """Return `1 trial`, `2 trials`, ..."""
    return counted(count, "trial")


def elapsed(one: TrialState) -> float | None:
    """Return how long the trial ran (this attempt), in seconds."""
    if one.state == "complete":
        # the status is written a moment after the result
        return one.status.get("seconds") or (one.trial.run.result() or {}).get("seconds")
    started = one.status.get("started")
    if started is None:
        return None
    end = time.time() if one.state in ALIVE else one.status.get("time", started)
    return float(end - started)


def final_table(sweep: Sweep, states: Sequence[TrialState], columns: Mapping[str, str]) -> Table:
    """Return the complete trials, best first by the sweep's metric.

    columns: the further numbers to show, by title, as dotted keys of a result.
    """
    ranked = sorted(
        (one for one in states if one.state == "complete"), key=lambda one: _rank(sweep, one)
    )
    selection = f": {sweep.selected_on} ({sweep.metric}, {sweep.mode})" if len(states) > 1 else ""
    table = Table(title=f"{sweep.name}{selection}")
    keys = list(dict.fromkeys(key for one in states for key in one.trial.point))
    for name in ("rank", *keys, "seed"):
        table.add_column(name, justify="right")
    for name in (sweep.metric, *columns, "time"):
        table.add_column(name, justify="right")
    table.add_column("run", overflow="fold")
    for place, one in enumerate(ranked, start=1):
        result = one.trial.run.result()
        table.add_row(
            str(place), *(escape(number(one.trial.point.get(key))) for key in keys),
            str(one.trial.seed),
            fraction(lookup(result, sweep.metric)),
            *(fraction(lookup(result, key)) for key in columns.values()),
            clock(elapsed(one)), escape(str(one.trial.run.folder)),
        )
    return table


def _rank(sweep: Sweep, one: TrialState) -> tuple[bool, float]:
    value = lookup(one.trial.run.result(), sweep.metric)
    if not isinstance(value, int | float) or math.isnan(value):
        return (True, 0.0)
    return (False, -value if sweep.mode == "max" else value)


def troubles(states: Sequence[TrialState]) -> Iterator[str]:
    """Say of each trial that ended badly what its error was and where its log is."""
    for one in states:
        if one.state in BAD:
            yield f"trial {one.trial.index} ({one.trial.title}) {one.state}: {one.note}"
            yield from (f"    {line}" for line in one.status.get("lines", [])[-6:])
            yield f"    log: {one.status.get('log', one.trial.run.log_file)}"


def line(sweep: Sweep, one: TrialState) -> str:
    """Say in one plain line where a trial is."""
    newest = progress(one.trial.run, sweep.metric)
    words = [f"trial {one.trial.index} ({one.trial.title}): {one.state}"]
    if one.state in ALIVE or one.state == "stopped":
        words += [str(newest["stage"])] if "stage" in newest else []
        words += [f"epoch {newest['epoch']}"] if "epoch" in newest else []
        words += [f"loss {number(newest['loss'])}"] if "loss" in newest else []
    metric = newest.get("metric")
    if one.state == "complete":
        metric = lookup(one.trial.run.result(), sweep.metric)
    words += [f"{sweep.metric} {fraction(metric)}"] if metric is not None else []
    if one.state == "running" and "host" in one.status:
        words += [f"on {one.status['host']}"]
    words += [f"({one.note})"] if one.note else []
    return " ".join(words)


def wide(console: Console) -> Console:
    """Return a console that does not squeeze tables when the output is no terminal."""
    return console if console.is_terminal else Console(file=console.file, width=200)


def number(value: Any) -> str:
    """Return a number in four digits, any other value as it is, nothing for None."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def fraction(value: Any) -> str:
    """Return a metric to four places, nothing for None."""
    return "" if value is None else f"{value:.4f}"


def clock(seconds: float | None) -> str:
    """Return seconds as 1:02:03 or 2:03."""
    if seconds is None:
        return ""
    left, second = divmod(round(seconds), 60)
    hour, minute = divmod(left, 60)
    return f"{hour}:{minute:02d}:{second:02d}" if hour else f"{minute}:{second:02d}"
