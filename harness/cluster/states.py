"""What state each trial of a sweep is in, decided here and nowhere else.

The run folder is the truth. A place is asked, once for all its trials, only about those whose
folder does not already say that they are over.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from harness.base.locks import lock_holder
from harness.cluster import causes
from harness.cluster.place import Job
from harness.cluster.places import Places, all_places, place_named
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
    """Why it waits, where it runs, or what it died of."""

    @property
    def is_due(self) -> bool:
        """Whether a launch would submit it; --retry-failed also takes what failed by its fault."""
        if self.state == "failed":
            return bool(self.status.get("hindered"))
        return self.state not in (*ALIVE, *DONE)


def survey(sweep: Sweep, places: Places | None = None) -> list[TrialState]:
    """Return every trial's state, in the sweep's order.

    Raises UserError when a file cannot be read, or when a scheduler that has jobs does not answer.
    """
    places = places or all_places()
    was_launching = lock_holder(launch_lock(sweep)) is not None
    records = read_records(sweep.folder)
    newest = {signature: record for record in records for signature in record.trials}
    if sweep.algorithm is not None:  # points that were proposed since
        sweep = with_proposed(sweep)
        if search := _newest_search(records):
            newest = {trial.signature: search for trial in sweep.trials} | newest
    states = [_by_folder(sweep, trial) for trial in expand(sweep)]
    asked = {
        one.trial.signature: newest[one.trial.signature] for one in states
        if one.trial.signature in newest and _depends_on_its_job(one)
    }
    if asked:
        jobs = _ask(places, "jobs", asked)
        is_launching = was_launching or lock_holder(launch_lock(sweep)) is not None
        for index, one in enumerate(states):
            if record := asked.get(one.trial.signature):
                # read again: a job that is gone now may have ended well since the first look
                one = _by_folder(sweep, one.trial)
                states[index] = _with_job(one, record, jobs.get(one.trial.signature), is_launching)
    deaths = _ask(places, "deaths", {
        one.trial.signature: newest[one.trial.signature] for one in states
        if one.state == "died" and one.trial.signature in newest
    })
    return [
        replace(one, note=causes.with_next_step(death, sweep.experiment.advice))
        if (death := deaths.get(one.trial.signature)) else one
        for one in states
    ]


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
    """Return what the run folder alone says."""
    status = trial.run.status()
    if trial.run.is_complete():
        return TrialState(trial, "complete", status)
    if any(lock_holder(lock) for lock in (trial.run.lock_file, trial.run.folder / CLAIM)):
        return TrialState(trial, "running", status)
    reason, advice = status.get("reason", ""), sweep.experiment.advice
    match status["state"]:
        case "failed":
            return TrialState(
                trial, "failed", status, causes.with_next_step(status.get("error", ""), advice)
            )
        case "new":
            return TrialState(trial, "missing", status)
        case "submitted":
            return TrialState(trial, "died", status, "its job ended before it began")
        case "running":
            return TrialState(trial, "died", status, "its process ended without a word")
    # the job of the search may go on with others
    is_pruned = status.get("pruned") and sweep.backend == "ray" and sweep.scheduler is not None
    return TrialState(trial, "ended early" if is_pruned else "stopped", status, reason)


def _depends_on_its_job(one: TrialState) -> bool:
    """Whether a job that is still there makes this another state.

    That of a trial that a lost rank hindered may not have ended, or may have been requeued.
    """
    if one.state == "failed":
        return bool(one.status.get("hindered"))
    return one.state in ("died", "stopped")


def _with_job(
    one: TrialState, record: Record, job: Job | None, is_launching: bool
) -> TrialState:
    """Return the state in view of the trial's job, None where there is none."""
    if not _depends_on_its_job(one):
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
        return replace(one, state="died", note="the launcher was ended before it knew the job")
    if one.status["state"] == "submitted":
        return replace(one, note=f"{one.note}; see {record.folder}")
    return one


def is_searched(sweep: Sweep, places: Places | None = None) -> bool:
    """Whether a search that proposes points of the sweep is queued or running somewhere."""
    record = _newest_search(read_records(sweep.folder)) if sweep.algorithm is not None else None
    if record is None:
        return False
    return record.state == "submitting" or bool(
        place_named(record.cluster, places).jobs({EVERY: record})
    )


def _newest_search(records: Sequence[Record]) -> Record | None:
    return next((r for r in reversed(records) if r.options.get("backend") == "ray"), None)


def launch_lock(sweep: Sweep) -> Path:
    """The file that keeps two launchers out of one sweep."""
    return sweep.folder / "launch.lock"
