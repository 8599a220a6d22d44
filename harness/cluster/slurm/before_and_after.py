"""Jobs before and after a sweep's trials: to compute what they share, and to report on them.

The sweep file asks for them (`prepare: true`, `report: true`). Trials wait until the first job has
ended, even if it failed: then they compute the shared files themselves.
"""

import io
import logging
import os
import signal
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from harness.base.errors import UserError
from harness.base.files import read_json, write_json, write_text
from harness.base.mappings import lookup
from harness.base.units import counted
from harness.cluster import pages
from harness.cluster.rank_processes import TrialFailed, log_to_stderr, stop_on
from harness.cluster.records import Record, jobs_folder
from harness.cluster.slurm import commands
from harness.cluster.slurm import script as slurm
from harness.cluster.slurm.job import (
    MAX_TIME_OUTS,
    keep_caches_here,
    requeue,
    set_slurm_ranks,
)
from harness.config.values import to_yaml
from harness.runs.execute import load_function
from harness.runs.run import Run
from harness.runs.stopping import Stopped, at_once, stop_on_signals
from harness.sweeps.keys import Resources
from harness.sweeps.reading import Sweep, Trial

log = logging.getLogger(__name__)

REPORT = "report.txt"
KEPT = ("partition", "account", "qos", "setup", "python", "env")
"""Keys of `slurm` for the job that reports; it needs no GPU and no particular node."""


def is_prepared(sweep: Sweep, trials: int) -> bool:
    """Return whether a job before this many trials computes what they share."""
    return sweep.prepare and trials > 1


def job_count(sweep: Sweep, trials: int) -> int:
    """Return the number of jobs before and after this many trials."""
    return is_prepared(sweep, trials) + sweep.report


@contextmanager
def surrounding_jobs(
    sweep: Sweep, trials: Sequence[Trial], records: Sequence[Record]
) -> Iterator[Sequence[str]]:
    """Submit the job before the trials, run the body, submit the job after; see `place.Place`."""
    before: list[str] = []
    if is_prepared(sweep, len(trials)):
        for trial in trials:
            write_text(trial.run.config_file, to_yaml(trial.config))
        folders = [str(trial.run.folder.resolve()) for trial in trials]
        before = [_submit(sweep, "before", make_shared, folders)]
    try:
        yield before
    except UserError:
        if not records:  # no job waits for it
            commands.scancel(before)
        raise
    if sweep.report:
        try:
            _submit_after(sweep, trials, records)
        except UserError as error:
            log.warning("%s; the trials were submitted, their report was not", error)


def _submit_after(sweep: Sweep, trials: Iterable[Trial], records: Iterable[Record]) -> None:
    """Submit the job that reports on these trials after all jobs of the records."""
    ids = {number.partition("_")[0] for record in records for number in record.jobs.values()}
    own = {key: value for key, value in sweep.slurm.items() if key in KEPT}
    small = replace(sweep, resources=Resources(time="10m"),
                    slurm=slurm.depending_on(own, sorted(ids)))
    folder = jobs_folder(sweep.folder.resolve(), create=True) / "after"
    file = folder / f"{uuid.uuid4().hex[:10]}.json"
    write_json(file, {**pages.summary(sweep, trials), "columns": dict(sweep.experiment.columns)})
    _submit(small, "after", write_report, str(sweep.folder.resolve()), str(file))


def _ids_file(sweep_folder: Path) -> Path:
    return jobs_folder(sweep_folder) / "around.json"


def read_ids(sweep_folder: Path) -> list[str]:
    """Return the ids of a sweep's jobs before and after its trials, to be cancelled with them."""
    file = _ids_file(sweep_folder)
    return [str(number) for number in read_json(file)["ids"]] if file.exists() else []


def _submit(sweep: Sweep, which: str, function: Any, *arguments: Any) -> str:
    folder = jobs_folder(sweep.folder.resolve(), create=True) / which
    executor = slurm.executor_for(sweep, folder, f"{sweep.name}.{which}")
    with commands.submitting(f"the job {which} the trials"):
        number = str(executor.submit(function, *arguments).job_id)
    write_json(_ids_file(sweep.folder), {"ids": [*read_ids(sweep.folder), number]})
    return number


# --- in the jobs ---


@contextmanager
def _requeued_when_stopped() -> Iterator[None]:
    """Requeue the job when a signal stops the body: as often as its sweep's trials may reach their
    time limit. The other jobs wait until it has ended for good."""
    # first of all: submitit's own handler would end the job
    stop_on(signal.SIGUSR2, signal.SIGTERM)
    log_to_stderr()
    keep_caches_here()
    set_slurm_ranks()
    try:
        with stop_on_signals():
            yield
    except Stopped as reason:
        log.warning("stopped %s", reason)
        most = int(os.environ.get(MAX_TIME_OUTS, "20"))
        if int(os.environ.get("SLURM_RESTART_COUNT", "0")) >= most:
            raise TrialFailed(f"stopped after {counted(most, 'restart')} "
                              "(resources.max_time_outs)") from None
        if os.environ["RANK"] == "0":
            requeue()
        # no return: a result that submitit wrote in part would break the next attempt's
        raise SystemExit(0) from None


def make_shared(run_folders: list[str]) -> None:
    """Call the runs' `run.prepare` function on every rank; called by submitit."""
    with _requeued_when_stopped():
        runs = [Run(Path(folder)) for folder in run_folders]
        load_function(runs[0], "prepare")(runs)


def write_report(sweep_folder: str, summary_file: str) -> None:
    """Write the trials, best first, to report.txt, then the sweep's page; called by submitit."""
    with _requeued_when_stopped():
        at_once("writing the report", lambda: _write_report(Path(sweep_folder), summary_file))


def _write_report(folder: Path, summary_file: str) -> None:
    sweep = read_json(Path(summary_file))
    text = io.StringIO()
    console = Console(file=text, width=200)
    console.print(_table(folder, sweep))
    for trial in sweep["trials"]:
        run = Run(folder / trial["signature"])
        if not run.is_complete():
            status = run.status()
            why = status.get("error") or status.get("reason") or "cause unknown"
            console.print(f"{run.signature}: {status['state']}: {why}", markup=False)
    write_text(folder / REPORT, text.getvalue())
    log.info("written: %s", folder / REPORT)
    try:
        pages.write(folder, Run(folder / sweep["trials"][0]["signature"]))
    except UserError as error:  # another process writes it, or the runs are an older version's
        log.warning("%s", error)


def _table(folder: Path, sweep: Mapping[str, Any]) -> Table:
    metric, trials = sweep["metric"], sweep["trials"]
    results = [(trial, Run(folder / trial["signature"]).result()) for trial in trials]
    complete = [(lookup(result, metric), trial, result) for trial, result in results if result]
    ranked = [row for row in complete if isinstance(row[0], int | float)]
    ranked.sort(key=lambda row: row[0], reverse=sweep["mode"] == "max")
    keys = list(dict.fromkeys(key for trial in trials for key in trial["point"]))
    table = Table(title=f"{sweep['name']}: {len(complete)} of {len(trials)} complete, "
                        f"ranked by {metric} ({sweep['mode']})")
    for name in ("rank", *keys, "seed", metric, *sweep["columns"], "run"):
        table.add_column(name)
    for place, (value, trial, result) in enumerate(ranked, start=1):
        numbers = [value, *(lookup(result, key) for key in sweep["columns"].values())]
        table.add_row(
            str(place), *(str(trial["point"].get(key, "")) for key in keys), str(trial["seed"]),
            *("" if number is None else f"{number:.4f}" for number in numbers),
            trial["signature"],
        )
    return table
