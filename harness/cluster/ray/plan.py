"""The plan of `backend: ray`: one job in which Ray Tune runs the trials."""

import dataclasses
import importlib.util
from collections.abc import Iterator, Sequence

from harness.base.errors import UserError
from harness.base.paths import NO_UTF8
from harness.base.units import gigabytes
from harness.cluster.place import Place, Room, Submission
from harness.cluster.ray import external
from harness.cluster.records import Record
from harness.cluster.snapshots import check_folders
from harness.config.fields import changeable_keys
from harness.sweeps.keys import Allocation, HyperBand, Pbt, Resources
from harness.sweeps.reading import Sweep, Trial, expand
from harness.sweeps.space import RECIPE
from harness.sweeps.sweep_json import freeze


def check(sweep: Sweep) -> None:
    """Raise UserError for what this backend cannot do."""
    letters = {NO_UTF8: "cannot be in a message between Ray's processes"}
    expanded = {"$": "begins a variable, which Ray replaces"} if sweep.ray.address else {}
    check_folders(sweep, letters | expanded, letters | expanded)
    faults = [*_faults(sweep), *_population_faults(sweep)]
    if faults:
        raise UserError("\n".join(f"{sweep.file}: {fault}" for fault in faults))


def _faults(sweep: Sweep) -> Iterator[str]:
    one, many = sweep.resources, sweep.ray
    if many.address is not None and many.dashboard:
        yield "ray.dashboard: the Ray at ray.address has its own"
    if sweep.scheduler is not None and not sweep.metric.startswith("validation."):
        yield (f"scheduler: {sweep.scheduler.kind} compares trials while they train, but "
               f"{sweep.metric} is computed after the last epoch; use {sweep.experiment.metric}, "
               "or scheduler: none")
    if isinstance(sweep.scheduler, HyperBand) and sweep.algorithm is not None:
        yield ("scheduler: hyperband halves trials that start together, an algorithm proposes them "
               "one by one; use asha")
    if many.dashboard and importlib.util.find_spec("aiohttp_cors") is None:
        yield "ray.dashboard: is not installed: pip install 'ray[default]'"
    if many.trials_per_gpu > 1 and one.gpus != 1:
        yield (f"ray.trials_per_gpu: {many.trials_per_gpu} trials share one GPU, so resources.gpus "
               f"must be 1, found {'null' if one.gpus is None else one.gpus}")
    if one.nodes > 1 and (many.nodes % one.nodes or many.trials_per_node > 1):
        yield (f"resources.nodes: a trial of {one.nodes} nodes needs them for itself: set "
               f"ray.nodes to a multiple of it, and ray.trials_per_node to 1 (found {many.nodes} "
               f"and {many.trials_per_node})")


def _population_faults(sweep: Sweep) -> Iterator[str]:
    if not isinstance(sweep.scheduler, Pbt):
        return
    known = changeable_keys(sweep.base.schema)
    if sweep.algorithm is not None:
        yield "scheduler: pbt starts with a population, an algorithm proposes points one by one"
    if not any(dimension.key in known for dimension in sweep.space.dimensions):
        yield ("scheduler: pbt changes settings of running trials, and none that is searched can "
               f"be changed; search one of {', '.join(sorted(known))}")
    if sweep.space.is_conditional or any(d.key == RECIPE for d in sweep.space.dimensions):
        yield "scheduler: pbt cannot search conditions or recipes"


def allocation(one: Resources, many: Allocation) -> Resources:
    """Return the resources of the whole job, and its limits, from those of one trial."""
    count, memory = many.trials_per_node, None
    if one.memory is not None:
        memory = f"{round(gigabytes(one.memory) * count * 1024)}MB"
    return Resources(
        nodes=many.nodes, tasks=1, cpus=one.cpus * one.ranks_per_node * count,
        gpus=-(-(one.gpus or 0) * count // many.trials_per_gpu), time=one.time, memory=memory,
        max_time_outs=one.max_time_outs,
    )


def signatures_of(record: Record, sweep: Sweep) -> list[str]:
    """Return all runs of a search, including those proposed since it began."""
    proposed = [trial.signature for trial in sweep.trials]
    return list(dict.fromkeys([*record.options["sweep"]["known"], *proposed]))


def ours(record: Record, signatures: Sequence[str]) -> set[str]:
    """Return those of a search's runs that its submission may start: due then, or proposed since.
    signatures: as from `signatures_of`."""
    return {*record.trials, *signatures[len(record.options["sweep"]["known"]):]}


def jobs(sweep: Sweep, trials: int) -> tuple[Sweep, int]:
    """Return the sweep with the resources of the one job, which has none before and after it.
    Raises UserError for what this backend cannot do."""
    check(sweep)
    whole = allocation(sweep.resources, sweep.ray)
    return dataclasses.replace(sweep, resources=whole, prepare=False, report=False), 1


def submissions(
    sweep: Sweep, trials: Sequence[Trial], place: Place, limit: int | None
) -> Iterator[Submission]:
    """Yield the one job that searches over `trials`; see `launch.Plan`."""
    many, nodes = sweep.ray, 1
    if many.address is not None:
        there, resources = external.room(many.address, sweep.resources, many)
        room = Room(resources, min(limit or there, there))
    else:
        room = place.room(sweep, limit, many.trials_per_gpu)
        if room.slots is None:
            nodes = many.nodes
        elif sweep.resources.nodes > 1:
            raise UserError(f"{sweep.file}: resources.nodes: a trial of {sweep.resources.nodes} "
                            "nodes cannot run here; resources.nodes=1 resources.tasks=N runs its "
                            "ranks on this machine")
    one = dataclasses.replace(room.resources, gpus=room.resources.gpus or 0)
    sweep = dataclasses.replace(sweep, resources=one)
    job = dataclasses.replace(sweep, resources=allocation(one, many))
    yield Submission(job, trials, "harness.cluster.ray.job.drive", {
        "backend": "ray", "workers": 1, "nodes": nodes, "pool": room.pool,
        "trials_per_node": room.slots or many.trials_per_node,
        "side_by_side": room.slots or max(1, many.nodes * many.trials_per_node // one.nodes),
        "sweep": {**freeze(sweep), "known": [trial.signature for trial in expand(sweep)]},
    })
