"""What state each trial of a sweep is in: what its folder says, then what the places say."""

import socket
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from harness.base.errors import UserError
from harness.base.locks import lock_holder
from harness.cluster import causes
from harness.cluster.launch import log
from harness.cluster.local import background, shares
from harness.cluster.records import EVERY, Record, read_records
from harness.cluster.slurm import commands, deaths
from harness.runs.run import CLAIM
from harness.sweeps.reading import Sweep, Trial, expand, with_proposed

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
        """Return the user's SLURM jobs (see `commands.my_jobs`), None as long as nobody knows."""
        if not self._current and time.monotonic() - self._asked >= self.max_age_s:
            try:
                self._jobs = commands.my_jobs()
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
        """Return why SLURM jobs died (see `deaths.deaths`), each looked for once."""
        if new := {job: folder for job, folder in jobs.items() if job not in self._deaths}:
            self._deaths |= dict.fromkeys(new, "") | deaths.deaths(new)
        return {job: self._deaths[job] for job in jobs}


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
    lives = background.living_workers(folder, record.token)
    if not any(worker["host"] == socket.gethostname() for worker in lives):
        return "" if lives else None  # another machine's GPUs cannot be seen from here
    return shares.waits_for(record, background.living_workers(folder))


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
            told[signature] = causes.with_next_step("".join(words))
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
        told = causes.with_next_step(status.get("error", ""))
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
        return bool(background.living_workers(sweep.folder, record.token))
    jobs = (queue or Queue(sweep)).jobs()
    # while nobody knows, it may
    return jobs is None or record.job_of(EVERY) in jobs or record.state == "submitting"


def launch_lock(sweep: Sweep) -> Path:
    """The file that keeps two launchers out of one sweep."""
    return sweep.folder / "launch.lock"
