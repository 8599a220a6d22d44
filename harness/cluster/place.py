"""Where jobs run, behind one protocol: SLURM, this machine, and the next one (PBS, Kubernetes).

A place is a folder beside this file, a line in `known_places.py`, and its name in `records.Cluster`
and `launch/slurm.py`. A plan (`array_plan.py`, `ray/plan.py`) decides what is submitted, and works
with every place.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from harness.base.errors import UserError
from harness.cluster.records import Cluster, Record
from harness.runs.run import Run
from harness.sweeps.keys import Resources
from harness.sweeps.reading import Sweep, Trial


class NoAnswer(UserError):
    """A scheduler's command is missing, fails, or does not return."""


@dataclass(frozen=True)
class Room:
    """How many trials a place runs at the same time, and the resources of each."""

    resources: Resources
    slots: int | None = None
    """None: the scheduler decides."""
    pool: dict[str, Any] | None = None
    """The GPUs and cores of this machine that trials claim (see `claims.Pool`)."""
    most_jobs: int = 10**6
    """The largest number of jobs in one submission."""
    at_once: int | None = None
    """How many of the jobs may run at the same time; None: no limit."""
    after: Sequence[str] = ()
    """Ids of jobs that must end first: with them, more would run at the same time."""


@dataclass(frozen=True)
class Submission:
    """Jobs that a place gets at once."""

    sweep: Sweep
    """Its `resources` are those of each job."""
    trials: Sequence[Trial]
    function: str = ""
    """Dotted name of the function of one job for all trials, called with the record's file in every
    task; "": one job per trial, whose ranks execute its run."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the jobs; stored in the record. `at_once`: how many may run at the same time."""
    after: Sequence[str] = ()
    """Ids of jobs that must end first."""
    follows: int | None = None
    """The number of an earlier submission of this launch whose jobs must end first."""


@dataclass(frozen=True)
class Job:
    """A queued or running job."""

    state: Literal["queued", "running"]
    note: str = ""
    """Why it waits, or the place's own word for its state."""
    token: str = ""
    """Of the record that names it."""


@dataclass(frozen=True)
class Task:
    """One task of a job, from inside; a job has one on each node."""

    number: int
    attempt: str
    """Names this attempt: a job that was requeued keeps its id."""
    hosts: tuple[str, ...] = ()
    """All hosts of the job; empty where there is only this one."""


class Place(Protocol):
    """Where jobs run. Methods that take records see only those of this place. `check`, `preview`,
    `site`, `surrounding_jobs` and `requeue` do nothing unless a place defines them."""

    name: Cluster
    title: str
    """Completes "4 trials run ...", such as "on this machine"."""

    # --- before anything is submitted ---

    def check(self, sweep: Sweep, jobs: int) -> None:
        """Raise UserError for jobs that this place would refuse; `sweep.resources` are per job."""
        return

    def room(self, sweep: Sweep, limit: int | None, trials_per_gpu: int = 1) -> Room:
        """Return how many trials fit at the same time; limit: the user's maximum, None for none.
        Raises UserError when there is no room for even one."""

    def describe(self, sweep: Sweep, trials: int, limit: int | None) -> str:
        """Return a line on the resources that the trials get here; "" for none."""

    def preview(self, sweep: Sweep, jobs: int) -> str:
        """Return what the scheduler would get for this many jobs; "" for nothing."""
        return ""

    # --- submission, states, cancellation ---

    def site(self) -> str:
        """Return the name of the cluster that answers; "" where there is only one."""
        return ""

    def surrounding_jobs(
        self, sweep: Sweep, trials: Sequence[Trial], records: Sequence[Record]
    ) -> AbstractContextManager[Sequence[str]]:
        """Submit the jobs before and after the trials; the body submits the trials in between.
        Yields the ids of the jobs that the trials must wait for. records: filled by the body."""
        return nullcontext(())

    def submit(self, submission: Submission, record: Record, after: Sequence[str] = ()) -> None:
        """Submit jobs and write their ids to the record, which is on disk as `submitting`.

        The trials' status is already `submitted`, because a job may start before this returns.
        after: ids of jobs that must end first. Raises UserError when the place refuses the jobs.
        """

    def settle(self, records: Sequence[Record]) -> None:
        """Adopt or cancel the jobs of submissions whose launcher was killed."""

    def jobs(self, records: Mapping[str, Sequence[Record]]) -> Mapping[str, Job]:
        """Return a queued or running job of each trial that has one, by signature; records: all
        that may name a job of the trial."""

    def deaths(self, records: Mapping[str, Record]) -> Mapping[str, str]:
        """Return why jobs died, by signature, where that is known."""

    def cancel(self, sweep: Sweep, records: Sequence[Record], runs: Sequence[Run]) -> None:
        """End the jobs of these records, and return when the runs have had the time to save. Raises
        UserError for jobs that cannot be ended from here."""

    # --- inside a job ---

    def task(self) -> Task:
        """Return the task that this process is."""

    def requeue(self, counted: Run, parts: Sequence[Run]) -> None:
        """Put this job back into the queue, where the place has one, unless its time limit ended it
        too often, or without any progress of the runs `parts`. The status of `counted` keeps the
        count, and then the reason."""
        return
