"""The plan of `backend: array`: one job per trial, independent of all others."""

from collections.abc import Iterator, Sequence

from harness.cluster.place import Place, Submission
from harness.sweeps.reading import Sweep, Trial


def jobs(sweep: Sweep, trials: int) -> tuple[Sweep, int]:
    """Return the sweep, because a job has the resources of a trial, and the number of jobs."""
    return sweep, trials


def submissions(
    sweep: Sweep, trials: Sequence[Trial], place: Place, limit: int | None
) -> Iterator[Submission]:
    """Yield the trials in groups of at most the place's array size; see `launch.Plan`."""
    room = place.room(sweep, limit)
    for start in range(0, len(trials), room.most_jobs):
        group = trials[start : start + room.most_jobs]
        slots = room.slots or len(group)
        yield Submission(sweep, group, options={
            "slots": slots, "workers": min(slots, len(group)), "cpus": room.resources.cpus,
            "ranks": room.resources.ranks, "pool": room.pool,
        })
