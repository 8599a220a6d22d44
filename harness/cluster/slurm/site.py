"""Whether this SLURM takes what a sweep asks for: looked up before anything is submitted."""

import getpass
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from harness.base.errors import UserError
from harness.base.units import minutes, slurm_seconds
from harness.cluster.place import NoAnswer
from harness.cluster.slurm.commands import ask, my_jobs
from harness.sweeps.reading import Sweep

READY = ("idle", "mix", "alloc", "comp", "plnd")
"""States of nodes that take jobs, now or later."""
MARKS = "~#!%$@^-+"
"""What sinfo writes after a state: powered down or up, planned, ..."""


@dataclass(frozen=True)
class Partition:
    """A partition, as far as sweeps can ask for the wrong one."""

    name: str
    default: bool
    limit_s: float
    up: bool
    features: frozenset[str]
    """Of any of its nodes."""
    nodes: int
    """How many take jobs."""


def check(sweep: Sweep, jobs: int) -> None:
    """Raise UserError naming every key of a sweep that this cluster would refuse.

    jobs: how many are to be submitted. What accounting knows is checked where it answers.
    """
    faults = [*_partition_faults(sweep, partitions(hidden=True)), *_account_faults(sweep, jobs)]
    if faults:
        raise UserError("\n".join(f"{sweep.file}: {fault}" for fault in faults))


def partitions(*, hidden: bool = False) -> list[Partition]:
    """Return the cluster's partitions, also those that it does not show when `hidden`."""
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
    asked = str(sweep.slurm.get("partition", ""))
    names = [name for name in asked.split(",") if name]
    by_name = {partition.name: partition for partition in there}
    for name in names:
        if name not in by_name:
            yield f"slurm.partition: there is no {name} here; there are {', '.join(by_name)}"
        elif not by_name[name].up:
            yield f"slurm.partition: {name} takes no jobs now"
    chosen = [by_name[n] for n in names if n in by_name] or [p for p in there if p.default]
    limit = max((partition.limit_s for partition in chosen), default=float("inf"))
    if 60 * minutes(sweep.resources.time) > limit:
        yield (
            f"resources.time: {sweep.resources.time} is more than the {limit / 3600:g} h that "
            f"{' or '.join(p.name for p in chosen)} allows; a trial that takes longer goes on in a "
            "further job"
        )
    features = frozenset[str]().union(*(partition.features for partition in chosen))
    # what is left of an expression such as (a100|h100)&ib*2
    words = re.findall(r"[^\s&|,()\[\]*]+", str(sweep.slurm.get("constraint", "")))
    if lost := [w for w in words if not w.isdigit() and w not in features]:
        yield (
            f"slurm.constraint: no node of {' or '.join(p.name for p in chosen)} has "
            f"{', '.join(lost)}; there are {', '.join(sorted(features)) or 'no features'}"
        )


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
        yield (
            f"{jobs} jobs are to be submitted, your limit (MaxSubmitJobs) leaves {left:g}; wait "
            "for others to end, or ask for fewer trials"
        )


def _associations() -> list[tuple[str, str, str]]:
    """Return this user's (account, QOS names, most jobs); nothing where accounting is not there."""
    try:
        text = ask([
            "sacctmgr", "--noheader", "--parsable2", "show", "associations",
            f"users={getpass.getuser()}", "format=Account,QOS,MaxSubmit",
        ])
    except NoAnswer:
        return []
    rows = [line.split("|") for line in text.splitlines() if line.count("|") == 2]
    return [(account, names, most) for account, names, most in rows]
