"""List, look at, compare, tag and remove runs and sweeps.

    python launch/runs.py ls
    python launch/runs.py ls runs/loss_weights --state failed --since 2d
    python launch/runs.py show RUN
    python launch/runs.py compare runs/synthetic/0a1b2c3d4e5f runs/synthetic/5f4e3d2c1b0a
    python launch/runs.py tag RUN baseline
    python launch/runs.py note RUN "the learning rate was too high"
    python launch/runs.py rm RUN
    python launch/runs.py prune --dry-run

A run is named by its folder or by the beginning of its signature, such as 0a1b or
loss_weights/0a1b, a sweep by its folder or its name.
"""

import json
import math
import re
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from harness.base.errors import UserError, WrongUsage, hint
from harness.base.mappings import leaves, numeric_leaves
from harness.base.paths import typed
from harness.base.units import counted, minutes
from harness.config.yaml_files import read_yaml
from harness.listing import folders, removing, tables
from harness.listing.comparing import compare_seeds, side, verdict_lines
from harness.listing.disk import size_of
from harness.listing.entries import (
    Entry,
    Metric,
    Wanted,
    chosen,
    in_bytes,
    list_entries,
    run_entry,
)
from harness.listing.notes import change_note, change_tags
from harness.listing.reclaim import Reclaim, reclaimable
from harness.reporting.terminal import say, wide
from harness.runs.run import Run
from launch.cli import (
    EXIT_STATUS,
    Version,
    as_called,
    as_typed,
    new_app,
    print_result,
    run,
    subcommand,
)
from svll.config import Config, Place
from svll.reuse.unneeded import add_shared
from svll.runs.origin import next_commands, origin, sweep_source

METRIC = Metric(Config.experiment.metric, "mAP")
"""Of runs of no sweep; the second where there is no validation part."""
STATES = ("new", "submitted", "running", "interrupted", "stopped", "failed", "ended early",
          "complete", "unreadable")
MOST_FILES = 20

RunsFolder = Annotated[Path, typer.Option(
    "--runs", help="Where names and signatures are looked for.")]
