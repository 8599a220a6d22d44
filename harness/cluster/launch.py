"""Submission of a sweep's missing trials, and cancellation, on every place."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol

from harness.base.errors import UserError
from harness.base.files import write_json, write_text
from harness.base.locks import held_lock, writing
from harness.base.units import counted
from harness.cluster import array_plan, snapshots
from harness.cluster.known_places import Places, all_places, place_named
from harness.cluster.pages import write_summary
from harness.cluster.place import NoAnswer, Place, Submission
from harness.cluster.pruning import prune
from harness.cluster.ray import plan as ray_plan
from harness.cluster.records import Cluster, NotYours, Record, new_record, read_records
from harness.cluster.states import ALIVE, TrialState, hidden, is_searched, launch_lock, survey
from harness.config.values import to_yaml
from harness.sweeps.reading import Sweep, Trial, with_proposed

log = logging.getLogger(__name__)

ENDING_S = 10.0
"""How long --retry-failed waits for the job of a failed trial, which ends a moment after it."""


class Plan(Protocol):
    """What a backend submits; the modules `array_plan` and `ray.plan` are such plans."""

    def jobs(self, sweep: Sweep, trials: int) -> tuple[Sweep, int]:
        """Return the sweep with the resources of one job, and the number of jobs. Raises UserError
        for what the backend cannot do."""

    def submissions(
        self, sweep: Sweep, trials: Sequence[Trial], place: Place, limit: int | None
    ) -> Iterator[Submission]:
        """Yield what is submitted; limit: how many trials run at a time on this machine. Raises
        UserError when the place has no room for even one trial."""


PLANS: Mapping[str, Plan] = {"array": array_plan, "ray": ray_plan}
"""By the sweep file's `backend`."""


def due(states: Sequence[TrialState], *, retry_failed: bool = False) -> list[TrialState]:
    """Return the trials that a launch would submit."""
    return [one for one in states if one.is_due or (retry_failed and one.state == "failed")]


def launch(
    sweep: Sweep, cluster: Cluster, *, jobs: int | None = None, retry_failed: bool = False,
    fetch: Callable[[list[Trial]], None] = lambda trials: None,
) -> list[TrialState]:
    """Submit every trial that is not complete, queued or running; returns these at once.

    cluster: name of the place. jobs: how many trials run at a time on this machine; None: as many
    as its cores allow. retry_failed: also trials that failed by themselves. fetch: called with the
    trials before they are submitted, to download what jobs need. Raises UserError when the place
    refuses; trials that were not submitted keep their former status.
    """
    places = all_places()
    place = place_named(cluster, places)
    _own_records(sweep)
    with writing(sweep.folder):
        sweep.folder.mkdir(parents=True, exist_ok=True)
    with held_lock(launch_lock(sweep)):
        _settle(sweep, places)
        if sweep.algorithm is not None:
            sweep = replace(with_proposed(sweep), probes=sweep.probes)
        states = _states(sweep, places, retry_failed)
        write_summary(sweep)
        prune(sweep.folder)
        waiting = due(states, retry_failed=retry_failed)
        records = _own_records(sweep)
        shown = {one.token for one in states}
        unseen = {r.token: why for r in records
                  if r.token in shown and (why := _unseen(r, sweep, places))}
        for line in [*_counts(states, unseen), *shared_with(sweep, records)]:
            log.warning("%s", line)
        if is_searched(sweep, places):  # the running search will start these trials itself
            return []
        if waiting or sweep.to_propose:
            fetch([*(one.trial for one in waiting), *sweep.probes])
            begun = [one.trial.signature for one in waiting if one.status.get("attempts")]
            for line in snapshots.differences(sweep, begun, records):
                log.warning("trials that have begun continue with other code: %s", line)
            sweep = replace(sweep, code=snapshots.current_code(sweep).freeze())
            _submit(sweep, waiting, place, jobs, max((r.time for r in records), default=0.0))
        else:
            with place.surrounding_jobs(sweep, [], []):
                pass  # a report of an earlier launch may be missing
    return waiting


def _own_records(sweep: Sweep) -> list[Record]:
    """Return the sweep's records. Raises NotYours if one is another user's (root can read it)."""
    records = read_records(sweep.folder)
    for record in records:
        if record.owner:
            raise NotYours(sweep.folder, record.owner)
    return records


def _states(sweep: Sweep, places: Places, retry_failed: bool) -> list[TrialState]:
    """Return the states of all trials, for --retry-failed once the jobs of failed ones have ended,
    at the latest after ENDING_S."""
    deadline = time.monotonic() + ENDING_S
    while True:
        states = survey(sweep, places, retry_failed=retry_failed)
        busy = [one for one in states if one.state == "queued" and one.status["state"] == "failed"]
        if not busy or not retry_failed:
            return states
        if time.monotonic() > deadline:
            log.warning("%s failed, but the job has not ended: not submitted again; wait for its "
                        "end, or end it with --cancel", counted(len(busy), "trial"))
            return states
        time.sleep(1.0)


def _unseen(record: Record, sweep: Sweep, places: Places) -> str:
    """Return why a submission's jobs cannot be seen from here, and what to do; "" if they can."""
    try:
        why = hidden(record, places)
    except NoAnswer as error:
        why = (f"submitted to the cluster {record.site}, which does not answer here "
               f"({str(error).splitlines()[0]})")
    return why and (f"{why}; give --cancel there, or, if that cluster is gone, delete the folders "
                    f"in {sweep.folder / 'jobs'} whose record.json names it")


