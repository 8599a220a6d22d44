"""Runs and sweeps in a terminal of any width, and a sweep's state as JSON."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Column, Table

from harness.base.mappings import lookup
from harness.base.units import counted
from harness.cluster.states import TrialState
from harness.listing.entries import Entry, age, in_bytes
from harness.reporting.terminal import COLOURS, fraction, progress
from harness.sweeps.reading import Sweep

MOST = 100
"""Of more runs, only the newest are shown; counts include all."""
DEAD = ("interrupted", "unreadable", "failed")
"""States of runs that need somebody: marked, and explained below the table."""
WHOLE = 36
"""Names of up to so many letters stay in one line, at the cost of the notes."""
MOST_TROUBLES = 10
FACTS = ("attempts", "host", "started", "time", "error")
"""What JSON has of a trial's status."""


def listing(entries: Sequence[Entry], *, every: bool = False) -> Iterator[RenderableType | str]:
    """Yield what a terminal shows: a table of sweeps, one of runs (every: all of them, else the
    newest), and lines on those that need somebody."""
    sweeps = [one for one in entries if one.kind == "sweep"]
    runs = [one for one in entries if one.kind == "run"]
    if sweeps:
        yield _sweeps(sweeps)
    shown = runs if every else sorted(runs, key=lambda one: -one.changed)[:MOST]
    if shown:
        yield _runs(shown)
    bad = sorted((one for one in entries if one.fault or one.state in DEAD),
                 key=lambda one: -one.changed)
    for one in bad[:MOST_TROUBLES]:
        fault = one.fault or "its process is gone, and left no message"
        yield f"! {one.name}: {fault}"
    if len(bad) > MOST_TROUBLES:
        yield f"! and {len(bad) - MOST_TROUBLES} more that are failed, interrupted or damaged"
    if len(shown) < len(runs):
        yield f"{len(runs) - len(shown)} older runs are not shown; --all shows them"
    yield _totals(sweeps, runs)


def _totals(sweeps: Sequence[Entry], runs: Sequence[Entry]) -> str:
    if not runs and not sweeps:
        return "no runs"
    states = Counter(one.state for one in runs)
    size = sum(one.size for one in runs if not sweeps) or sum(
        [*(one.size for one in sweeps),
         *(one.size for one in runs if all(one.folder.parent != s.folder for s in sweeps))])
    each = ", ".join(f"{count} {state}" for state, count in states.most_common())
    head = f"{counted(len(sweeps), 'sweep')}, " if sweeps else ""
    return f"{head}{counted(len(runs), 'run')}: {each}; {in_bytes(size)}"


def _sweeps(sweeps: Sequence[Entry]) -> Table:
    table = Table(
        Column("sweep", overflow="fold"), Column("runs", justify="right"),
        Column("states", overflow="fold"), Column("best", justify="right", no_wrap=True), "metric",
        Column("age", justify="right", no_wrap=True),
        Column("size", justify="right", no_wrap=True), box=None, pad_edge=False,
        header_style="bold",
    )
    for one in sweeps:
        name = f"{one.name} {one.remark}".rstrip()
        table.add_row(escape(name), str(one.runs), escape(one.state), fraction(one.value),
                      escape(one.metric), age(one.changed), in_bytes(one.size))
    return table


def _runs(runs: Sequence[Entry]) -> Table:
    """Return the table of runs. A metric other than most runs' stands beside its value."""
    most = Counter(one.metric for one in runs if one.metric).most_common(1)
    metric = most[0][0] if most else "best"
    has_notes = any(one.remark for one in runs)
    is_short = max(len(one.name) for one in runs) <= WHOLE
    table = Table(
        Column("run", overflow="fold", no_wrap=is_short), Column("state", no_wrap=True),
        Column(escape(metric), justify="right"), Column("age", justify="right", no_wrap=True),
        Column("size", justify="right", no_wrap=True),
        *([Column("notes", overflow="fold")] if has_notes else []),
        box=None, pad_edge=False, header_style="bold",
    )
    for one in runs:
        mark = "! " if one.fault or one.state in DEAD else ""
        value = fraction(one.value)
        if one.metric and one.metric != metric:
            value = f"{one.metric} {value}"
        colour = COLOURS.get(one.state, "yellow" if mark else "")
        state = f"[{colour}]{mark}{one.state}[/]" if colour else f"{mark}{one.state}"
        table.add_row(escape(one.name), state, escape(value), age(one.changed), in_bytes(one.size),
                      *([escape(one.remark)] if has_notes else []))
    return table


def differences_table(
    sides: Mapping[str, Mapping[str, Any]], missing: str = "none"
) -> Table | None:
    """Return a table of the keys in which mappings by dotted key differ, None where they do not.
    sides: the mappings by the title of their column."""
    keys = dict.fromkeys(key for side in sides.values() for key in side)
    table = Table(Column("key", overflow="fold"),
                  *(Column(escape(name), overflow="fold") for name in sides),
                  box=None, pad_edge=False, header_style="bold")
    for key in keys:
        values = [side.get(key, missing) for side in sides.values()]
        if any(value != values[0] for value in values):
            table.add_row(escape(key), *(escape("none" if v is None else str(v)) for v in values))
    return table if table.row_count else None


def states_as_json(sweep: Sweep, states: Sequence[TrialState]) -> dict[str, Any]:
    """Return the states of a sweep's trials as values that JSON can hold."""
    trials: list[dict[str, Any]] = []
    for one in states:
        newest = progress(one.trial.run, sweep.metric)
        done = one.trial.run.result() if one.state == "complete" else None
        facts: dict[str, Any] = {key: one.status[key] for key in FACTS if key in one.status}
        trials.append({
            "index": one.trial.index, "point": one.trial.point, "seed": one.trial.seed,
            "signature": one.trial.signature, "folder": str(one.trial.run.folder),
            "state": one.state, "note": one.note, "stage": newest.get("stage"),
            "epoch": newest.get("epoch"),
            "value": lookup(done, sweep.metric) if done else newest.get("metric"), **facts,
        })
    counts = Counter(one.state for one in states)
    return {"name": sweep.name, "folder": str(sweep.folder), "metric": sweep.metric,
            "mode": sweep.mode, "counts": dict(counts), "trials": trials}
