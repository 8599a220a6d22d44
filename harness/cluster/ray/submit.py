"""The plan of backend ray: one job in which Ray Tune runs the trials."""

import dataclasses
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from harness.base.errors import UserError
from harness.cluster.local import background, shares
from harness.cluster.ray import guest as ray_guest
from harness.cluster.ray.job import drive
from harness.cluster.ray.shares import allocation
from harness.cluster.records import EVERY, Cluster, Record, new_record
from harness.cluster.slurm import commands
from harness.cluster.slurm import script as slurm
from harness.config.build import changeable_keys
from harness.sweeps.frozen import freeze
from harness.sweeps.keys import HyperBand, Pbt
from harness.sweeps.reading import Sweep, Trial, expand
from harness.sweeps.space import RECIPE

NO_LIMIT = 10**6


def check(sweep: Sweep) -> None:
    """Raise UserError for what this backend cannot do."""
    faults, one, many = [], sweep.resources, sweep.ray
    if many.address is not None and many.dashboard:
        faults.append("ray.dashboard: the Ray at ray.address has its own")
    if sweep.scheduler is not None and not sweep.metric.startswith("validation."):
        faults.append(
            f"scheduler: {sweep.scheduler.kind} compares trials while they train, but "
            f"{sweep.metric} is computed after the last epoch; use validation.mAP, or scheduler: "
            "none"
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


def submit(
    sweep: Sweep, trials: list[Trial], *, cluster: Cluster, jobs: int | None = None
) -> Record:
    """Submit the one job that searches over `trials`, and return at once.

    Their run folders exist and their status is `submitted` already. jobs: how many run at a time
    on this machine. Raises UserError when the sweep asks for what this backend cannot do, or when
    the job was not taken.
    """
    check(sweep)
    address, resources = sweep.ray.address, sweep.resources
    slots, pool = None, {}
    if address is not None:
        room, resources = ray_guest.room(address, resources, sweep.ray)
        slots = min(jobs or NO_LIMIT, room)
        cluster = "local"  # the driver is here, wherever its trials are
    elif cluster == "local":
        if sweep.resources.nodes > 1:
            raise UserError(
                f"{sweep.file}: resources.nodes: a trial of {sweep.resources.nodes} nodes cannot "
                "run here; resources.nodes=1 resources.tasks=N tries its ranks on this machine"
            )
        resources = shares.settled(resources)
        slots = shares.slots_for(resources, jobs, sweep.ray.trials_per_gpu)
        pool = {"pool": dataclasses.asdict(
            shares.pool_for(resources, slots, sweep.ray.trials_per_gpu)
        )}
    sweep = dataclasses.replace(
        sweep, resources=dataclasses.replace(resources, gpus=resources.gpus or 0)
    )
    record = new_record(
        sweep.folder, cluster, [trial.signature for trial in trials],
        backend="ray", workers=1, nodes=sweep.ray.nodes if cluster == "slurm" else 1,
        trials_per_node=slots or sweep.ray.trials_per_node,
        side_by_side=slots
        or max(1, sweep.ray.nodes * sweep.ray.trials_per_node // sweep.resources.nodes),
        sweep={**freeze(sweep), "known": [trial.signature for trial in expand(sweep)]},
        code=str(sweep.code or ""), **pool,
    )
    record.write()
    if cluster == "local":
        background.start(record)
    else:
        _submit_slurm(allocation(sweep), record)
    return record


def _submit_slurm(sweep: Sweep, record: Record) -> None:
    name = slurm.job_name(sweep, record.token)
    executor = slurm.executor_for(sweep, Path(record.folder), name)
    try:
        with commands.outside_any_job():
            job = executor.submit(drive, str(record.file))
    except Exception as error:
        raise UserError(f"sbatch did not take the job: {commands.last_line(error)}") from None
    record.jobs = {EVERY: job.job_id}
    record.state = "submitted"
    record.write()
