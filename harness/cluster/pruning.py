"""What a sweep's folder need not keep: old job folders and frozen code that nothing needs any more.

A trial needs the newest record that names it, with its logs and its code, until it has ended well;
so does every job that lives or waits.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.base.errors import UserError
from harness.base.locks import lock_holder
from harness.base.unused import UNUSED_DAYS, remove, unused
from harness.cluster.known_places import Places, all_places, place_named
from harness.cluster.records import EVERY, Record, jobs_folder, read_records
from harness.cluster.snapshots import code_folder
from harness.cluster.states import hidden
from harness.runs.run import Run, state_of

log = logging.getLogger(__name__)
ENDED = ("complete", "ended early")
ONE_LOOK_S = 60.0
"""For how long a scheduler's answer is used: it is asked once for all records."""
TOKEN = re.compile(r"[0-9a-f]{10}|\..*\.tmp")
"""Names of job folders, and of what a kill left of one."""


def prune(sweep_folder: Path) -> None:
    """Delete what the sweep does not need; the caller holds the launch lock. A fault is only
    logged."""
    try:
        found = unneeded(sweep_folder)
        for path in found:
            remove(path)
    except (OSError, UserError) as error:  # a scheduler that does not answer, another user's files
        log.debug("%s: nothing old is deleted: %s", sweep_folder, error)
    else:
        if found:
            log.info("deleted %d old folders of jobs and frozen code", len(found))


def unneeded(sweep_folder: Path, days: float = UNUSED_DAYS) -> list[Path]:
    """Return the job folders and frozen code that neither an unfinished trial nor a job needs, and
    that were not used for so many days. Raises UserError when a scheduler does not answer."""
    folder = sweep_folder.resolve()
    jobs, codes = unused(jobs_folder(folder), days), unused(code_folder(folder), days)
    if not jobs and not codes:
        return []
    places = all_places(max_age_s=ONE_LOOK_S)
    records = read_records(folder)
    runs = [Run(file.parent) for file in folder.glob("*/status.json")]
    open_runs = {run.signature: run.status() for run in runs if state_of(run) not in ENDED}
    kept = [record for record in records
            if Path(record.folder) not in jobs
            or not _is_spent(record, records, open_runs, places)]
    logs = [str(status.get("log", "")) for status in open_runs.values()]
    folders = {Path(record.folder) for record in kept} | {Path(log).parent for log in logs}
    # by their names: the runs folder may have been moved
    needed = {Path(record.options.get("code", "")).name for record in kept}
    needed |= {Path(status.get("code", "")).name for status in open_runs.values()}
    return [*(path for path in jobs if TOKEN.fullmatch(path.name) and path not in folders),
            *(path for path in codes if path.name.removesuffix(".git.json") not in needed)]


def _is_spent(
    record: Record, records: Sequence[Record], open_runs: Mapping[str, Any], places: Places
) -> bool:
    """Return whether every trial of a record has ended well or has a newer record, and no job of it
    is left. open_runs: the status of each unfinished run of the sweep."""
    if record.state == "submitting" or hidden(record, places):
        return False
    later = records[records.index(record) + 1 :]
    superseded = {signature for one in later for signature in one.trials}
    # a search proposes trials that its record does not name
    searched = open_runs if record.options.get("backend") == "ray" else ()
    # a run whose folder is gone was removed: nothing of it goes on
    if searched or any(run.folder.exists() and state_of(run) not in ENDED
                       and run.signature not in superseded
                       for run in record.runs(record.trials)):
        return False
    locks = [*Path(record.folder).glob("worker-*.lock"),
             *(run.lock_file for run in record.runs(record.trials))]
    if any(lock_holder(lock) is not None for lock in locks):
        return False
    keys = [EVERY] if EVERY in record.jobs else record.trials
    return not place_named(record.cluster, places).jobs({key: [record] for key in keys})
