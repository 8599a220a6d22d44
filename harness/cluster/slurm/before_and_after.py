"""Jobs before and after a sweep's trials: to compute what they share, and to report on them.

The sweep file asks for them (`prepare: true`, `report: true`). Trials wait until the first job has
ended, even if it failed: then they compute the shared files themselves. Both have records like the
trials' own, so a launch settles them and a cancellation finds them.
"""

import io
import logging
import os
import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from harness.base.caches import keep_caches_here
from harness.base.errors import UserError
from harness.base.files import write_text
from harness.base.mappings import lookup
from harness.base.units import counted
from harness.cluster import pages, snapshots
from harness.cluster.place import Place, Submission
from harness.cluster.rank_processes import TrialFailed, log_to_stderr, stop_on
from harness.cluster.records import Record, new_record, read_record, read_records
from harness.cluster.slurm import commands
from harness.cluster.slurm.job import MAX_TIME_OUTS, requeue, set_slurm_ranks
from harness.config.values import to_yaml
from harness.runs import peers
from harness.runs.execute import load_function
from harness.runs.run import Run
from harness.runs.stopping import Stopped, at_once, stop_on_signals
from harness.sweeps.keys import Resources
from harness.sweeps.reading import Sweep, Trial, expand

log = logging.getLogger(__name__)

REPORT = "report.txt"
KEPT = ("partition", "account", "qos", "setup", "python", "wrap", "env")
"""Keys of `slurm` for the job that reports; it needs no GPU and no particular node."""
FUNCTIONS = {"before": "make_shared", "after": "write_report"}


def is_prepared(sweep: Sweep, trials: int) -> bool:
    """Return whether a job before this many trials computes what they share."""
    return sweep.prepare and trials > 1


def job_count(sweep: Sweep, trials: int) -> int:
    """Return the number of jobs before and after this many trials."""
    return is_prepared(sweep, trials) + sweep.report


@contextmanager
def surrounding_jobs(
    sweep: Sweep, trials: Sequence[Trial], records: Sequence[Record], slurm: Place
) -> Iterator[Sequence[str]]:
    """Submit the job before the trials, run the body, submit the job after; see `place.Place`.

    The report's record is written first. So if the launcher is killed, the next one finds that the
    report is missing, and submits its job, even if there is no trial to submit.
    """
    earlier = read_records(sweep.folder)
    around = [r for r in earlier if r.options.get("around") and r.is_from(sweep.origin)]
    here, jobs = (slurm.site(), commands.my_jobs()) if around else ("", {})
    around = [record for record in around if record.site in ("", here)]
    living = {number for record in earlier for number in commands.living(record, jobs)}
    missing = [record for record in around if _is_missing(record, living)]
    wanted = {trial.signature for trial in trials}
    wanted |= {signature for record in missing for signature in record.options["about"]}
    reported = [trial for trial in expand(sweep) if trial.signature in wanted]
    report = None
    if sweep.report and reported:
        sweep = replace(sweep, code=sweep.code or snapshots.current_code(sweep).freeze())
        columns = dict(sweep.experiment.columns)
        about = {**pages.summary(sweep, reported), "columns": columns}
        report = _record(sweep, "after", reported, slurm, summary=about)
    before: list[str] = []
    try:
        if is_prepared(sweep, len(trials)):
            shared = [r for r in around if _is_shared(r, trials) and living & {*r.jobs.values()}]
            before = [*(shared or [_submit_before(sweep, trials, slurm)])[0].jobs.values()]
        yield before
    except UserError:
        if not records:  # nothing waits for the first job, and nothing is to be reported
            own = {number for record in around for number in record.jobs.values()}
            commands.scancel(set(before) - own)
            if report is not None:
                shutil.rmtree(report.folder)
        raise
    if report is None:
        return
    awaited = {number for record in records for number in record.jobs.values()}
    awaited |= living & {record.jobs.get(s, "") for record in earlier for s in wanted}
    try:
        _submit_after(sweep, report, sorted(awaited), slurm)
    except UserError as error:
        log.warning("%s; the trials were submitted, their report was not", error)
    for record in missing:
        log.warning("the job of an earlier report was missing: its trials are in the next one")
        record.options["about"] = []
        record.write()


