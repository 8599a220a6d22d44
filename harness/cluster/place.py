"""Where jobs run, behind one protocol: SLURM, this machine, and the next one (PBS, Kubernetes).

A place is a folder beside this file and a line in `places.py`. A plan (`array.py`, `ray/submit.py`)
says what is submitted and works with every place.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from harness.base.errors import UserError
from harness.cluster.records import Cluster, Record
from harness.runs.run import Run
from harness.sweeps.keys import Resources
from harness.sweeps.reading import Sweep, Trial


class NoAnswer(UserError):
    """A scheduler's command is missing, fails, or does not come back."""


@dataclass(frozen=True)
class Room:
    """How many trials a place runs side by side, and what each is given."""

    resources: Resources
    slots: int | None = None
    """None: as many as there are jobs; a scheduler decides."""
    pool: dict[str, Any] | None = None
    """The GPUs and cores from which trials of this machine are given theirs (see `claims.Pool`)."""


@dataclass(frozen=True)
class Submission:
    """Jobs that are handed to a place at once."""

    sweep: Sweep
    """Its `resources` are those of each job."""
    trials: Sequence[Trial]
    function: str = ""
    """Dotted name of the function of one job for all trials, called with the record's file in every
    task; "": a job for each trial, whose ranks carry out its run."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What the jobs need to know; goes into the record."""


@dataclass(frozen=True)
class Job:
    """A job that a place still has."""

    state: Literal["queued", "running"]
    note: str = ""
    """Why it waits, or what the place says of it."""


@dataclass(frozen=True)
class Task:
    """One task of a job, as it finds itself; a job has one on each node."""

    number: int
    attempt: str
    """Names this attempt: a job that was requeued keeps its id."""
    hosts: tuple[str, ...] = ()
    """All hosts of the job; empty where there is only this one."""


class Place(Protocol):
    """Where jobs run. Methods that take records see only those of this place."""

    name: Cluster
    title: str
    """Completes "4 trials run ...", such as "on this machine"."""

    # --- before anything is submitted ---

    def check(self, sweep: Sweep, jobs: int) -> None:
        """Raise UserError for jobs that this place would refuse; `sweep.resources` are a job's."""

    def room(self, sweep: Sweep, limit: int | None, trials_per_gpu: int = 1) -> Room:
        """Return how many trials fit side by side; limit: the user's own number, None for none.

        Raises UserError when there is no room for even one.
        """

    def most_jobs(self) -> int:
        """Return how many jobs one submission may have."""

    def describe(self, sweep: Sweep, trials: int, limit: int | None) -> str:
        """Say in a line what the trials will be given here; "" for nothing worth saying."""

    def preview(self, sweep: Sweep, jobs: int) -> str:
        """Return what the scheduler would get for a submission of so many jobs; "" for nothing.

        `sweep.resources` are those of each job.
        """

    # --- submitting, looking, ending ---

    def around(
        self, sweep: Sweep, trials: Sequence[Trial], records: Sequence[Record]
    ) -> AbstractContextManager[Sequence[str]]:
        """Submit the jobs before and after the trials, while the body submits those in between.

        Gives the ids of the jobs that the trials must wait for. records: filled by the body.
        """

    def submit(self, submission: Submission, record: Record, after: Sequence[str] = ()) -> None:
        """Submit jobs and write their ids to the record, which is on disk as `submitting`.

        The trials' status is `submitted` already, as a job may start before this returns.
        after: ids of jobs that must end first. Raises UserError when the jobs were not taken.
        """

    def settle(self, records: Sequence[Record]) -> None:
        """Settle submissions whose launcher was killed: their jobs are adopted or cancelled."""

    def jobs(self, records: Mapping[str, Record]) -> Mapping[str, Job]:
        """Return the jobs that are still there, by signature, of those given with their records."""

    def deaths(self, records: Mapping[str, Record]) -> Mapping[str, str]:
        """Return why trials' jobs died, by signature, where that can be found."""

    def cancel(self, sweep: Sweep, runs: Sequence[Run]) -> None:
        """End the sweep's jobs, and return when the runs have had the time to save.

        Raises UserError for what cannot be ended from here.
        """

    # --- inside a job ---

    def task(self) -> Task:
        """Return which task of a job this process is."""

    def requeue(self) -> None:
        """Have this job run again, after it was stopped; does nothing where none is requeued."""
