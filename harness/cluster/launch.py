"""A sweep as independent trials: what state each is in, submitting what is missing, ending it.

The state of a trial is what its run folder says. SLURM is asked, once for all trials, only whether
a job is still there for the trials whose folder does not already say that they are over.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from harness.base.errors import UserError
from harness.base.files import write_json, write_text
from harness.base.locks import held_lock, writing
from harness.cluster import snapshots
from harness.cluster.local import background
from harness.cluster.local import worker as local
from harness.cluster.records import Cluster, Record, read_records
from harness.cluster.slurm import commands, site
from harness.cluster.slurm import script as slurm
from harness.cluster.states import ALIVE, View, is_searched, launch_lock, survey
from harness.cluster.summary import write_summary
from harness.config.build import to_yaml
from harness.runs.run import Run
from harness.sweeps.reading import Sweep, Trial, with_proposed

log = logging.getLogger(__name__)


# --- looking ---


# --- launching ---


def due(views: list[View], *, retry_failed: bool = False) -> list[View]:
    """Return the trials that a launch would submit."""
    return [view for view in views if view.is_due or (retry_failed and view.state == "failed")]


def launch(
    sweep: Sweep, cluster: Cluster, *, jobs: int | None = None, retry_failed: bool = False,
    fetch: Callable[[list[Trial]], None] = lambda trials: None,
) -> list[View]:
    """Submit every trial that is neither complete nor on its way, and return those at once.

    jobs: how many trials run at a time on this machine; None: as many as its cores allow.
    retry_failed: also those that failed by their own fault, and would again unless it was mended.
    fetch: called with the trials before they are submitted, to have on disk what jobs need. Raises
    UserError when the cluster refuses; what was not submitted keeps its former status.
    """
    with writing(sweep.folder):
        sweep.folder.mkdir(parents=True, exist_ok=True)
    with held_lock(launch_lock(sweep)):
        _settle_marks(sweep)
        if sweep.algorithm is not None:
            sweep = replace(with_proposed(sweep), probes=sweep.probes)
        views = survey(sweep)
        write_summary(sweep)
        waiting = due(views, retry_failed=retry_failed)
        proposes = sweep.to_propose > 0
        if is_searched(sweep):  # it takes up what it has left when it has ended
            waiting, proposes = [], False
        if waiting or proposes:
            fetch([*(view.trial for view in waiting), *sweep.probes])
            begun = [view.trial.signature for view in waiting if view.status.get("attempts")]
            for told in snapshots.mixed(sweep, begun, read_records(sweep.folder)):
                log.warning("trials that had begun go on with other code: %s", told)
            sweep = replace(sweep, code=snapshots.working(sweep).freeze())
        if (waiting or proposes) and cluster == "slurm":
            site.check(sweep, jobs_of(sweep, len(waiting)))
        if (waiting or proposes) and sweep.backend == "ray":
            # late: it imports this module's neighbours
            from harness.cluster.ray import submit

            with _marked(waiting, sweep):
                submit.submit(sweep, [v.trial for v in waiting], cluster=cluster, jobs=jobs)
        elif waiting and cluster == "local":
            with _marked(waiting, sweep):
                local.submit(sweep, [view.trial for view in waiting], jobs=jobs)
        elif waiting:
            most = commands.max_array_size()
            slurm.parameters(sweep, job_name=sweep.name)  # its faults, before anything is written
            _submit_arrays(sweep, waiting, most)
    return waiting


def jobs_of(sweep: Sweep, trials: int) -> int:
    """Return how many jobs a submission of so many trials has, those around them included."""
    if sweep.backend == "ray":
        return 1
    return trials + (sweep.prepare and trials > 1) + sweep.report


def _submit_arrays(sweep: Sweep, waiting: list[View], most: int) -> None:
    """Submit trials as arrays of at most so many tasks, with the jobs around them."""
    from harness.cluster.slurm import (
        before_and_after as around,  # late: it imports this module's neighbours
    )

    before: list[str] = []
    if sweep.prepare and len(waiting) > 1:
        for view in waiting:
            write_text(view.trial.run.config_file, to_yaml(view.trial.config))
        before = [around.submit_before(sweep, [view.trial for view in waiting])]
    records: list[Record] = []
    try:
        for start in range(0, len(waiting), most):
            chunk = waiting[start : start + most]
            with _marked(chunk, sweep):
                records.append(slurm.submit(
                    replace(sweep, slurm=slurm.depending_on(sweep.slurm, before)),
                    [view.trial for view in chunk],
                ))
    except UserError:
        if not records:  # nobody waits for it
            commands.scancel(before)
        raise
    if sweep.report:
        try:
            around.submit_after(sweep, [view.trial for view in waiting], records)
        except UserError as error:
            log.warning("%s; the trials were submitted, their report was not", error)


@contextmanager
def _marked(views: list[View], sweep: Sweep) -> Iterator[None]:
    """Prepare the run folders and mark them as submitted; undone when the body fails.

    The mark comes first because a job may start, and write its own status, before sbatch returns.
    """
    for view in views:
        run = view.trial.run
        # anew each time: what cannot change a result may have been given other values
        write_text(run.config_file, to_yaml(view.trial.config))
        # with its code, so that a worker of an earlier submission leaves it to one of this
        run.set_status(
            "submitted", attempts=view.status.get("attempts", 0), code=str(sweep.code or "")
        )
    try:
        yield
    except BaseException:
        for view in views:
            if view.trial.run.status()["state"] != "submitted":
                continue
            if view.status["state"] == "new":
                view.trial.run.status_file.unlink()
            else:
                write_json(view.trial.run.status_file, view.status)
        raise


def _settle_marks(sweep: Sweep) -> None:
    """Settle what launchers that were killed while submitting left behind."""
    marks = [r for r in read_records(sweep.folder) if r.state == "submitting"]
    if any(record.cluster == "slurm" for record in marks):
        jobs = commands.my_jobs()
        for record in marks:
            if record.cluster == "slurm":
                slurm.recover(record, jobs)


# --- ending ---


def cancel(sweep: Sweep) -> list[View]:
    """End every trial that is on its way, wherever it runs, and return those.

    Trials are given the time to save; their status becomes `stopped`. Raises UserError for what
    cannot be ended from here.
    """
    from harness.cluster.slurm import (
        before_and_after as around,  # late: it imports this module's neighbours
    )

    if not sweep.folder.exists():
        return []
    with held_lock(launch_lock(sweep)):
        _settle_marks(sweep)
        views = [view for view in survey(sweep) if view.state in (*ALIVE, "died")]
        records = read_records(sweep.folder)
        ours = [record for record in records if record.cluster == "slurm"]
        numbers = {n for r in ours for n in r.jobs.values()} | set(around.read_ids(sweep.folder))
        if numbers:
            commands.cancel(numbers & set(commands.my_jobs()))
        background.cancel(sweep.folder)
        for view in views:
            background.end_run(view.trial.run)
            _end_status(view.trial.run)
    return views


def _end_status(run: Run) -> None:
    status = run.status()
    if status["state"] in ("submitted", "running"):
        facts = {key: status[key] for key in ("attempts", "started") if key in status}
        run.set_status("stopped", reason="cancelled", **facts)