def _is_missing(record: Record, living: set[str]) -> bool:
    """Whether a report was asked for that is not written, and has no job that will."""
    return (record.options["around"] == "after" and bool(record.options["about"])
            and not living & {*record.jobs.values()}
            and not (Path(record.folder) / REPORT).exists())


def _is_shared(record: Record, trials: Sequence[Trial]) -> bool:
    """Whether the record's job computes what these trials share."""
    wanted = {trial.signature for trial in trials}
    return record.options["around"] == "before" and wanted <= {*record.options["about"]}


def _record(
    sweep: Sweep, which: Literal["before", "after"], trials: Sequence[Trial], slurm: Place,
    **options: Any,
) -> Record:
    """Return the record, on disk, of a job that is about these trials."""
    record = new_record(
        sweep.folder, "slurm", [], around=which, about=[trial.signature for trial in trials],
        function=f"{__name__}.{FUNCTIONS[which]}", code=str(sweep.code or ""),
        origin=sweep.origin, site=slurm.site(), **options,
    )
    record.write()
    return record


def _submit_before(sweep: Sweep, trials: Sequence[Trial], slurm: Place) -> Record:
    for trial in trials:
        write_text(trial.run.config_file, to_yaml(trial.config))
    record = _record(sweep, "before", trials, slurm)
    slurm.submit(_submission(sweep, record), record)
    return record


def _submit_after(sweep: Sweep, record: Record, jobs: Sequence[str], slurm: Place) -> None:
    own = {key: value for key, value in sweep.slurm.items() if key in (*KEPT, "job_name")}
    small = replace(sweep, resources=Resources(time="10m"), slurm=own)
    slurm.submit(_submission(small, record), record, jobs)


def _submission(sweep: Sweep, record: Record) -> Submission:
    name = f"{sweep.slurm.get('job_name', sweep.name)}.{record.options['around']}"
    named = replace(sweep, slurm={**sweep.slurm, "job_name": name})
    return Submission(named, [], record.options["function"])


# --- in the jobs ---


@contextmanager
def _requeued_when_stopped(record_file: str) -> Iterator[Record]:
    """Yield the job's record when all its ranks have met; requeue the job when a signal stops the
    body, as often as its sweep's trials may reach their time limit. The other jobs wait until it
    has ended for good."""
    # first of all: submitit's own handler would end the job
    stop_on(signal.SIGUSR2, signal.SIGTERM)
    log_to_stderr()
    keep_caches_here()
    set_slurm_ranks()
    record = read_record(Path(record_file))
    try:
        with peers.together(Path(record.folder)), stop_on_signals():
            peers.meet()
            yield record
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


def make_shared(record_file: str) -> None:
    """Call the runs' `run.prepare` function on every rank; called by submitit."""
    with _requeued_when_stopped(record_file) as record:
        runs = record.runs(record.options["about"])
        load_function(runs[0], "prepare")(runs)


def write_report(record_file: str) -> None:
    """Write the trials, best first, to report.txt, then the sweep's page; called by submitit."""
    with _requeued_when_stopped(record_file) as record:
        at_once("writing the report", lambda: _write_report(record))


def _write_report(record: Record) -> None:
    folder, sweep = record.sweep_folder, record.options["summary"]
    text = io.StringIO()
    console = Console(file=text, width=200)
    console.print(_table(folder, sweep))
    for trial in sweep["trials"]:
        run = Run(folder / trial["signature"])
        if not run.is_complete():
            status = run.status()
            why = status.get("error") or status.get("reason") or "cause unknown"
            console.print(f"{run.signature}: {status['state']}: {why}", markup=False)
    for place in (folder, Path(record.folder)):  # the second shows later launches that it is done
        write_text(place / REPORT, text.getvalue())
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
