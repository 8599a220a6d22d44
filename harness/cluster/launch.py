"""A sweep as independent trials: what state each is in, submitting what is missing, ending it.

The state of a trial is what its run folder says. SLURM is asked, once for all trials, only whether
a job is still there for the trials whose folder does not already say that they are over.
"""

import logging
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from harness.base.errors import UserError
from harness.base.files import write_json, write_text
from harness.base.locks import held_lock, lock_holder, writing
from harness.cluster import causes, shares, snapshots
from harness.cluster.local import worker as local
from harness.cluster.records import EVERY, Cluster, Record, read_records
from harness.cluster.slurm import script as slurm
from harness.cluster.slurm import site
from harness.config.build import to_yaml
from harness.runs.run import CLAIM, Run
from harness.sweeps.reading import Sweep, Trial, expand, with_proposed

log = logging.getLogger(__name__)

Shown = Literal[
    "missing", "queued", "running", "stopped", "died", "failed", "ended early", "complete"
]
ALIVE = ("queued", "running")
DONE = ("complete", "ended early")
SQUEUE_EVERY_S = 15.0
"""How old an answer of squeue may be while following."""


@dataclass(frozen=True)
class View:
    """A trial as it is now."""

    trial: Trial
    state: Shown
    status: dict[str, Any]
    note: str = ""
    """Why it waits, where it runs, or what it died of."""

    @property
    def is_due(self) -> bool:
        """Whether a launch would submit it; what failed by its own fault waits to be asked for."""
        if self.state == "failed":
            return bool(self.status.get("hindered"))
        return self.state not in (*ALIVE, *DONE)


@dataclass
class Queue:
    """What schedulers hold of a sweep, asked for at most every few seconds."""

    sweep: Sweep
    max_age_s: float = 0.0
    patient: bool = False
    """Whether a cluster that does not answer is waited for instead of an error."""
    _jobs: dict[str, tuple[str, str, str]] | None = None
    _asked: float = float("-inf")
    _current: bool = False
    _deaths: dict[str, str] = field(default_factory=dict)

    def jobs(self) -> dict[str, tuple[str, str, str]] | None:
        """Return the user's SLURM jobs (see `slurm.my_jobs`), None as long as nobody knows."""
        if not self._current and time.monotonic() - self._asked >= self.max_age_s:
            try:
                self._jobs = slurm.my_jobs()
            except UserError as error:
                if not self.patient:
                    raise
                log.warning("%s", str(error).splitlines()[0])
            self._asked = time.monotonic()
        self._current = True
        return self._jobs

    def begin(self) -> None:
        """Begin to look at all trials: the cluster is asked once for them, at most."""
        self._current = False

    def deaths(self, jobs: dict[str, Path]) -> dict[str, str]:
        """Return why SLURM jobs died (see `causes.deaths`), each looked for once."""
        if new := {job: folder for job, folder in jobs.items() if job not in self._deaths}:
            found = causes.deaths(new, self.sweep.experiment.advice)
            self._deaths |= dict.fromkeys(new, "") | found
        return {job: self._deaths[job] for job in jobs}


# --- looking ---


def survey(sweep: Sweep, queue: Queue | None = None) -> list[View]:
    """Return every trial's state, in the sweep's order.

    Raises UserError when a file cannot be read or the cluster that has jobs does not answer.
    """
    queue = queue or Queue(sweep)
    queue.begin()
    records = read_records(sweep.folder)
    newest = {signature: record for record in records for signature in record.trials}
    if sweep.algorithm is not None:  # points that were proposed since
        sweep = with_proposed(sweep)
        if search := _newest_search(records):
            newest = {trial.signature: search for trial in sweep.trials} | newest
    workers: dict[str, str | None] = {}
    views = []
    for trial in expand(sweep):
        record = newest.get(trial.signature)
        if record is not None and record.cluster == "local" and record.token not in workers:
            workers[record.token] = _waits_for(record, sweep.folder)
        views.append(_view(trial, record, queue, workers))
    return _with_deaths(views, newest, queue)


def _waits_for(record: Record, folder: Path) -> str | None:
    """Say what a submission's workers wait for on this machine; None when none lives."""
    lives = local.living_workers(folder, record.token)
    if not any(worker["host"] == socket.gethostname() for worker in lives):
        return "" if lives else None  # another machine's GPUs cannot be seen from here
    return shares.waits_for(record, local.living_workers(folder))


def _with_deaths(views: list[View], records: dict[str, Record], queue: Queue) -> list[View]:
    """Say of trials whose job or process died what it died of, where that can be found."""
    told: dict[str, str] = {}
    dead: dict[str, tuple[str, Path]] = {}
    for view in views:
        signature = view.trial.signature
        record = records.get(signature)
        if view.state != "died" or record is None:
            continue
        folder = Path(record.folder)
        if job := record.job_of(signature):
            dead[signature] = job, folder
        elif record.cluster == "local":
            words = causes.last_words(folder.glob(f"{signature}.*.log"))
            words = words or causes.last_words(folder.glob("*_log.err"), about=signature)
            told[signature] = causes.with_next_step("".join(words), queue.sweep.experiment.advice)
    if dead:
        found = queue.deaths(dict(dead.values()))
        told |= {signature: found[job] for signature, (job, _) in dead.items()}
    return [replace(v, note=told.get(v.trial.signature) or v.note) for v in views]


