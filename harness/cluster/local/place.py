"""This machine as a place where jobs run: detached workers that run one trial after the other."""

import socket
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.base.errors import UserError
from harness.cluster.causes import cause_in_logs
from harness.cluster.local import background, slots
from harness.cluster.place import Job, Room, Submission, Task
from harness.cluster.records import Cluster, Record
from harness.runs.run import Run
from harness.sweeps.reading import Sweep, Trial


@dataclass
class ThisMachine:
    """The machine on which the command runs; see `place.Place` for the methods."""

    name: Cluster = "local"
    title: str = "on this machine"

    def check(self, sweep: Sweep, jobs: int) -> None:
        """Do nothing: `room` refuses what this machine lacks."""

    def room(self, sweep: Sweep, limit: int | None, trials_per_gpu: int = 1) -> Room:
        resources = slots.with_gpus(sweep.resources)
        count = slots.slots_for(resources, limit, trials_per_gpu)
        return Room(resources, count, asdict(slots.pool_for(resources, count, trials_per_gpu)))

    def describe(self, sweep: Sweep, trials: int, limit: int | None) -> str:
        if sweep.ray.address is not None:
            return f"on the Ray at {sweep.ray.address}"
        together = sweep.ray.trials_per_gpu if sweep.backend == "ray" else 1
        return slots.plan(sweep.resources, trials, limit, together)

    def preview(self, sweep: Sweep, jobs: int) -> str:
        return ""

    # --- submission, states, cancellation ---

    def surrounding_jobs(
        self, sweep: Sweep, trials: Sequence[Trial], records: Sequence[Record]
    ) -> AbstractContextManager[Sequence[str]]:
        """Submit none: the first trial computes what they share, the last writes the report."""
        return nullcontext(())

    def submit(self, submission: Submission, record: Record, after: Sequence[str] = ()) -> None:
        try:
            background.start(record)
        except UserError:
            record.file.unlink(missing_ok=True)  # the logs stay
            raise
        record.write("submitted")

    def settle(self, records: Sequence[Record]) -> None:
        for record in records:  # the workers that have started run its trials
            record.write("submitted")

    def jobs(self, records: Mapping[str, Record]) -> Mapping[str, Job]:
        notes = {r.token: _waits_for(r) for r in {r.token: r for r in records.values()}.values()}
        found = {}
        for key, record in records.items():
            note, [run] = notes[record.token], record.runs([key])
            # workers skip trials that were stopped or have failed
            if note is not None and run.status()["state"] in ("submitted", "new"):
                found[key] = Job("queued", note)
        return found

    def deaths(self, records: Mapping[str, Record]) -> Mapping[str, str]:
        return {
            key: cause_in_logs(Path(record.folder).glob(f"{key}.*.log"))
            or cause_in_logs(Path(record.folder).glob("worker-*.log"), about=key)
            for key, record in records.items()
        }

    def cancel(self, sweep: Sweep, runs: Sequence[Run]) -> None:
        background.cancel(sweep.folder)
        for run in runs:
            background.end_run(run)

    # --- inside a job ---

    def task(self) -> Task:
        return Task(0, "local")

    def requeue(self) -> None:
        """Do nothing: the user who stopped the job launches the sweep again."""


def _waits_for(record: Record) -> str | None:
    """Return what a submission's workers wait for, "" for nothing; None when none lives."""
    alive = background.living_workers(record.sweep_folder, record.token)
    if not any(worker["host"] == socket.gethostname() for worker in alive):
        return "" if alive else None  # another machine's GPUs cannot be seen from here
    return slots.waits_for(record, background.living_workers(record.sweep_folder))
