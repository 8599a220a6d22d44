"""Removal of runs and sweeps: never of one that is running or waits, never of other folders, never
through a link."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

from harness.base.errors import UserError
from harness.base.locks import Busy, held_lock
from harness.base.unused import remove
from harness.cluster.known_places import Places, all_places
from harness.cluster.place import Job
from harness.cluster.records import EVERY, Record, read_records
from harness.cluster.states import living_jobs
from harness.listing.folders import find, look_at
from harness.listing.notes import FILE as NOTES
from harness.runs.run import Run, is_in_use, state_of

LAUNCH_LOCK = "launch.lock"
SWEEP_FILES = (
    "best.yaml", "trials.csv", "trials.parquet", "report.html", "figures", "jobs", "code",
    "points.jsonl", NOTES, "sweep.json",
)
"""What a sweep leaves in its folder beside its runs."""


def check_removable(folder: Path, places: Places | None = None) -> list[Run]:
    """Return the runs that go with a run's or a sweep's folder. Raises UserError for other folders,
    for a link, for what cannot be read, and for runs that are running or wait."""
    if folder.is_symlink():
        raise UserError(f"{folder}: is a link; name the folder that it leads to")
    kind = look_at(folder)
    if kind is None:
        raise UserError(f"{folder}: neither a run's folder nor a sweep's; nothing was removed")
    inside = list(find(folder, 1))
    for one in inside:
        if one.fault:
            raise UserError(f"{one.folder}: {one.fault}; nothing was removed")
    runs = [Run(one.folder) for one in inside if one.kind == "run"]
    for run in runs:
        if is_in_use(run):
            raise UserError(f"{run.folder}: is running; end it first (launch/slurm.py --cancel, or "
                            "Ctrl-C where it was started)")
    sweep = folder if kind == "sweep" else folder.parent
    waiting = _waiting(sweep, runs, places or all_places(), is_whole=kind == "sweep")
    for name, job in waiting.items():
        note = f" ({job.note})" if job.note else ""
        raise UserError(f"{sweep if name == EVERY else sweep / name}: a job will begin it{note}; "
                        "end it first (launch/slurm.py --cancel)")
    return runs


def _waiting(
    sweep: Path, runs: Sequence[Run], places: Places, *, is_whole: bool
) -> dict[str, Job]:
    """Return the living jobs that may begin runs, by signature."""
    records = read_records(sweep)
    open_runs = [run.signature for run in runs if state_of(run) != "complete"]
    own: dict[str, list[Record]] = {
        name: [record for record in records
               if name in record.trials or record.options.get("backend") == "ray"]
        for name in open_runs
    }
    if is_whole:
        own[EVERY] = [record for record in records if EVERY in record.jobs]
    return living_jobs({name: found for name, found in own.items() if found}, places)


def outermost(folders: Iterable[Path]) -> list[Path]:
    """Return each of these folders of runs and sweeps once, without the runs of a sweep among them.
    """
    places = {one.parent.resolve() / one.name: one for one in folders}
    return [one for place, one in places.items()
            if place.parent not in places or look_at(one) != "run"]


def remove_all(folder: Path) -> list[Path]:
    """Remove a run's or a sweep's folder; return what else it held, which stays. Raises
    UserError as `check_removable` does."""
    check_removable(folder)
    if look_at(folder) == "run":
        _remove_run(Run(folder))
        return []
    with _nobody_writes(folder / LAUNCH_LOCK):
        for run in check_removable(folder):
            _remove_run(run)
        for name in SWEEP_FILES:
            if (folder / name).exists() or (folder / name).is_symlink():
                remove(folder / name)
        for path in folder.glob(".*.tmp"):  # by processes that were killed
            remove(path)
    left = sorted(folder.iterdir())
    if not left:
        folder.rmdir()
    return left


def _remove_run(run: Run) -> None:
    with _nobody_writes(run.lock_file):
        remove(run.folder)
    for left in run.folder.parent.glob(f".{run.folder.name}.*.tmp"):
        raise UserError(f"{left}: is what could not be removed of {run.folder}; see to whom its "
                        "files belong")


def _nobody_writes(lock: Path) -> ExitStack:
    """Hold a lock while something is removed. Raises UserError when another process holds it."""
    stack = ExitStack()
    try:
        stack.enter_context(held_lock(lock))
    except Busy as error:
        raise UserError(f"{lock.parent}: is in use by {error.who}; nothing was removed") from None
    return stack
