"""The state of each trial of a sweep, decided in this file alone.

The run folder is the truth. A place is asked, once for all its trials, only about those whose
folder does not already show how they ended. Any living job that a record names counts: hosts'
clocks cannot tell which record is the newest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from harness.base.errors import UserError
from harness.base.locks import lock_holder
from harness.cluster.causes import with_next_step
from harness.cluster.known_places import Places, all_places, place_named
from harness.cluster.place import Job
from harness.cluster.records import EVERY, NotYours, Record, read_records
from harness.runs.run import CLAIM
from harness.sweeps.reading import Sweep, Trial, expand, with_proposed

State = Literal[
    "missing", "queued", "running", "stopped", "died", "failed", "unreadable", "ended early",
    "complete",
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
    token: str = ""
    """Of the record that names its job, where that is known."""

    @property
    def is_due(self) -> bool:
        """Whether a launch would submit it; --retry-failed adds those that failed by themselves."""
        if self.state == "failed":
            return bool(self.status.get("hindered"))
        return self.state not in (*ALIVE, *DONE, "unreadable")


def survey(
    sweep: Sweep, places: Places | None = None, *, retry_failed: bool = False,
    faults: list[str] | None = None,
) -> list[TrialState]:
    """Return every trial's state, in the sweep's order.

    retry_failed: find out too whether the jobs of failed trials have ended. faults: gets what is
    wrong with files that cannot be read, whose trials are then unreadable; None: UserError. Raises
    UserError also when a scheduler that has jobs does not answer.
    """
    places = places or all_places()
    was_launching = lock_holder(launch_lock(sweep)) is not None
    try:
        records, unseen = read_records(sweep.folder), ""
    except NotYours as error:
        records, unseen = [], f"the sweep belongs to {error.owner}, who alone can see its jobs"
    except UserError as error:
        if faults is None:
            raise
        faults.append(str(error))
        records, unseen = [], "its jobs are not known, as a record of them cannot be read"
    if sweep.algorithm is not None:  # points that were proposed since
        sweep = with_proposed(sweep)
    trials = expand(sweep)
    own = _records_of(trials, records, is_proposed=sweep.algorithm is not None)
    states = {trial.signature: _first_look(sweep, trial, own[trial.signature], faults)
              for trial in trials}
    uncertain = {key: own[key] for key, one in states.items() if _is_uncertain(one, retry_failed)}
    if unseen:
        return [replace(one, state="queued", note=unseen)
                if key in uncertain and one.state != "missing" else one
                for key, one in states.items()]
    if any(uncertain.values()):
        jobs = living_jobs(uncertain, places)
        is_launching = was_launching or lock_holder(launch_lock(sweep)) is not None
        for key, known in uncertain.items():
            # read again: a job that is gone now may have ended well since the first look
            one = _first_look(sweep, states[key].trial, known, faults)
            if known and _is_uncertain(one, retry_failed):
                one = _with_job(one, known, jobs.get(key), is_launching)
            states[key] = one
    dead = {key: own[key][-1] for key, s in states.items() if s.state == "died" and own[key]}
    for place in places.values():
        asked = {key: record for key, record in dead.items() if record.cluster == place.name}
        for key, death in (place.deaths(asked) if asked else {}).items():
            if death:
                begun = states[key].status["state"] != "submitted"
                note = with_next_step(death, sweep.experiment.advice, begun=begun)
                states[key] = replace(states[key], note=note)
    return list(states.values())


def _records_of(
    trials: Sequence[Trial], records: Sequence[Record], *, is_proposed: bool
) -> dict[str, list[Record]]:
    """Return the records of each trial. is_proposed: a search may run trials that its record, which
    is older, does not list."""
    searches = _searches(records) if is_proposed else []
    own: dict[str, list[Record]] = {trial.signature: list(searches) for trial in trials}
    tokens = {record.token for record in searches}
    for record in records:
        for signature in record.trials if record.token not in tokens else ():
            if signature in own:
                own[signature].append(record)
    return own


def _is_uncertain(one: TrialState, retry_failed: bool) -> bool:
    """Return whether a job may exist and change the state. The job of a trial that failed may still
    run on another rank, or may have been requeued; that of a missing one may wait, if somebody
    deleted the run's folder."""
    return one.is_due or (retry_failed and one.state == "failed")


