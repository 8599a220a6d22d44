"""Jobs around a sweep's trials: one before that makes what they share, one after that reports.

Both are asked for in the sweep file (`prepare: true`, `report: true`). Trials wait for the first to
end, however it ends: what it did not make they make themselves.
"""

import io
import logging
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from harness.base.errors import UserError
from harness.base.files import read_json, write_json, write_text
from harness.base.mappings import lookup
from harness.cluster import pages
from harness.cluster.rank import say_plainly
from harness.cluster.records import Record, jobs_folder
from harness.cluster.slurm import commands
from harness.cluster.slurm import script as slurm
from harness.cluster.slurm.job import keep_caches_here, set_slurm_ranks
from harness.cluster.summary import summary
from harness.runs.execute import load_function
from harness.runs.run import Run
from harness.sweeps.keys import Resources
from harness.sweeps.reading import Sweep, Trial

log = logging.getLogger(__name__)

REPORT = "report.txt"
KEPT = ("partition", "account", "qos", "setup", "python", "env")
"""What the job that reports takes over of `slurm`: it needs no GPU and no certain node."""


def is_prepared(sweep: Sweep, trials: int) -> bool:
    """Whether a job before so many trials makes what they share."""
    return sweep.prepare and trials > 1


def job_count(sweep: Sweep, trials: int) -> int:
    """Return how many jobs there are before and after so many trials."""
    return is_prepared(sweep, trials) + sweep.report


def submit_before(sweep: Sweep, trials: Sequence[Trial]) -> str:
    """Submit the job that makes what the trials share; returns its id."""
    folders = [str(trial.run.folder.resolve()) for trial in trials]
    return _submit(sweep, "before", make_shared, folders)


def submit_after(sweep: Sweep, trials: Iterable[Trial], records: Iterable[Record]) -> str:
    """Submit the job that reports on the trials when all jobs of the records have ended.

    Returns its id. It reports on what was asked for now, whatever is launched later.
    """
    ids = {number.partition("_")[0] for record in records for number in record.jobs.values()}
    own = {key: value for key, value in sweep.slurm.items() if key in KEPT}
    small = replace(
        sweep, resources=Resources(time="10m"), slurm=slurm.depending_on(own, sorted(ids))
    )
    folder = jobs_folder(sweep.folder.resolve(), create=True) / "after"
    file = folder / f"{uuid.uuid4().hex[:10]}.json"
    write_json(file, {**summary(sweep, trials), "columns": dict(sweep.experiment.columns)})
    return _submit(small, "after", write_report, str(sweep.folder.resolve()), str(file))


def ids_file(sweep_folder: Path) -> Path:
    """Where the ids of the jobs around a sweep's trials are kept, to be cancelled with them."""
    return jobs_folder(sweep_folder) / "around.json"


def read_ids(sweep_folder: Path) -> list[str]:
    """Return the ids of all jobs that were submitted around a sweep's trials."""
    try:
        return [str(number) for number in read_json(ids_file(sweep_folder))["ids"]]
    except FileNotFoundError:
        return []


def _submit(sweep: Sweep, which: str, function: Any, *arguments: Any) -> str:
    folder = jobs_folder(sweep.folder.resolve(), create=True) / which
    executor = slurm.executor_for(sweep, folder, f"{sweep.name}.{which}")
    try:
        with commands.outside_any_job():
            number = str(executor.submit(function, *arguments).job_id)
    except Exception as error:  # submitit's own classes differ between its versions
        raise UserError(
            f"sbatch did not take the job {which} the trials: {commands.last_line(error)}"
        ) from None
    write_json(ids_file(sweep.folder), {"ids": [*read_ids(sweep.folder), number]})
    return number


# --- in the jobs ---


def make_shared(run_folders: list[str]) -> None:
    """Call what the runs' configuration names as `run.prepare`, on every rank; for submitit."""
    say_plainly()
    keep_caches_here()
    set_slurm_ranks()
    runs = [Run(Path(folder)) for folder in run_folders]
    load_function(runs[0], "prepare")(runs)


def write_report(sweep_folder: str, summary_file: str) -> None:
    """Write how the trials went, the best first, to report.txt; called by submitit.

    Then the sweep's page is written, as it stands now.
    """
    say_plainly()
    folder = Path(sweep_folder)
    asked = read_json(Path(summary_file))
    text = io.StringIO()
    console = Console(file=text, width=200)
    console.print(_table(folder, asked))
    for trial in asked["trials"]:
        run = Run(folder / trial["signature"])
        if not run.is_complete():
            status = run.status()
            why = status.get("error") or status.get("reason") or "no word of its end"
            console.print(f"{run.signature}: {status['state']}: {why}", markup=False)
    write_text(folder / REPORT, text.getvalue())
    log.info("written: %s", folder / REPORT)
    try:
        pages.write(folder, Run(folder / asked["trials"][0]["signature"]))
    except UserError as error:  # another process writes it, or an older version made the runs
        log.warning("%s", error)


def _table(folder: Path, asked: Mapping[str, Any]) -> Table:
    rows = []
    for trial in asked["trials"]:
        result = Run(folder / trial["signature"]).result()
        if result is not None:
            rows.append((lookup(result, asked["metric"]), trial, result))
    known = [row for row in rows if isinstance(row[0], int | float)]
    known.sort(key=lambda row: row[0], reverse=asked["mode"] == "max")
    keys = list(dict.fromkeys(key for trial in asked["trials"] for key in trial["point"]))
    table = Table(title=f"{asked['name']}: {len(rows)} of {len(asked['trials'])} complete, "
                        f"ranked by {asked['metric']} ({asked['mode']})")
    for name in ("rank", *keys, "seed", asked["metric"], *asked["columns"], "run"):
        table.add_column(name)
    for place, (value, trial, result) in enumerate(known, start=1):
        shown = [lookup(result, key) for key in asked["columns"].values()]
        table.add_row(
            str(place), *(str(trial["point"].get(key, "")) for key in keys), str(trial["seed"]),
            *("" if number is None else f"{number:.4f}" for number in (value, *shown)),
            trial["signature"],
        )
    return table
