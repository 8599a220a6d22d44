"""Checks of a sweep against this SLURM before submission, by `sbatch --test-only`."""

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from harness.base.errors import UserError
from harness.base.machine import user_name
from harness.base.units import gigabytes, minutes, slurm_seconds
from harness.cluster.place import NoAnswer
from harness.cluster.slurm import commands, script
from harness.cluster.slurm.commands import ask, call, no_answer
from harness.sweeps.keys import Resources
from harness.sweeps.reading import Sweep

log = logging.getLogger(__name__)

READY = ("idle", "mix", "alloc", "comp", "plnd")
"""States of nodes that accept jobs, now or later."""
MARKS = "~#!%$@^-+"
"""Suffixes of a state in sinfo: powered down or up, planned, ..."""


@dataclass(frozen=True)
class Partition:
    """What a sweep's keys are checked against."""

    name: str
    default: bool = False
    limit_s: float = 0.0
    state: str = "up"
    """up, down (jobs wait), drain or inact (jobs are refused)."""
    features: frozenset[str] = frozenset()
    """Of any of its nodes."""
    nodes: int = 0
    """How many accept jobs."""
    all_nodes: int = 0
    cpus: int = 0
    """Of its largest node; likewise memory and GPUs."""
    memory_mb: int = 0
    gpus: int = 0

    @property
    def up(self) -> bool:
        return self.state == "up"


def check(sweep: Sweep, jobs: int) -> None:
    """Raise UserError with SLURM's words on what it would refuse, and the key that they are about.
    jobs: how many will be submitted."""
    there, named = partitions(hidden=True), script.options_of(sweep).get("partition")
    chosen = [p for p in there if (p.name in named.split(",") if named else p.default)]
    count = min(max(1, jobs), commands.max_array_size())
    faults, refusal = list(_time_faults(sweep, chosen)), _refusal(script.script(sweep, count))
    if refusal and not (faults and "time limit" in refusal):
        faults += _explained(refusal, sweep, there, chosen)
    if faults:
        raise UserError("\n".join(f"{sweep.file}: {fault}" for fault in faults))
    if chosen and not any(partition.up for partition in chosen):
        log.warning("%s: slurm.partition: jobs wait until %s is up", sweep.file, _either(chosen))


def partitions(*, hidden: bool = False) -> list[Partition]:
    """Return the cluster's partitions; hidden: also those that sinfo hides by default."""
    found: dict[str, Partition] = {}
    every = ["--all"] if hidden else []
    text = ask(["sinfo", *every, "--exact", "--noheader", "--format=%P|%l|%a|%D|%t|%c|%m|%G|%f"])
    for line in text.splitlines():
        label, limit, state, count, nodes, cpus, memory, gres, features = line.strip().split("|", 8)
        name, own = label.rstrip("*"), set() if features == "(null)" else set(features.split(","))
        gpus = sum(map(int, re.findall(r"\bgpu:(?:[^:,()]+:)?(\d+)", gres)))
        before = found.get(name, Partition(name))
        found[name] = Partition(
            name, label.endswith("*"), slurm_seconds(limit), state, before.features | own,
            (int(count) if nodes.rstrip(MARKS) in READY else 0) + before.nodes,
            int(count) + before.all_nodes, max(int(cpus), before.cpus),
            max(int(memory), before.memory_mb), max(gpus, before.gpus),
        )
    return list(found.values())


def _either(chosen: Sequence[Partition]) -> str:
    return " or ".join(partition.name for partition in chosen)


def _time_faults(sweep: Sweep, chosen: Sequence[Partition]) -> Iterator[str]:
    """Yield a message on a time limit with which SLURM would let jobs wait for ever."""
    limit = max((partition.limit_s for partition in chosen), default=float("inf"))
    if 60 * minutes(sweep.resources.time) > limit:
        yield (f"resources.time: {sweep.resources.time} is more than the {limit / 3600:g} h that "
               f"{_either(chosen)} allows; a trial that takes longer continues in a further job")