def _view(
    trial: Trial, record: Record | None, queue: Queue, workers: dict[str, str | None]
) -> View:
    """workers: by submission what its living workers wait for; None where none lives."""
    status = trial.run.status()
    state = status["state"]
    if trial.run.is_complete():
        return View(trial, "complete", status)
    for lock in (trial.run.lock_file, trial.run.folder / CLAIM):
        if lock_holder(lock):
            return View(trial, "running", status)
    if state == "failed":
        told = causes.with_next_step(status.get("error", ""), queue.sweep.experiment.advice)
        if status.get("hindered") and _is_in_queue(trial, record, queue):
            return View(trial, "queued", status, f"its job has not ended; {told}")
        return View(trial, "failed", status, told)
    if state == "new":
        return View(trial, "missing", status)
    searched = queue.sweep.backend == "ray" and queue.sweep.scheduler is not None
    if status.get("pruned") and searched:  # the job of the search may go on with others
        return View(trial, "ended early", status, status.get("reason", ""))
    if record is not None and record.cluster == "slurm":
        if record.state == "submitting":
            if lock_holder(launch_lock(queue.sweep)):
                return View(trial, "queued", status, "being submitted")
            return View(trial, "died", status, "the launcher was ended before it knew the job")
        jobs = queue.jobs()
        if jobs is None:
            return View(trial, "queued", status, "SLURM does not answer")
        if job := jobs.get(record.job_of(trial.signature)):
            job_state, reason, _ = job
            if job_state == "PENDING":
                return View(trial, "queued", status, "" if reason == "None" else reason)
            if record.options.get("backend") == "ray":
                return View(trial, "queued", status, "waits in the search")
            return View(trial, "running", status, job_state)
    if state == "submitted":
        if record is not None and (note := workers.get(record.token)) is not None:
            return View(trial, "queued", status, note)
        hint = f"; see {record.folder}" if record is not None else ""
        return View(trial, "died", status, f"its job ended before it began{hint}")
    if state == "running":
        return View(trial, "died", status, "its process ended without a word")
    return View(trial, "stopped", status, status.get("reason", ""))


def _is_in_queue(trial: Trial, record: Record | None, queue: Queue) -> bool:
    """Whether SLURM still has a trial's job: other ranks may not have ended, or SLURM may have put
    it back into the queue after a node was lost."""
    if record is None or record.cluster != "slurm":
        return False
    return record.job_of(trial.signature) in (queue.jobs() or {})


def _newest_search(records: list[Record]) -> Record | None:
    return next((r for r in reversed(records) if r.options.get("backend") == "ray"), None)


def is_searched(sweep: Sweep, queue: Queue | None = None) -> bool:
    """Whether a search that proposes points of the sweep waits or goes on somewhere."""
    record = _newest_search(read_records(sweep.folder)) if sweep.algorithm is not None else None
    if record is None:
        return False
    if record.cluster == "local":
        return bool(local.living_workers(sweep.folder, record.token))
    jobs = (queue or Queue(sweep)).jobs()
    # while nobody knows, it may
    return jobs is None or record.job_of(EVERY) in jobs or record.state == "submitting"


# --- launching ---


def launch_lock(sweep: Sweep) -> Path:
    """The file that keeps two launchers out of one sweep."""
    return sweep.folder / "launch.lock"


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
            from harness.cluster.ray import driver as ray_search

            with _marked(waiting, sweep):
                ray_search.submit(sweep, [v.trial for v in waiting], cluster=cluster, jobs=jobs)
        elif waiting and cluster == "local":
            with _marked(waiting, sweep):
                local.submit(sweep, [view.trial for view in waiting], jobs=jobs)
        elif waiting:
            most = slurm.max_array_size()
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
    from harness.cluster.slurm import around  # late: it imports this module's neighbours

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
            slurm.scancel(before)
        raise
    if sweep.report:
        try:
            around.submit_after(sweep, [view.trial for view in waiting], records)
        except UserError as error:
            log.warning("%s; the trials were submitted, their report was not", error)


def write_summary(sweep: Sweep) -> None:
    """Write runs/<name>/sweep.json: what the sweep is and which trials it has, in order."""
    write_json(sweep.folder / "sweep.json", summary(sweep, sweep.trials))


def summary(sweep: Sweep, trials: Iterable[Trial]) -> dict[str, Any]:
    """Return what a sweep is, and these trials of it."""
    return {
        "file": sweep.file, "name": sweep.name, "backend": sweep.backend, "metric": sweep.metric,
        "mode": sweep.mode, "objectives": dict(sweep.objectives),
        "trials": [{"point": t.point, "seed": t.seed, "signature": t.signature} for t in trials],
    }


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
        jobs = slurm.my_jobs()
        for record in marks:
            if record.cluster == "slurm":
                slurm.recover(record, jobs)


# --- ending ---


def cancel(sweep: Sweep) -> list[View]:
    """End every trial that is on its way, wherever it runs, and return those.

    Trials are given the time to save; their status becomes `stopped`. Raises UserError for what
    cannot be ended from here.
    """
    from harness.cluster.slurm import around  # late: it imports this module's neighbours

    if not sweep.folder.exists():
        return []
    with held_lock(launch_lock(sweep)):
        _settle_marks(sweep)
        views = [view for view in survey(sweep) if view.state in (*ALIVE, "died")]
        records = read_records(sweep.folder)
        ours = [record for record in records if record.cluster == "slurm"]
        numbers = {n for r in ours for n in r.jobs.values()} | set(around.read_ids(sweep.folder))
        if numbers:
            slurm.cancel(numbers & set(slurm.my_jobs()))
        local.cancel(sweep.folder)
        for view in views:
            local.end_run(view.trial.run)
            _end_status(view.trial.run)
    return views


def _end_status(run: Run) -> None:
    status = run.status()
    if status["state"] in ("submitted", "running"):
        facts = {key: status[key] for key in ("attempts", "started") if key in status}
        run.set_status("stopped", reason="cancelled", **facts)