def living_jobs(records: Mapping[str, Sequence[Record]], places: Places) -> dict[str, Job]:
    """Return the living jobs of trials; each place is asked once. A job that cannot be seen from
    here counts as queued."""
    every = {record.token: record for own in records.values() for record in own}
    why = {token: hidden(record, places) for token, record in every.items()}
    found: dict[str, Job] = {}
    for name in {record.cluster for record in every.values()}:
        asked = {key: [r for r in own if r.cluster == name and not why[r.token] and
                       r.state != "ended"] for key, own in records.items()}
        found |= place_named(name, places).jobs({key: own for key, own in asked.items() if own})
    for key, own in records.items():
        unseen = next((record.token for record in own if why[record.token]), None)
        if key not in found and unseen:
            found[key] = Job("queued", why[unseen], unseen)
    return found


def hidden(record: Record, places: Places) -> str:
    """Return why a submission's jobs cannot be seen from here; "" if they can, or have ended."""
    if record.state == "ended":
        return ""
    if record.owner:
        return f"submitted by {record.owner}, who alone can see the jobs"
    here = place_named(record.cluster, places).site() if record.site else ""
    if here and here != record.site:
        return f"submitted to the cluster {record.site}, which cannot be asked from here ({here})"
    return ""


def _first_look(
    sweep: Sweep, trial: Trial, records: Sequence[Record], faults: list[str] | None
) -> TrialState:
    """Return what `_by_folder` does; with `faults`, `unreadable` for a run with a damaged file."""
    try:
        one = _by_folder(sweep, trial, records)
        if faults is not None and one.state == "complete":
            trial.run.result()
    except UserError as error:
        if faults is None:
            raise
        faults.append(str(error))
        return TrialState(trial, "unreadable", {}, str(error))
    return one


def _by_folder(sweep: Sweep, trial: Trial, records: Sequence[Record]) -> TrialState:
    """Return the state that the run folder alone shows. records: the trial's."""
    status = trial.run.status()
    if trial.run.is_complete():
        return TrialState(trial, "complete", status)
    for lock in (trial.run.lock_file, trial.run.folder / CLAIM):
        if holder := lock_holder(lock):
            named = [r for r in records if holder.get("job") in r.jobs.values()] or records
            return TrialState(trial, "running", status, token=named[-1].token if named else "")
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


def _with_job(
    one: TrialState, records: Sequence[Record], job: Job | None, is_launching: bool
) -> TrialState:
    """Return the state of a trial whose job is `job`, None where there is none; records: its own,
    at least one."""
    if job is not None:
        if one.state == "failed":
            note = f"its job has not ended; {one.note}"
            return replace(one, state="queued", note=note, token=job.token)
        return replace(one, state=job.state, note=job.note, token=job.token)
    if one.state in ("failed", "missing"):
        return one
    if unknown := [record for record in records if record.state == "submitting"]:
        if is_launching:
            return replace(one, state="queued", note="being submitted", token=unknown[-1].token)
        return replace(one, state="died", note="the launcher was killed before it stored the job")
    if one.status["state"] == "submitted":
        return replace(one, note=f"{one.note}; see {records[-1].folder}")
    return one


def is_searched(sweep: Sweep, places: Places | None = None) -> bool:
    """Whether a search that proposes points of the sweep is queued or running somewhere."""
    if sweep.algorithm is None:
        return False
    try:
        searches = _searches(read_records(sweep.folder))
    except NotYours:
        return False
    if any(record.state == "submitting" for record in searches):
        return True
    return bool(living_jobs({EVERY: searches}, places or all_places()))


def _searches(records: Sequence[Record]) -> list[Record]:
    return [record for record in records if record.options.get("backend") == "ray"]


def launch_lock(sweep: Sweep) -> Path:
    """Return the lock file that keeps a second launcher out of a sweep."""
    return sweep.folder / "launch.lock"
