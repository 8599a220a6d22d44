"""How many trials run at a time here, and with how many GPUs and cores; `claims.py` picks which."""

import dataclasses
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from harness.base.errors import UserError
from harness.base.machine import cuda_fault, machine_gpus, usable_cores, visible_gpus
from harness.base.units import counted
from harness.cluster.local.claims import Claim, Pool
from harness.cluster.records import Record
from harness.runs.stopping import stop_requested
from harness.sweeps.keys import Resources

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.2
NEEDED_EVERY_S = 5.0
"""How often a waiting worker looks, in the end, whether a trial is left to wait for."""


def with_gpus(asked: Resources) -> Resources:
    """Return the resources with a number of GPUs where the sweep leaves it open. That is one per
    rank of a trial, or none where this machine has fewer or torch cannot use them."""
    if asked.gpus is not None:
        return asked
    enough = len(visible_gpus()) >= asked.ranks and not cuda_fault()
    return dataclasses.replace(asked, gpus=asked.ranks_per_node if enough else 0)


def slots_for(asked: Resources, jobs: int | None, trials_per_gpu: int = 1) -> int:
    """Return how many trials may run at once here; jobs: the user's number, None for the maximum.
    Raises UserError when the machine lacks the GPUs of even one trial, or torch cannot use them."""
    resources = with_gpus(asked)
    gpus_each = resources.trial_gpus
    gpus = len(visible_gpus()) if gpus_each else 0
    if gpus_each > gpus:
        raise UserError(f"resources.gpus: a trial wants {gpus_each}, this machine has {gpus}; "
                        "resources.gpus=0 runs it on the CPU")
    if gpus_each and (fault := cuda_fault()):
        raise UserError(f"resources.gpus: torch cannot use this machine's GPUs: {fault}; "
                        "resources.gpus=0 runs trials on the CPU")
    by_cores = len(usable_cores()) // (resources.cpus * resources.ranks)
    by_gpus = gpus * trials_per_gpu // gpus_each if gpus_each else by_cores
    wanted = jobs if jobs is not None else min(by_cores, by_gpus)
    return max(1, min(wanted, by_gpus) if gpus_each else wanted)


def pool_for(asked: Resources, slots: int, trials_per_gpu: int = 1) -> Pool:
    """Return this machine's pool; trials that share a GPU share one claim. `slots` trials never
    claim more cores than there are, even if they ask for more."""
    resources, cores = with_gpus(asked), usable_cores()
    wanted = resources.cpus * resources.ranks * trials_per_gpu
    return Pool(visible_gpus() if resources.trial_gpus else [], resources.trial_gpus, cores,
                min(wanted, len(cores) // -(-slots // trials_per_gpu)))


def plan(asked: Resources, trials: int, jobs: int | None, trials_per_gpu: int = 1) -> str:
    """Return how many trials run at once here, on how many GPUs, and who else uses these."""
    slots = slots_for(asked, jobs, trials_per_gpu)
    pool = pool_for(asked, slots, trials_per_gpu)
    shares, gpus = -(-min(slots, trials) // trials_per_gpu), len(machine_gpus())
    idle = gpus - shares * pool.gpus_each if trials else 0
    text = f"{slots} at a time"
    if pool.gpus_each:
        text += f", each on {pool.gpus_each} of {counted(gpus, 'GPU')}"
    elif gpus:
        text += ", on the CPU"
    if fault := gpus and asked.gpus is None and cuda_fault():
        text += f"; torch cannot use {counted(gpus, 'GPU')}: {fault}"
    elif idle:
        text += f"; {counted(idle, 'GPU')} not used (resources.gpus=N gives each trial N)"
    free = pool.free()
    if free < shares:
        text += f"; room for {free * trials_per_gpu} now, in use by {', '.join(pool.users(shares))}"
    return text


def waits_for(record: Record, workers: list[dict[str, Any]]) -> str:
    """Return which other sweeps use what a submission's next trial needs here; "" for none.
    workers: all living ones of the submission's sweep."""
    if record.options.get("pool") is None:  # on an external Ray
        return ""
    own = {_owner(record, worker["pid"], worker["host"]) for worker in workers}
    pool = Pool(**record.options["pool"])
    try:
        others = [user for user in pool.users() if user not in own]
        return f"waits for {', '.join(others)}" if others and not pool.free() else ""
    except UserError:  # an unusable folder of claims does not matter for the status
        return ""


def _owner(record: Record, pid: int, host: str) -> str:
    return f"{record.sweep_folder.name} (process {pid} on {host})"


def pauses(most_s: float) -> Iterator[float]:
    """Yield growing pauses in seconds between looks at files that all workers read, up to `most_s`.
    The first are short, so that a short sweep does not wait."""
    seconds = FIRST_PAUSE_S
    while True:
        yield seconds
        seconds = min(most_s, 1.5 * seconds)


@contextmanager
def claimed(
    record: Record, is_needed: Callable[[], object], most: int = 1
) -> Iterator[Claim | None]:
    """Hold the GPUs and cores of as many trials as there is room for, up to `most`. Waits while
    there is no room; yields None when the claim is no longer needed, or after a stop."""
    needs, asked_at, pause_s = pauses(NEEDED_EVERY_S), float("-inf"), 0.0

    def is_wanted() -> bool:
        nonlocal asked_at, pause_s
        if stop_requested():
            return False
        if time.monotonic() - asked_at < pause_s:
            return True
        asked_at, pause_s = time.monotonic(), next(needs)
        return bool(is_needed())

    pool, claim = Pool(**record.options["pool"]), None
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
