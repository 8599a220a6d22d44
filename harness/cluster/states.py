"""The state of each trial of a sweep, decided in this file alone.

The run folder is the truth. A place is asked, once for all its trials, only about those whose
folder does not already show how they ended.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from harness.base.locks import lock_holder
from harness.cluster.causes import with_next_step
from harness.cluster.known_places import Places, all_places, place_named
from harness.cluster.place import Job
from harness.cluster.records import EVERY, Record, read_records
from harness.runs.run import CLAIM
from harness.sweeps.reading import Sweep, Trial, expand, with_proposed

State = Literal[
    "missing", "queued", "running", "stopped", "died", "failed", "ended early", "complete"
]
ALIVE = ("queued", "running")
DONE = ("complete", "ended early")


@dataclass(frozen=True)
class TrialState:
    """A trial as it is now."""

    trial: Trial
    state: State
    status: dict[str, Any]
    note: str = ""
    """Why it waits, where it runs, or why it died."""

    @property
    def is_due(self) -> bool:
        """Whether a launch would submit it; --retry-failed adds those that failed by themselves."""
        if self.state == "failed":
            return bool(self.status.get("hindered"))
        return self.state not in (*ALIVE, *DONE)

    @property
    def depends_on_its_job(self) -> bool:
        """Whether an existing job changes the state. The job of a trial that failed by a lost rank
        may still run, or may have been requeued."""
        return self.is_due and self.state != "missing"


def survey(sweep: Sweep, places: Places | None = None) -> list[TrialState]:
    """Return every trial's state, in the sweep's order. Raises UserError when a file cannot be
    read, or when a scheduler that has jobs does not answer."""
    places = places or all_places()
    was_launching = lock_holder(launch_lock(sweep)) is not None
    records = read_records(sweep.folder)
    newest = {signature: record for record in records for signature in record.trials}
    if sweep.algorithm is not None:  # points that were proposed since
        sweep = with_proposed(sweep)
        if search := _newest_search(records):
            newest = {trial.signature: search for trial in sweep.trials} | newest
    states = {trial.signature: _by_folder(sweep, trial) for trial in expand(sweep)}
    uncertain = {
        key: newest[key] for key, one in states.items() if key in newest and one.depends_on_its_job
    }
    if uncertain:
        jobs = _ask(places, "jobs", uncertain)
        is_launching = was_launching or lock_holder(launch_lock(sweep)) is not None
        for key, record in uncertain.items():
            # read again: a job that is gone now may have ended well since the first look
            one = _by_folder(sweep, states[key].trial)
            states[key] = _with_job(one, record, jobs.get(key), is_launching)
    dead = {key: newest[key] for key, s in states.items() if s.state == "died" and key in newest}
    for key, death in _ask(places, "deaths", dead).items():
        if death:
            begun = states[key].status["state"] != "submitted"
            note = with_next_step(death, sweep.experiment.advice, begun=begun)
            states[key] = replace(states[key], note=note)
    return list(states.values())


def _ask(
    places: Places, question: Literal["jobs", "deaths"], records: Mapping[str, Record]
) -> dict[str, Any]:
    """Ask each place once about the trials whose newest record is its own."""
    answers: dict[str, Any] = {}
    for name in {record.cluster for record in records.values()}:
        own = {key: record for key, record in records.items() if record.cluster == name}
        answers |= getattr(place_named(name, places), question)(own)
    return answers


def _by_folder(sweep: Sweep, trial: Trial) -> TrialState:
    """Return the state that the run folder alone shows."""
    status = trial.run.status()
    if trial.run.is_complete():
        return TrialState(trial, "complete", status)
    if any(lock_holder(lock) for lock in (trial.run.lock_file, trial.run.folder / CLAIM)):
        return TrialState(trial, "running", status)
    match status["state"]:
        case "failed":
            note = with_next_step(status.get("error", ""), sweep.experiment.advice)
            return TrialState(trial, "failed", status, note)
        case "new":
            return TrialState(trial, "missing", status)
        case "submitted":
            return TrialState(trial, "died", status, "its job ended before it began")
        case "running":
            return TrialState(trial, "died", status, "its process ended without a message")
    # with another backend or no scheduler, a trial that a search pruned may continue
    is_pruned = status.get("pruned") and sweep.backend == "ray" and sweep.scheduler is not None
    state: State = "ended early" if is_pruned else "stopped"
    return TrialState(trial, state, status, status.get("reason", ""))


def _with_job(one: TrialState, record: Record, job: Job | None, is_launching: bool) -> TrialState:
    """Return the state of a trial whose job is `job`, None where there is none."""
    if not one.depends_on_its_job:
        return one
    if job is not None:
        if one.state == "failed":
            return replace(one, state="queued", note=f"its job has not ended; {one.note}")
        return replace(one, state=job.state, note=job.note)
    if one.state == "failed":
        return one
    if record.state == "submitting":
        if is_launching:
            return replace(one, state="queued", note="being submitted")
        return replace(one, state="died", note="the launcher was killed before it stored the job")
    if one.status["state"] == "submitted":
        return replace(one, note=f"{one.note}; see {record.folder}")
    return one


def is_searched(sweep: Sweep, places: Places | None = None) -> bool:
    """Whether a search that proposes points of the sweep is queued or running somewhere."""
    record = _newest_search(read_records(sweep.folder)) if sweep.algorithm is not None else None
    if record is None or record.state == "submitting":
        return record is not None
    return bool(place_named(record.cluster, places).jobs({EVERY: record}))


def _newest_search(records: Sequence[Record]) -> Record | None:
    return next((r for r in reversed(records) if r.options.get("backend") == "ray"), None)


def launch_lock(sweep: Sweep) -> Path:
    """Return the lock file that keeps a second launcher out of a sweep."""
    return sweep.folder / "launch.lock"
