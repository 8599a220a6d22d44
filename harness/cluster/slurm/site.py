"""Checks of a sweep against this SLURM's partitions and accounts, before submission."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from harness.base.errors import UserError
from harness.base.machine import user_name
from harness.base.units import minutes, slurm_seconds
from harness.cluster.place import NoAnswer
from harness.cluster.slurm.commands import ask, my_jobs
from harness.sweeps.reading import Sweep

READY = ("idle", "mix", "alloc", "comp", "plnd")
"""States of nodes that accept jobs, now or later."""
MARKS = "~#!%$@^-+"
"""Suffixes of a state in sinfo: powered down or up, planned, ..."""


@dataclass(frozen=True)
class Partition:
    """What a sweep's keys are checked against."""

    name: str
    default: bool
    limit_s: float
    up: bool
    features: frozenset[str]
    """Of any of its nodes."""
    nodes: int
    """How many accept jobs."""


def check(sweep: Sweep, jobs: int) -> None:
    """Raise UserError naming every key of a sweep that this cluster would refuse. jobs: how many
    will be submitted. Accounts are checked only where accounting answers."""
    faults = [*_partition_faults(sweep, partitions(hidden=True)), *_account_faults(sweep, jobs)]
    if faults:
        raise UserError("\n".join(f"{sweep.file}: {fault}" for fault in faults))


def partitions(*, hidden: bool = False) -> list[Partition]:
    """Return the cluster's partitions; hidden: also those that sinfo hides by default."""
    found: dict[str, Partition] = {}
    every = ["--all"] if hidden else []
    text = ask(["sinfo", *every, "--noheader", "--format=%P|%l|%a|%D|%t|%f"])
    for line in text.splitlines():
        name, limit, state, count, nodes, features = line.strip().split("|", 5)
        own = set() if features == "(null)" else set(features.split(","))
        before = found.get(name.rstrip("*"))
        found[name.rstrip("*")] = Partition(
            name.rstrip("*"), name.endswith("*"), slurm_seconds(limit), state == "up",
            frozenset(own | (before.features if before else set())),
            (int(count) if nodes.rstrip(MARKS) in READY else 0) + (before.nodes if before else 0),
        )
    return list(found.values())


def _partition_faults(sweep: Sweep, there: list[Partition]) -> Iterator[str]:
    by_name = {partition.name: partition for partition in there}
    names = [name for name in str(sweep.slurm.get("partition", "")).split(",") if name]
    for name in names:
        if name not in by_name:
            yield f"slurm.partition: no partition {name} here; choose one of {', '.join(by_name)}"
        elif not by_name[name].up:
            yield f"slurm.partition: {name} accepts no jobs now"
    chosen = [by_name[n] for n in names if n in by_name] or [p for p in there if p.default]
    either = " or ".join(partition.name for partition in chosen)
    limit = max((partition.limit_s for partition in chosen), default=math.inf)
    if 60 * minutes(sweep.resources.time) > limit:
        yield (f"resources.time: {sweep.resources.time} is more than the {limit / 3600:g} h that "
               f"{either} allows; a trial that takes longer continues in a further job")
    features = frozenset[str]().union(*(partition.features for partition in chosen))
    # the names in an expression such as (a100|h100)&ib*2
    wanted = re.findall(r"[^\s&|,()\[\]*]+", str(sweep.slurm.get("constraint", "")))
    if lost := [name for name in wanted if not name.isdigit() and name not in features]:
        yield (f"slurm.constraint: no node of {either} has {', '.join(lost)}; features: "
               f"{', '.join(sorted(features)) or 'none'}")


def _account_faults(sweep: Sweep, jobs: int) -> Iterator[str]:
    rows = _associations()
    if not rows:
        return
    account, qos = (str(sweep.slurm.get(key, "")) for key in ("account", "qos"))
    accounts = list(dict.fromkeys(row[0] for row in rows))
    if account and account not in accounts:
        yield f"slurm.account: you may not use {account}; yours: {', '.join(accounts)}"
        return
    own = [row for row in rows if not account or row[0] == account]
    allowed = {name for row in own for name in row[1].split(",") if name}
    if qos and allowed and qos not in allowed:
        yield f"slurm.qos: you may not use {qos}; yours: {', '.join(sorted(allowed))}"
    limits = [int(row[2]) if row[2].isdigit() else math.inf for row in own]
    if jobs > (left := max(0, max(limits) - len(my_jobs()))):
        yield (f"{jobs} jobs to submit, your limit (MaxSubmitJobs) leaves {left:g}; wait for "
               "others to end, or ask for fewer trials")


def _associations() -> list[list[str]]:
    """Return this user's (account, QOS names, maximum of jobs); none without accounting."""
    try:
        text = ask(["sacctmgr", "--noheader", "--parsable2", "show", "associations",
                    f"users={user_name()}", "format=Account,QOS,MaxSubmit"])
    except NoAnswer:
        return []
    return [line.split("|") for line in text.splitlines() if line.count("|") == 2]
