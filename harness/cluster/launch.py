"""Submission of a sweep's missing trials, and cancellation, on every place."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol

from harness.base.files import write_json, write_text
from harness.base.locks import held_lock, writing
from harness.cluster import array_plan, snapshots
from harness.cluster.known_places import all_places, place_named
from harness.cluster.pages import write_summary
from harness.cluster.place import Place, Submission
from harness.cluster.pruning import prune
from harness.cluster.ray import plan as ray_plan
from harness.cluster.records import Cluster, Record, new_record, read_records
from harness.cluster.states import ALIVE, TrialState, is_searched, launch_lock, survey
from harness.config.values import to_yaml
from harness.sweeps.reading import Sweep, Trial, with_proposed

log = logging.getLogger(__name__)


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
    place = place_named(cluster)
    with writing(sweep.folder):
        sweep.folder.mkdir(parents=True, exist_ok=True)
    with held_lock(launch_lock(sweep)):
        _settle(sweep)
        if sweep.algorithm is not None:
            sweep = replace(with_proposed(sweep), probes=sweep.probes)
        states = survey(sweep)
        write_summary(sweep)
        prune(sweep.folder)
        waiting = due(states, retry_failed=retry_failed)
        if is_searched(sweep):  # the running search will start these trials itself
            return []
        if waiting or sweep.to_propose:
            fetch([*(one.trial for one in waiting), *sweep.probes])
            begun = [one.trial.signature for one in waiting if one.status.get("attempts")]
            for line in snapshots.differences(sweep, begun, read_records(sweep.folder)):
                log.warning("trials that have begun continue with other code: %s", line)
            sweep = replace(sweep, code=snapshots.current_code(sweep).freeze())
            _submit(sweep, waiting, place, jobs)
    return waiting


def _submit(sweep: Sweep, waiting: Sequence[TrialState], place: Place, limit: int | None) -> None:
    """Submit trials by the sweep's plan, with the jobs before and after them."""
    plan, trials = PLANS[sweep.backend], [one.trial for one in waiting]
    job, count = plan.jobs(sweep, len(waiting))
    place.check(job, count)
    submissions = list(plan.submissions(sweep, trials, place, limit))
    before = {one.trial.signature: one for one in waiting}
    records: list[Record] = []
    with place.surrounding_jobs(job, trials, records) as after:
        for submission in submissions:
            signatures = [trial.signature for trial in submission.trials]
            with _marked([before[signature] for signature in signatures], sweep):
                record = new_record(sweep.folder, place.name, signatures, **submission.options,
                                    function=submission.function, code=str(sweep.code or ""))
                record.write()
                place.submit(submission, record, after)
            records.append(record)


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


def _settle(sweep: Sweep) -> None:
    """Settle the submissions of launchers that were killed."""
    marks = [record for record in read_records(sweep.folder) if record.state == "submitting"]
    for name in {record.cluster for record in marks}:
        place_named(name).settle([record for record in marks if record.cluster == name])


def cancel(sweep: Sweep) -> list[TrialState]:
    """End every queued or running trial, on every place, and return these.

    Trials get the time to save; their status becomes `stopped`. Raises UserError for trials that
    cannot be ended from this machine.
    """
    if not sweep.folder.exists():
        return []
    with held_lock(launch_lock(sweep)):
        _settle(sweep)
        ended = [one for one in survey(sweep) if one.state in (*ALIVE, "died")]
        runs = [one.trial.run for one in ended]
        for place in all_places().values():
            place.cancel(sweep, runs)
        for run in runs:
            status = run.status()
            if status["state"] in ("submitted", "running"):
                facts = {key: status[key] for key in ("attempts", "started") if key in status}
                run.set_status("stopped", reason="cancelled", **facts)
    return ended
