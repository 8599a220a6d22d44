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
    """Yield the trials in groups of at most the place's array size; see `launch.Plan`.

    Where only some jobs may run at the same time, groups share that number, because a scheduler
    limits each by itself. More groups than that wait for an earlier one.
    """
    room = place.room(sweep, limit)
    groups = [trials[n : n + room.most_jobs] for n in range(0, len(trials), room.most_jobs)]
    lanes = min(len(groups), room.at_once or len(groups))
    for number, group in enumerate(groups):
        slots, options = room.slots or len(group), {}
        if room.at_once is not None:
            options["at_once"] = (room.at_once + lanes - 1 - number % lanes) // lanes
        follows = number - lanes if number >= lanes else None
        yield Submission(sweep, group, after=room.after, follows=follows, options={
            "slots": slots, "workers": min(slots, len(group)), "cpus": room.resources.cpus,
            "ranks": room.resources.ranks, "pool": room.pool, **options,
        })