def _refusal(text: str) -> str:
    """Return SLURM's words on an sbatch script that it would refuse, "" on others."""
    command = ["sbatch", "--test-only"]
    answer = call(command, text)
    if answer.returncode == 0:
        return ""
    lines = [line for line in answer.stderr.splitlines() if line and not line.startswith("Try ")]
    lines = [line for line in lines if re.search("error:|failure:", line)] or lines
    words = "; ".join(re.sub("^(sbatch: )?(error: |allocation failure: )?", "", x) for x in lines)
    if re.search("contact slurm controller|timed out|temporarily unable", words):
        raise no_answer(command, words)
    return words or f"sbatch ends with exit status {answer.returncode}"


def _explained(
    words: str, sweep: Sweep, there: Sequence[Partition], chosen: Sequence[Partition]
) -> list[str]:
    """Return SLURM's words with the key that they are about, and what would be accepted."""
    if "account or account/partition" in words:
        return [f"slurm.account: {words}; yours: {_mine(0)}"]
    if "Invalid qos" in words:
        return [f"slurm.qos: {words}; yours: {_mine(1)}"]
    if "submit limit" in words:
        return [f"{words}; wait for other jobs to end, or submit fewer (--first N)"]
    if "artition" in words:
        up = ", ".join(partition.name for partition in there if partition.up)
        return [f"slurm.partition: {words}; partitions that accept jobs: {up or 'none'}"]
    if "feature" in words:
        features = sorted(frozenset[str]().union(*(partition.features for partition in chosen)))
        return [f"slurm.constraint: {words}; features of {_either(chosen)}: "
                f"{', '.join(features) or 'none'}"]
    own = [key for key in script.GPU_OPTIONS if key in sweep.slurm]
    if "generic resource" in words and own:
        return [f"slurm.{own[0]}: {words}"]
    if chosen and ("node configuration" in words or "generic resource" in words):
        return list(_node_faults(words, sweep.resources, chosen))
    return [words]


def _node_faults(words: str, resources: Resources, chosen: Sequence[Partition]) -> Iterator[str]:
    """Yield SLURM's words for each key of `resources` that no node of the partitions can meet.

    SLURM says the same of jobs that fit only on nodes which are down or drained now; it would let
    these wait, so they are logged only.
    """
    asked = {
        "nodes": (resources.nodes, "nodes"),
        "cpus": (resources.ranks_per_node * resources.cpus, "CPUs on a node (tasks x cpus)"),
        "memory": (round(gigabytes(resources.memory or "") * 1024), "MB on a node"),
        "gpus": (resources.gpus or 0, "GPUs on a node"),
    }
    most = {"nodes": "all_nodes", "cpus": "cpus", "memory": "memory_mb", "gpus": "gpus"}
    has = {key: max((getattr(p, name) for p in chosen), default=0) for key, name in most.items()}
    either, is_told = _either(chosen), False
    for key, (number, what) in asked.items():
        if number > has[key]:
            is_told = True
            yield f"resources.{key}: {words}; {number} {what}, {either} has at most {has[key]}"
    if is_told:
        return
    if all(partition.nodes == partition.all_nodes for partition in chosen):
        yield (f"resources: {words}; {either} has {has['nodes']} nodes with at most {has['cpus']} "
               f"CPUs, {has['memory']} MB and {has['gpus']} GPUs")
    else:
        log.warning("jobs wait for nodes that are down, drained or reserved: %s", words)


def _mine(column: int) -> str:
    """Return this user's accounts (column 0) or QOS (1)."""
    try:
        text = ask(["sacctmgr", "--noheader", "--parsable2", "show", "associations",
                    f"users={user_name()}", "format=Account,QOS"])
    except NoAnswer as error:
        return str(error).splitlines()[0]
    names = [name for line in text.splitlines() for name in line.split("|")[column].split(",")]
    return ", ".join(dict.fromkeys(filter(None, names))) or "none"
