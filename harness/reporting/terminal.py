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
from harness.cluster.states import ALIVE, DONE, View
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


def live_table(sweep: Sweep, views: Sequence[View], *, most: int = 40) -> Table:
    """Return the trials as they are now; of many, those on their way and those in trouble."""
    shown = list(views)
    if len(views) > most:
        order = ["running", "failed", "died", "stopped", "queued", "missing", *DONE]
        shown = sorted(views, key=lambda v: order.index(v.state))[:most]
        shown.sort(key=lambda v: v.trial.index)
    table = Table(title=f"{sweep.name}: {counts(views)}")
    for name in ("#", "trial", "run", "state", "host"):
        table.add_column(name, overflow="fold")
    for name in ("attempts", "stage", "epoch", "loss", sweep.metric, "time"):
        table.add_column(name, justify="right")
    table.add_column("")
    for view in shown:
        table.add_row(*_row(sweep, view))
    if len(shown) < len(views):
        table.caption = f"{len(views) - len(shown)} more"
    return table


def _row(sweep: Sweep, view: View) -> list[str]:
    newest = progress(view.trial.run, sweep.metric)
    result = view.trial.run.result() if view.state == "complete" else None
    metric = lookup(result, sweep.metric) if result else newest.get("metric")
    return [
        str(view.trial.index), escape(view.trial.title), view.trial.signature,
        f"[{COLOURS[view.state]}]{view.state}[/]", escape(view.status.get("host", "")),
        str(view.status.get("attempts") or ""), str(newest.get("stage", "")),
        str(newest.get("epoch", "")), number(newest.get("loss")), fraction(metric),
        clock(elapsed(view)), escape(view.note),
    ]


def counts(views: Sequence[View]) -> str:
    """Say how many trials are in which state."""
    states = [view.state for view in views]
    said = [f"{states.count(state)} {state}" for state in COLOURS if state in states]
    return f"{trials(len(views))}: {', '.join(said)}" if said else "no trial yet"


def trials(count: int) -> str:
    """Return `1 trial`, `2 trials`, ..."""
    return counted(count, "trial")


def elapsed(view: View) -> float | None:
    """Return how long the trial ran (this attempt), in seconds."""
    if view.state == "complete":
        # the status is written a moment after the result
        return view.status.get("seconds") or (view.trial.run.result() or {}).get("seconds")
    started = view.status.get("started")
    if started is None:
        return None
    end = time.time() if view.state in ALIVE else view.status.get("time", started)
    return float(end - started)


def final_table(sweep: Sweep, views: Sequence[View], columns: Mapping[str, str]) -> Table:
    """Return the complete trials, best first by the sweep's metric.

    columns: the further numbers to show, by title, as dotted keys of a result.
    """
    ranked = sorted(
        (view for view in views if view.state == "complete"), key=lambda v: _rank(sweep, v)
    )
    selection = f": {sweep.selected_on} ({sweep.metric}, {sweep.mode})" if len(views) > 1 else ""
    table = Table(title=f"{sweep.name}{selection}")
    keys = list(dict.fromkeys(key for view in views for key in view.trial.point))
    for name in ("rank", *keys, "seed"):
        table.add_column(name, justify="right")
    for name in (sweep.metric, *columns, "time"):
        table.add_column(name, justify="right")
    table.add_column("run", overflow="fold")
    for place, view in enumerate(ranked, start=1):
        result = view.trial.run.result()
        table.add_row(
            str(place), *(escape(number(view.trial.point.get(key))) for key in keys),
            str(view.trial.seed),
            fraction(lookup(result, sweep.metric)),
            *(fraction(lookup(result, key)) for key in columns.values()),
            clock(elapsed(view)), escape(str(view.trial.run.folder)),
        )
    return table


def _rank(sweep: Sweep, view: View) -> tuple[bool, float]:
    value = lookup(view.trial.run.result(), sweep.metric)
    if not isinstance(value, int | float) or math.isnan(value):
        return (True, 0.0)
    return (False, -value if sweep.mode == "max" else value)


def troubles(views: Sequence[View]) -> Iterator[str]:
    """Say of each trial that ended badly what its error was and where its log is."""
    for view in views:
        if view.state in BAD:
            yield f"trial {view.trial.index} ({view.trial.title}) {view.state}: {view.note}"
            yield from (f"    {line}" for line in view.status.get("lines", [])[-6:])
            yield f"    log: {view.status.get('log', view.trial.run.log_file)}"


def line(sweep: Sweep, view: View) -> str:
    """Say in one plain line where a trial is."""
    newest = progress(view.trial.run, sweep.metric)
    words = [f"trial {view.trial.index} ({view.trial.title}): {view.state}"]
    if view.state in ALIVE or view.state == "stopped":
        words += [str(newest["stage"])] if "stage" in newest else []
        words += [f"epoch {newest['epoch']}"] if "epoch" in newest else []
        words += [f"loss {number(newest['loss'])}"] if "loss" in newest else []
    metric = newest.get("metric")
    if view.state == "complete":
        metric = lookup(view.trial.run.result(), sweep.metric)
    words += [f"{sweep.metric} {fraction(metric)}"] if metric is not None else []
    if view.state == "running" and "host" in view.status:
        words += [f"on {view.status['host']}"]
    words += [f"({view.note})"] if view.note else []
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