Word = Annotated[str, typer.Argument(help="A run or a sweep.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
RUNS = Path(Place.runs)

app = new_app()


@app.callback(help=as_typed(__doc__ or ""), epilog=EXIT_STATUS)
def _together(version: Version = False) -> None:
    """Group the commands."""


def main() -> None:
    """Run the command line."""
    run(app)


@subcommand(app, as_given=("name", "tag"))
def ls(
    folder: Annotated[list[Path] | None, typer.Argument(
        help="Folders of runs, or runs and sweeps by name. [default: runs]")] = None,
    state: Annotated[list[str] | None, typer.Option(
        help=f"Only runs in this state; may repeat: {', '.join(STATES)}.")] = None,
    name: Annotated[list[str] | None, typer.Option(
        help="Only runs with this in <name>/<signature>; * and ? stand for other letters.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="Only runs with this tag.")] = None,
    since: Annotated[str | None, typer.Option(
        help="Only runs that changed since then: 90m, 12h, 2d, or a date such as 2025-12-31."
    )] = None,
    every: Annotated[bool, typer.Option(
        "--all", help=f"Show all runs, not only the newest {tables.MOST}.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print all as a JSON array.")] = False,
) -> int:
    """List runs and sweeps: state, best metric, age, size on disk.

        python launch/runs.py ls --state failed --state interrupted
    """
    for word in state or ():
        if word not in STATES:
            raise UserError(f"--state: no state {word!r}{hint(word, STATES)}")
    wanted = Wanted(state or (), name or (), tag or (), _since(since))
    where = [one if one.exists() else folders.named(str(one), RUNS) for one in folder or ()]
    print_listing(where or [RUNS], wanted, every=every, as_json=as_json)
    return 0


def print_listing(
    where: list[Path], wanted: Wanted | None = None, *, every: bool = False, as_json: bool = False
) -> None:
    """Print the runs and sweeps in folders."""
    entries = chosen(list_entries(where, METRIC), wanted or Wanted())
    if as_json:
        typer.echo(json.dumps([one.as_json() for one in entries], indent=2))
        return
    _show(Console(), *tables.listing(entries, every=every))


def _show(console: Console, *parts: object) -> None:
    """Print tables, a line apart, and plain lines."""
    console = wide(console)
    for part in parts:
        if isinstance(part, str):
            say(console, part)
        elif part is not None:
            console.print(part)
            console.print()


def _since(text: str | None) -> float:
    """Return the moment that a text names, in seconds since 1970."""
    if text is None:
        return -math.inf
    is_month = re.fullmatch(r"\d{4}-\d{1,2}", text)  # to `minutes`, days and hours
    if not is_month and not text.isdigit() and (span := minutes(text)):
        return time.time() - 60 * span
    try:
        if not text.isdigit():
            return datetime.fromisoformat(f"{text}-01" if is_month else text).timestamp()
    except ValueError:
        pass
    raise UserError(f"--since: {text!r} is neither a time such as 90m, 12h or 2d nor a date such "
                    "as 2025-12-31 or 2025-12")


# --- one run or two ---


@subcommand(app)
def show(name: Word, runs: RunsFolder = RUNS) -> int:
    """Show a run or a sweep: state, scores, what differs from its recipe, files, next commands."""
    folder = folders.named(name, runs)
    console = Console()
    if folders.look_at(folder) == "sweep":
        entries = list_entries([folder], METRIC)
        _show(console, *tables.listing(entries))
        source = sweep_source(folder)
        lines = [f"made from {source}"] if source else []
        _show(console, *lines, as_called(f"rank it: python launch/report.py {typed(folder)}"))
        return 0
    one = run_entry(folders.Found(folder, "run"), METRIC)
    say(console, *_about(one))
    shown = Run(folder)
    if one.state == "complete":
        print_result(shown)
    try:
        came = origin(shown)
    except UserError as error:
        say(console, f"settings: {error}")
    else:
        base = f"recipe {came.recipe}" if came.recipe else "defaults"
        pairs = {base: {k: a for k, (a, _) in came.differing.items()},
                 "this run": {k: b for k, (_, b) in came.differing.items()}}
        table = tables.differences_table(pairs)
        _show(console, "", *([table] if table else [f"its settings are those of the {base}"]))
    files = sorted((path for path in folder.iterdir() if not path.name.startswith(".")),
                   key=lambda path: path.name)[:MOST_FILES]
    say(console, *(f"{in_bytes(size_of(path)):>8}  {path}" for path in files))
    commands = next_commands(shown, one.state)
    say(console, *(["", "next:"] if commands else []),
        *(as_called(f"  {what}: {command}") for command, what in commands))
    return 0


def _about(one: Entry) -> list[str]:
    """Return what is known of a run, in lines."""
    status = Run(one.folder).status() if one.state != "unreadable" else {}
    facts = [f"{key} {status[key]}" for key in ("attempts", "host") if key in status]
    facts.append(f"changed {datetime.fromtimestamp(one.changed):%Y-%m-%d %H:%M}")
    value = f"best {one.metric} {one.value:.4f}" if one.value is not None else ""
    return [one.name, f"state: {', '.join([one.state, *facts])}",
            *([f"! {one.fault}"] if one.fault else []),
            *([value] if value and one.state != "complete" else []),
            *([f"log: {status['log']}"] if "log" in status else []),
            *([f"notes: {one.notes.line}"] if one.notes.line else []),
            f"size: {in_bytes(one.size)}"]


@subcommand(app)
def compare(
    a: Annotated[str, typer.Argument(help="A run, or a sweep, which stands for its best point.")],
    b: Annotated[str, typer.Argument(help="Another.")],
    runs: RunsFolder = RUNS,
) -> int:
    """Compare two runs or sweeps: settings, results, and paired tests over seeds and queries.

    A run is compared with those beside it that differ from it in their seed alone.
    """
    console = Console()
    (one, metric), (two, other) = (side(folders.named(word, runs), METRIC) for word in (a, b))
    if metric != other:
        raise UserError(f"{a} is ranked by {metric}, {b} by {other}; compare runs of one metric")
    sides = {"A": one, "B": two}
    for label, point in sides.items():
        names = ", ".join(outcome.run.name for outcome in point.outcomes)
        say(console, f"{label}: {names}")
    configs = {label: _settings(point.outcomes[0].run) for label, point in sides.items()}
    table = tables.differences_table(configs)
    _show(console, "", table or "Their settings are the same.")
    keys = dict.fromkeys([metric, *numeric_leaves(one.outcomes[0].run.result() or {})])
    shown = [key for key in keys if key in (metric, *Config.experiment.columns.values())]
    say(console, *(f"{key}: {one.mean_of(key):.4f} and {two.mean_of(key):.4f}" for key in shown))
    from svll.evaluation.feature_files.compare_runs import compare_points  # numba: a second

    try:
        seeds, verdicts = compare_points(one, two, metric)
    except UserError as error:
        seeds, verdicts = compare_seeds(one, two, metric)
        say(console, f"not tested over queries: {error}")
    say(console, *verdict_lines(seeds, verdicts))
    if not seeds:
        say(console, "no seed is shared, so nothing is tested over seeds")
    return 0


def _settings(one: Run) -> dict[str, object]:
    """Return a run's settings by dotted key, without those that say where it is."""
    found = leaves(read_yaml(one.config_file)[0])
    return {key: value for key, value in found.items() if not key.startswith("run.")}


# --- notes ---


@subcommand(app, as_given=("words",))
def tag(
    name: Word,
    words: Annotated[list[str], typer.Argument(help="Tags, such as baseline.")],
    remove: Annotated[bool, typer.Option("--remove", help="Remove these tags.")] = False,
    runs: RunsFolder = RUNS,
) -> int:
    """Tag a run or a sweep; `ls` shows the tags."""
    notes = change_tags(folders.named(name, runs), words, remove=remove)
    typer.echo(f"tags: {', '.join(notes.tags) or 'none'}")
    return 0


@subcommand(app, as_given=("text",))
def note(
    name: Word,
    text: Annotated[str | None, typer.Argument(
        help="The note; it replaces an earlier one.")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the note.")] = False,
    runs: RunsFolder = RUNS,
) -> int:
    """Write a note on a run or a sweep; `ls` shows it."""
    if (text is None) != remove:
        raise WrongUsage("give either a text or --remove")
    change_note(folders.named(name, runs), text or "")
    return 0


# --- removal ---


@subcommand(app)
def rm(
    names: Annotated[list[str], typer.Argument(help="Runs or sweeps.")],
    yes: Yes = False, runs: RunsFolder = RUNS,
) -> int:
    """Remove runs or sweeps: never one that is running or waits, and no other folder."""
    targets = removing.outermost(folders.named(name, runs) for name in names)
    count = sum(len(removing.check_removable(folder)) for folder in targets)
    typer.echo(f"{counted(count, 'run')}, {in_bytes(size_of(*targets))}:")
    for folder in targets:
        typer.echo(f"  {folder}")
    _ask("Remove for good?", yes)
    for folder in targets:
        if left := removing.remove_all(folder):
            typer.echo(f"{folder}: these are no sweep's and stay: "
                       f"{', '.join(path.name for path in left)}")
    typer.echo(f"removed {counted(count, 'run')}")
    return 0


@subcommand(app)
def prune(
    folder: Annotated[list[Path] | None, typer.Argument(
        help="Folders of runs or of sweeps. [default: runs]")] = None,
    dry_run: Annotated[bool, typer.Option(
        "--dry-run", help="Say what would be deleted; delete nothing.")] = False,
    yes: Yes = False,
) -> int:
    """Delete what no run needs any more: frozen code, job folders, checkpoints, shared files.

    Shared files (stage 1, drawn data) are made again when a run needs them.
    """
    where = folder or [RUNS]
    found, unfinished = reclaimable(where)
    for one in where:
        add_shared(one, unfinished, found)
    freed = _print_reclaim(found, show_paths=dry_run)
    if dry_run or not freed:
        return 0
    _ask("Delete for good?", yes)
    faults = found.delete()
    say(Console(stderr=True), *(f"not deleted: {fault}" for fault in faults))
    typer.echo(f"freed {in_bytes(freed)}" if not faults else "deleted the rest")
    return int(bool(faults))


def _print_reclaim(found: Reclaim, *, show_paths: bool) -> int:
    """Print what can be deleted by kind, and what stays; return how many bytes that frees."""
    rows = found.table()
    for kind, count, size in rows:
        typer.echo(f"{kind:16} {count:6} {in_bytes(size):>8}  {size:>15,} bytes")
        for path in found.paths(kind) if show_paths else ():
            typer.echo(f"    {path}")
    total = found.bytes()
    typer.echo(f"{'in all':16} {sum(row[1] for row in rows):6} {in_bytes(total):>8}  "
               f"{total:>15,} bytes" if rows else "nothing to delete")
    for line in found.kept:
        typer.echo(f"kept: {line}")
    return total


def _ask(question: str, is_sure: bool) -> None:
    """Ask on the terminal, and end the command on any answer but yes."""
    if is_sure:
        return
    if not sys.stdin.isatty():
        raise UserError("not in a terminal, so nobody can be asked; add --yes")
    if not typer.confirm(question):
        raise UserError("nothing was changed")


if __name__ == "__main__":
    main()
