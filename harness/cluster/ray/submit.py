"""The plan of `backend: ray`: one job in which Ray Tune runs the trials."""

import dataclasses
import importlib.util
from collections.abc import Iterator, Sequence

from harness.base.errors import UserError
from harness.cluster.place import Place, Room, Submission
from harness.cluster.ray import external
from harness.cluster.ray.shares import allocation
from harness.config.fields import changeable_keys
from harness.sweeps.frozen import freeze
from harness.sweeps.keys import HyperBand, Pbt
from harness.sweeps.reading import Sweep, Trial, expand
from harness.sweeps.space import RECIPE


def check(sweep: Sweep) -> None:
    """Raise UserError for what this backend cannot do."""
    faults, one, many = [], sweep.resources, sweep.ray
    if many.address is not None and many.dashboard:
        faults.append("ray.dashboard: the Ray at ray.address has its own")
    if sweep.scheduler is not None and not sweep.metric.startswith("validation."):
        faults.append(
            f"scheduler: {sweep.scheduler.kind} compares trials while they train, but "
            f"{sweep.metric} is computed after the last epoch; use {sweep.experiment.metric}, or "
            "scheduler: none"
        )
    if isinstance(sweep.scheduler, HyperBand) and sweep.algorithm is not None:
        faults.append(
            "scheduler: hyperband halves trials that begin together, an algorithm proposes them "
            "one by one; use asha"
        )
    if isinstance(sweep.scheduler, Pbt):
        faults.extend(_population_faults(sweep))
    if many.dashboard and importlib.util.find_spec("aiohttp_cors") is None:
        faults.append("ray.dashboard: is not installed: pip install 'ray[default]'")
    if many.trials_per_gpu > 1 and one.gpus != 1:
        faults.append(
            f"ray.trials_per_gpu: {many.trials_per_gpu} trials share one GPU, so resources.gpus "
            f"must be 1, found {'null' if one.gpus is None else one.gpus}"
        )
    if one.nodes > 1 and (many.nodes % one.nodes or many.trials_per_node > 1):
        faults.append(
            f"resources.nodes: a trial of {one.nodes} nodes needs them for itself: set ray.nodes "
            f"to a multiple of it, and ray.trials_per_node to 1 (found {many.nodes} and "
            f"{many.trials_per_node})"
        )
    if faults:
        raise UserError("\n".join(f"{sweep.file}: {fault}" for fault in faults))


def _population_faults(sweep: Sweep) -> Iterator[str]:
    known = changeable_keys(sweep.base.schema)
    if sweep.algorithm is not None:
        yield "scheduler: pbt begins with a population, an algorithm proposes points one by one"
    if not any(dimension.key in known for dimension in sweep.space.dimensions):
        yield ("scheduler: pbt changes settings of trials that go on, none of these can be; search "
               f"one of {', '.join(sorted(known))}")
    if sweep.space.is_conditional or any(d.key == RECIPE for d in sweep.space.dimensions):
        yield "scheduler: pbt takes no conditions and no recipes among what is searched"


def job(sweep: Sweep) -> Sweep:
    """Return the sweep with the resources of the whole job in place of one trial's.

    It has no jobs before and after it. Raises UserError for what this backend cannot do.
    """
    check(sweep)
    return dataclasses.replace(allocation(sweep), prepare=False, report=False)


def job_count(sweep: Sweep, trials: int) -> int:
    """Return 1: all trials run in one job."""
    return 1


def submissions(
    sweep: Sweep, trials: Sequence[Trial], place: Place, limit: int | None
) -> Iterator[Submission]:
    """Yield the one job that searches over `trials`.

    limit: how many run at a time on this machine. Raises UserError when there is room for none.
    """
    many, nodes = sweep.ray, 1
    if many.address is not None:
        there, resources = external.room(many.address, sweep.resources, many)
        room = Room(resources, min(limit or there, there))
    else:
        room = place.room(sweep, limit, many.trials_per_gpu)
        if room.slots is None:
            nodes = many.nodes
        elif sweep.resources.nodes > 1:
            raise UserError(
                f"{sweep.file}: resources.nodes: a trial of {sweep.resources.nodes} nodes cannot "
                "run here; resources.nodes=1 resources.tasks=N tries its ranks on this machine"
            )
    one = dataclasses.replace(room.resources, gpus=room.resources.gpus or 0)
    sweep = dataclasses.replace(sweep, resources=one)
    yield Submission(allocation(sweep), trials, "harness.cluster.ray.job.drive", {
        "backend": "ray", "workers": 1, "nodes": nodes, "pool": room.pool,
        "trials_per_node": room.slots or many.trials_per_node,
        "side_by_side": room.slots or max(1, many.nodes * many.trials_per_node // one.nodes),
        "sweep": {**freeze(sweep), "known": [trial.signature for trial in expand(sweep)]},
    })
