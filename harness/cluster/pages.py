"""The sweep's page, written by whoever ends its last trial.

What writes it is a function of the experiment, named by `run.report` of the runs' configuration and
called with the sweep's folder.
"""

import logging
from pathlib import Path

from harness.base.files import read_json
from harness.base.locks import Busy, held_lock, lock_holder
from harness.cluster.records import jobs_folder
from harness.runs.execute import load_function
from harness.runs.run import Run, state_of

log = logging.getLogger(__name__)

OVER = ("complete", "failed", "ended early", "unreadable", "new")
"""States of trials that nothing will come of unless somebody launches the sweep again."""


def write_if_over(sweep_folder: Path) -> None:
    """Write the page when no trial of the sweep is on its way any more.

    Called as a trial ends, by the process that ended it. What goes wrong is logged: the trial is
    over, and its result is on disk.
    """
    try:
        trials = read_json(sweep_folder / "sweep.json")["trials"]
        # the last first: as long as there are many, one look is enough
        runs = [Run(sweep_folder / trial["signature"]) for trial in reversed(trials)]
        if runs and all(_is_over(run) for run in runs):
            write(sweep_folder, runs[0])
    except Busy:
        log.info("another process writes the page")
    except Exception as error:  # of an experiment's own function, anything may come
        log.warning("%s: no page was written: %s", sweep_folder, error)


def write(sweep_folder: Path, run: Run) -> None:
    """Have the page written by what one of the sweep's runs names.

    Raises Busy when another process is at it, UserError when the run names nothing that can be
    called, and what that function raises.
    """
    make = load_function(run, "report")
    with held_lock(jobs_folder(sweep_folder, create=True) / "page.lock"):
        make(sweep_folder)


def _is_over(run: Run) -> bool:
    return state_of(run) in OVER and lock_holder(run.lock_file) is None
