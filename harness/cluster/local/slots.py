"""Which GPUs and cores of this machine a trial is given, and who else uses them."""

import dataclasses
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.base.errors import UserError
from harness.base.machine import machine_gpus, usable_cores, visible_gpus
from harness.base.units import counted
from harness.cluster.local.claims import Claim, Pool
from harness.cluster.records import Record
from harness.runs.stopping import stop_requested
from harness.sweeps.keys import Resources

log = logging.getLogger(__name__)


def settled(asked: Resources) -> Resources:
    """Return the resources, with the GPUs filled in that the sweep leaves open.

    They are one for each rank of a trial, or none where this machine has fewer.
    """
    if asked.gpus is not None:
        return asked
    enough = len(visible_gpus()) >= asked.ranks
    return dataclasses.replace(asked, gpus=asked.ranks_per_node if enough else 0)


def slots_for(asked: Resources, jobs: int | None, trials_per_gpu: int = 1) -> int:
    """Return how many trials may run at once here; `jobs` is the user's own number.

    Raises UserError when the machine lacks the GPUs of even one trial.
    """
    resources = settled(asked)
    gpus_each = resources.trial_gpus
    gpus = len(visible_gpus()) if gpus_each else 0
    if gpus_each > gpus:
        raise UserError(
            f"resources.gpus: a trial wants {gpus_each}, this machine has {gpus}; "
            "resources.gpus=0 runs it on the CPU"
        )
    by_cores = len(usable_cores()) // (resources.cpus * resources.ranks)
    by_gpus = gpus * trials_per_gpu // gpus_each if gpus_each else by_cores
    wanted = jobs if jobs is not None else min(by_cores, by_gpus)
    return max(1, min(wanted, by_gpus) if gpus_each else wanted)


def pool_for(asked: Resources, slots: int, trials_per_gpu: int = 1) -> Pool:
    """Return this machine's pool; one share serves all trials that share a GPU.

    Where `slots` trials want more cores than there are, they claim only those that there are.
    """
    resources, cores = settled(asked), usable_cores()
    wanted = resources.cpus * resources.ranks * trials_per_gpu
    return Pool(
        visible_gpus() if resources.trial_gpus else [], resources.trial_gpus,
        cores, min(wanted, len(cores) // -(-slots // trials_per_gpu)),
    )


def plan(asked: Resources, trials: int, jobs: int | None, trials_per_gpu: int = 1) -> str:
    """Say how many of some trials run at once here, on which GPUs, and what else is running."""
    slots = slots_for(asked, jobs, trials_per_gpu)
    pool = pool_for(asked, slots, trials_per_gpu)
    shares, gpus = -(-min(slots, trials) // trials_per_gpu), len(machine_gpus())
    idle = gpus - shares * pool.gpus_each if trials else 0
    told = f"{slots} at a time"
    if pool.gpus_each:
        told += f", each on {pool.gpus_each} of {counted(gpus, 'GPU')}"
    elif gpus:
        told += ", on the CPU"
    if idle:
        told += f"; {counted(idle, 'GPU')} not used (resources.gpus=N gives each trial N)"
    free = pool.free()
    if free < shares:
        told += f"; room for {free * trials_per_gpu} now, in use by {', '.join(pool.users(shares))}"
    return told


def waits_for(record: Record, workers: list[dict[str, Any]]) -> str:
    """Say which other sweeps have what a submission's next trial needs here; "" for none.

    workers: the living ones of the submission's sweep, on whatever machines.
    """
    if record.options.get("pool") is None:  # on somebody else's Ray
        return ""
    own = {_owner(record, worker["pid"], worker["host"]) for worker in workers}
    pool = Pool(**record.options["pool"])
    try:
        others = [user for user in pool.users() if user not in own]
        return f"waits for {', '.join(others)}" if others and not pool.free() else ""
    except UserError:  # the folder of claims: who only looks need not care
        return ""


def _owner(record: Record, pid: int, host: str) -> str:
    return f"{Path(record.folder).parents[1].name} (process {pid} on {host})"


@contextmanager
def share_of(
    record: Record, is_needed: Callable[[Record], Any], most: int = 1
) -> Iterator[Claim | None]:
    """Hold the GPUs and cores of a trial, or of as many as there is room for, up to `most`.

    While there is room for none, waits; None when that is no longer needed, or after a stop.
    """
    pool = Pool(**record.options["pool"])

    def is_wanted() -> bool:
        return not stop_requested() and bool(is_needed(record))

    claim = None
    if is_wanted():
        owner = _owner(record, os.getpid(), socket.gethostname())
        claim = pool.take(owner, most)
        if claim is None:
            users = ", ".join(pool.users()) or "another sweep"
            log.info("Waiting for GPUs and cores used by %s.", users)
            claim = pool.take(owner, most, is_wanted)
    try:
        yield claim
    finally:
        if claim is not None:
            claim.release()
