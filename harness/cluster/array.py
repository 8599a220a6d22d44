"""The plan of `backend: array`: one job per trial, independent of all others."""

from collections.abc import Iterator, Sequence

from harness.cluster.place import Place, Submission
from harness.sweeps.reading import Sweep, Trial


def job(sweep: Sweep) -> Sweep:
    """Return the sweep with the resources of one job: those of a trial."""
    return sweep


def job_count(sweep: Sweep, trials: int) -> int:
    """Return the number of jobs for this many trials."""
    return trials


def submissions(
    sweep: Sweep, trials: Sequence[Trial], place: Place, limit: int | None
) -> Iterator[Submission]:
    """Yield the trials in groups of at most the place's array size; see `launch.Plan`."""
    room, most = place.room(sweep, limit), place.most_jobs()
    for start in range(0, len(trials), most):
        group = trials[start : start + most]
        slots = room.slots or len(group)
        yield Submission(sweep, group, options={
            "slots": slots, "workers": min(slots, len(group)), "cpus": room.resources.cpus,
            "ranks": room.resources.ranks, "pool": room.pool,
        })