def _out_of_reach(record: Record, sweep: Sweep, places: Places) -> str:
    """Return why a submission's jobs cannot be ended from here, and what to do; "" if they can."""
    if why := _unseen(record, sweep, places):
        return why
    if not record.is_from(sweep.origin):
        return f"submitted from {record.origin}; --cancel there ends them"
    return ""


def _counts(states: Sequence[TrialState], why: Mapping[str, str]) -> list[str]:
    """Return a line for each reason, with how many trials it concerns; why: by token of records."""
    reasons = [why[one.token] for one in states if one.token in why]
    return [f"{counted(reasons.count(reason), 'trial')} {reason}"
            for reason in dict.fromkeys(reasons)]


def shared_with(sweep: Sweep, records: Sequence[Record]) -> list[str]:
    """Return a line for each other folder from which a sweep of this name was submitted."""
    others = dict.fromkeys(r.origin for r in records if not r.is_from(sweep.origin))
    return [f"{sweep.folder} also has the trials of another sweep of this name, submitted from "
            f"{origin}; name=NAME keeps them apart" for origin in others]


def _submit(
    sweep: Sweep, waiting: Sequence[TrialState], place: Place, limit: int | None, newest: float
) -> None:
    """Submit trials by the sweep's plan, with the jobs before and after them. newest: the time of
    the newest record."""
    plan, trials = PLANS[sweep.backend], [one.trial for one in waiting]
    job, count = plan.jobs(sweep, len(waiting))
    place.check(job, count)
    submissions = list(plan.submissions(sweep, trials, place, limit))
    before, site = {one.trial.signature: one for one in waiting}, place.site()
    records: list[Record] = []
    with place.surrounding_jobs(job, trials, records) as after:
        for submission in submissions:
            signatures = [trial.signature for trial in submission.trials]
            with _marked([before[signature] for signature in signatures], sweep), _told(records):
                record = new_record(sweep.folder, place.name, signatures, **submission.options,
                                    function=submission.function, code=str(sweep.code or ""),
                                    origin=sweep.origin, site=site)
                record.time = newest = max(record.time, newest + 1.0)
                record.write()
                before_it = [] if submission.follows is None else [records[submission.follows]]
                behind = [number for one in before_it for number in one.jobs.values()]
                place.submit(submission, record, [*after, *submission.after, *behind])
            records.append(record)


@contextmanager
def _told(records: Sequence[Record]) -> Iterator[None]:
    """Add to a place's refusal how many trials it has taken before."""
    try:
        yield
    except UserError as error:
        if taken := sum(len(record.trials) for record in records):
            raise UserError(f"{error}; {counted(taken, 'trial')} submitted before; the same "
                            "command submits the others") from None
        raise


@contextmanager
def _marked(waiting: Sequence[TrialState], sweep: Sweep) -> Iterator[None]:
    """Prepare the run folders and mark them as submitted; undone when the body fails. The mark
    comes first because a job may start, and write its own status, before sbatch returns."""
    for one in waiting:
        # each time, because keys that do not affect the result may have changed
        write_text(one.trial.run.config_file, to_yaml(one.trial.config))
        # with the code, so that a worker of an earlier submission leaves the trial alone
        one.trial.run.set_status("submitted", attempts=one.status.get("attempts", 0),
                                 code=str(sweep.code or ""))
    try:
        yield
    except BaseException:
        for one in waiting:
            run = one.trial.run
            if run.status()["state"] != "submitted":
                continue
            if one.status["state"] == "new":
                run.status_file.unlink()
            else:
                write_json(run.status_file, one.status)
        raise


def _settle(sweep: Sweep, places: Places) -> None:
    """Settle the submissions of launchers that were killed, where their jobs can be seen."""
    marks = [record for record in read_records(sweep.folder)
             if record.state == "submitting" and not hidden(record, places)]
    for name in {record.cluster for record in marks}:
        place_named(name, places).settle([record for record in marks if record.cluster == name])


def cancel(sweep: Sweep) -> list[TrialState]:
    """End every queued or running trial, on every place, and return these.

    Trials get the time to save; their status becomes `stopped`. Raises UserError for trials that
    cannot be ended from this machine or were submitted from another folder; all others are ended.
    """
    if not sweep.folder.exists():
        return []
    _own_records(sweep)
    with held_lock(launch_lock(sweep)):
        places = all_places()
        _settle(sweep, places)
        records = _own_records(sweep)
        kept = {r.token: why for r in records if (why := _out_of_reach(r, sweep, places))}
        alive = [one for one in survey(sweep, places) if one.state in (*ALIVE, "died")]
        ended = [one for one in alive if one.token not in kept]
        runs = [one.trial.run for one in ended]
        faults, failed = [], set[str]()
        for place in places.values():
            own = [r for r in records if r.cluster == place.name and r.token not in kept]
            try:
                place.cancel(sweep, own, runs)
            except UserError as error:  # the jobs of the other places end all the same
                faults.append(str(error))
                failed |= {record.token for record in own}
                continue
            for record in own:
                if record.state != "ended":
                    record.write("ended")
        for run in (one.trial.run for one in ended if one.token not in failed):
            status = run.status()
            if status["state"] in ("submitted", "running"):
                facts = {key: status[key] for key in ("attempts", "started") if key in status}
                run.set_status("stopped", reason="cancelled", **facts)
    if lines := [*faults, *_counts(alive, kept)]:
        raise UserError("\n".join(lines))
    return ended
