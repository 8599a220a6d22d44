"""What a sweep leaves for its readers: sweep.json, and a page written when its last trial ends. The
experiment's function `run.report` writes the page; it gets the sweep's folder."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from harness.base.files import read_json, write_json
from harness.base.locks import Busy, held_lock, lock_holder
from harness.cluster.records import jobs_folder
from harness.runs.execute import load_function
from harness.runs.run import NAME, Run, state_of
from harness.sweeps.reading import Sweep, Trial

log = logging.getLogger(__name__)

OVER = ("complete", "failed", "ended early", "unreadable", "new")
"""Final states: such trials run again only after a new launch."""


def write_summary(sweep: Sweep) -> None:
    """Write runs/<name>/sweep.json: the sweep and its trials, in order, and then the trials of
    earlier states of the sweep file whose runs are still there. These have a number `dropped`,
    which trials share that left the file together."""
    found, before = summary(sweep, sweep.trials), _listed_before(sweep.folder)
    listed = {trial["signature"] for trial in found["trials"]}
    number = 1 + max((trial.get("dropped", 0) for trial in before), default=0)
    for trial in before:
        name = trial["signature"]
        if name not in listed and Run(sweep.folder / name).config_file.exists():
            listed.add(name)
            found["trials"].append({"dropped": number, **trial})
    write_json(sweep.folder / "sweep.json", found)


def _listed_before(sweep_folder: Path) -> list[dict[str, Any]]:
    """Return the trials in sweep.json, without odd ones; none where it is missing or damaged."""
    try:
        trials = list(read_json(sweep_folder / "sweep.json")["trials"])
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [trial for trial in trials if isinstance(trial, dict)
            and isinstance(name := trial.get("signature"), str) and NAME.fullmatch(name)
            and isinstance(trial.get("dropped", 0), int)]


def summary(sweep: Sweep, trials: Iterable[Trial]) -> dict[str, Any]:
    """Return what sweep.json holds, for some trials of the sweep."""
    return {
        "file": sweep.file, "recipes": [*sweep.bases], "words": list(sweep.words),
        "name": sweep.name, "backend": sweep.backend, "metric": sweep.metric,
        "mode": sweep.mode, "objectives": dict(sweep.objectives),
        "search": {one.key: {one.kind: list(one.values)} for one in sweep.space.dimensions},
        "trials": [{"point": t.point, "seed": t.seed, "signature": t.signature} for t in trials],
    }


def write_if_over(sweep_folder: Path) -> None:
    """Write the page if no trial of the sweep is queued or running any more. Called by the process
    that ended a trial. Errors are only logged, because the trial's result is already on disk."""
    try:
        trials = read_json(sweep_folder / "sweep.json")["trials"]
        # newest first: while many trials are open, the first look is enough
        runs = [Run(sweep_folder / trial["signature"]) for trial in reversed(trials)
                if not trial.get("dropped")]
        if runs and all(state_of(r) in OVER and lock_holder(r.lock_file) is None for r in runs):
            write(sweep_folder, runs[0])
    except Busy:
        log.info("another process writes the page")
    except Exception as error:  # the experiment's function may raise anything
        log.warning("%s: no page was written: %s", sweep_folder, error)


def write(sweep_folder: Path, run: Run) -> None:
    """Write the page with the function that one of the sweep's runs names.

    Raises Busy when another process is writing it, UserError when the run names no function, and
    what that function raises.
    """
    make = load_function(run, "report")
    with held_lock(jobs_folder(sweep_folder, create=True) / "page.lock"):
        make(sweep_folder)
