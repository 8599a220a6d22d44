"""What one Ray job asks for, and which runs it covers."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from harness.base.units import gigabytes
from harness.cluster.ray.nodes import Share
from harness.cluster.records import Record
from harness.runs.run import Run
from harness.sweeps.keys import Allocation, Resources
from harness.sweeps.reading import Sweep


def node_share(one: Resources, many: Allocation) -> Share:
    """Return what each node gives to all trials on it together."""
    count = many.trials_per_node
    return Share(
        cpus=one.cpus * one.ranks_per_node * count,
        gpus=-(-(one.gpus or 0) * count // many.trials_per_gpu),
    )


def allocation(sweep: Sweep) -> Sweep:
    """Return the sweep with the resources of the whole job in place of one trial's."""
    one, share = sweep.resources, node_share(sweep.resources, sweep.ray)
    memory = None
    if one.memory is not None:
        memory = f"{round(gigabytes(one.memory) * sweep.ray.trials_per_node * 1024)}MB"
    whole = Resources(
        nodes=sweep.ray.nodes, tasks=1, cpus=share.cpus, gpus=share.gpus,
        time=one.time, memory=memory,
    )
    return dataclasses.replace(sweep, resources=whole)


def signatures_of(record: Record, sweep: Sweep) -> list[str]:
    """Return all runs of a search, also those of points that were proposed since it began."""
    proposed = [trial.signature for trial in sweep.trials]
    return list(dict.fromkeys([*record.options["sweep"]["known"], *proposed]))


def runs_of(record: Record, signatures: Sequence[str]) -> list[Run]:
    """Return runs of a submission's sweep."""
    return [Run(Path(record.folder).parents[1] / signature) for signature in signatures]
