"""`launch/slurm.py --doctor`: one short job per partition looks at what trials will meet there."""

import dataclasses
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.base.errors import UserError
from harness.base.locks import writing
from harness.base.machine import visible_gpus
from harness.base.network import free_port
from harness.cluster import causes, snapshots
from harness.cluster.doctor.checks import (
    CLOCK_S,
    Answers,
    Finding,
    clock_ahead,
    examine_job,
    read_answers,
)
from harness.cluster.rank_group import RankGroup
from harness.cluster.slurm import commands, script, site
from harness.cluster.slurm.deaths import deaths
from harness.sweeps.reading import Resources, Sweep

PENDING_S = 120.0
"""How long a job may wait in the queue."""
RUNNING_S = 300.0
"""How long it may take once it runs."""
POLL_S = 1.0
COLUMNS = ("python", "packages", "cores", "gpus", "all-reduce", "files", "scratch")
CHANGE = {
    "python": "name an interpreter of 3.11 or newer (slurm.python)",
    "packages": "install them for the jobs' Python, or name the right one (slurm.python, "
    "slurm.setup)",
    "cores": "this site gives cores in another way: see slurm.srun_args and resources.cpus",
    "gpus": "ask for GPUs that are there, as this site wants it (slurm.gres=gpu:1, resources.gpus)",
    "all-reduce": "the ranks cannot talk: name the network card (slurm.env: GLOO_SOCKET_IFNAME, "
    "NCCL_SOCKET_IFNAME)",
    "files": "put the runs on another file system (run.runs)",
    "scratch": "name a place with more room (slurm.env: TMPDIR)",
    "clock": "have the clocks set: a lock's age decides whether its holder is alive",
}


@dataclass
class Visit:
    """One partition, or this machine, and what was found there."""

    name: str
    nodes: int
    tasks: int
    """Ranks on each node."""
    folder: Path
    job: str = ""
    trouble: str = ""
    """Why there are no answers, or not all of them."""
    over: bool = False
    started: float = field(default_factory=time.monotonic)

    @property
    def ranks(self) -> int:
        return self.nodes * self.tasks

    @property
    def answers(self) -> list[Answers]:
        return read_answers(self.folder, self.ranks)


def diagnose(sweep: Sweep, *, cluster: bool, console: Console) -> int:
    """Look around, print the table and what to change; returns 0 when all is fine.

    sweep: its `slurm` section and resources are what is tried. cluster: one job on each partition
    (those of slurm.partition, if it names some), else two processes here. What is made is removed
    when all is fine.
    """
    home = sweep.folder.parent / ".doctor" / uuid.uuid4().hex[:10]
    with writing(home.parent):
        home.mkdir(parents=True, mode=0o700)
    try:
        if cluster:
            sweep = dataclasses.replace(sweep, folder=home)
            visits = _visit_partitions(sweep, home, console)
        else:
            visits = [_visit_here(sweep, home)]
    except (UserError, KeyboardInterrupt):
        shutil.rmtree(home, ignore_errors=True)
        raise
    here = clock_ahead(home)
    troubles = [line for one in visits for line in _troubles(one, here)]
    console.print(_table(visits, here))
    for line in troubles:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if troubles:
        console.print(f"files: {home}", highlight=False, markup=False, soft_wrap=True)
        return 1
    shutil.rmtree(home)
    return 0


# --- on the cluster ---


def _visit_partitions(sweep: Sweep, home: Path, console: Console) -> list[Visit]:
    asked = [name for name in str(sweep.slurm.get("partition", "")).split(",") if name]
    there = [p for p in site.partitions() if p.up and (not asked or p.name in asked)]
    if unknown := set(asked) - {p.name for p in there}:
        raise UserError(f"slurm.partition: no {', '.join(sorted(unknown))} that takes jobs here")
    if not there:
        raise UserError("no partition takes jobs now")
    sweep = dataclasses.replace(sweep, code=snapshots.working(sweep).freeze())
    visits = []
    try:
        for partition in there:
            nodes = max(1, min(2, partition.nodes))
            tasks = _tasks(sweep.resources, nodes)
            visit = Visit(partition.name, nodes, tasks, home / partition.name)
            visits.append(visit)
            _submit(sweep, visit)
        with console.status("") as line:
            _wait(visits, line.update)
    finally:
        commands.scancel([one.job for one in visits if one.job and not one.over])
    return visits


def _tasks(asked: Resources, nodes: int) -> int:
    """Return how many ranks to try on each node: one per GPU, as NCCL refuses two on one GPU.

    Without GPUs they are two in all, unless a trial's share has no room for them: a node need not
    have twice the cores of one rank.
    """
    if asked.gpus:
        return min(asked.ranks_per_node, asked.gpus)
    if nodes > 1:
        return 1
    return min(2, asked.ranks_per_node) if asked.cpus > 1 else 2


def _submit(sweep: Sweep, visit: Visit) -> None:
    visit.folder.mkdir(mode=0o700)
    resources = Resources(
        nodes=visit.nodes, tasks=visit.tasks, cpus=sweep.resources.cpus, gpus=sweep.resources.gpus,
        memory=sweep.resources.memory, time="10m",
    )
    own = dataclasses.replace(
        sweep, resources=resources, slurm={**sweep.slurm, "partition": visit.name}
    )
    executor = script.executor_for(own, visit.folder, f"doctor.{visit.name}")
    try:
        with commands.outside_any_job():
            job = executor.submit(
                examine_job, str(visit.folder.resolve()), resources.cpus,
                resources.gpus or (None if script.GPU_OPTIONS & set(sweep.slurm) else 0),
            )
    except Exception as error:  # submitit's own classes differ between its versions
        visit.trouble, visit.over = f"sbatch: {commands.last_line(error)}", True
        return
    visit.job = job.job_id


def _wait(visits: list[Visit], say: Callable[[str], None]) -> None:
    """Return when every job has ended, or waited too long."""
    running: dict[str, float] = {}
    while left := [one for one in visits if not one.over]:
        jobs = commands.my_jobs()
        for one in left:
            if one.job not in jobs:
                _ended(one)
            elif jobs[one.job][0] == "PENDING":
                if time.monotonic() - one.started > PENDING_S:
                    _give_up(one, f"still waits after {PENDING_S:.0f} s ({jobs[one.job][1]})")
            elif time.monotonic() - running.setdefault(one.job, time.monotonic()) > RUNNING_S:
                _give_up(one, f"has not answered after {RUNNING_S:.0f} s")
        say(", ".join(f"{one.name}: {jobs.get(one.job, ('', ''))[0].lower()}" for one in left))
        time.sleep(POLL_S)


def _ended(one: Visit) -> None:
    """Settle a job that has gone; what it wrote last may be seen a moment later."""
    one.over = True
    if len([a for a in one.answers if a.done]) < one.ranks:
        time.sleep(2 * POLL_S)
    if len([a for a in one.answers if a.done]) < one.ranks:
        told = causes.with_next_step(deaths({one.job: one.folder}).get(one.job, ""))
        one.trouble = told or f"the job ended without an answer; see {one.folder}"


def _give_up(one: Visit, why: str) -> None:
    commands.scancel([one.job])
    one.trouble, one.over = why, True


# --- here ---


def _visit_here(sweep: Sweep, home: Path) -> Visit:
    there, asked = visible_gpus(), sweep.resources
    if asked.gpus is None:
        asked = dataclasses.replace(asked, gpus=len(there), tasks=None)
    tried = there[: asked.gpus]
    tasks = _tasks(dataclasses.replace(asked, gpus=len(tried)), 1)
    one = Visit("this machine", 1, tasks, home)
    group = RankGroup(
        ranks=one.ranks, world=one.ranks, cpus=asked.cpus, gpus=",".join(tried), port=free_port()
    )
    processes = [
        group.start(
            rank, "harness.cluster.doctor.checks", str(home), str(asked.cpus), str(asked.gpus),
            log_file=home / f"{rank}.log",
        )
        for rank in range(one.ranks)
    ]
    deadline = time.monotonic() + RUNNING_S
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            one.trouble = f"has not answered after {RUNNING_S:.0f} s"
            process.kill()
    one.over = True
    if not one.trouble and len([a for a in one.answers if a.done]) < one.ranks:
        words = causes.last_words(sorted(home.glob("*.log")))
        one.trouble = causes.with_next_step("".join(words)) or f"a process died; see {home}"
    return one


# --- telling ---


def _clock(one: Answers, here: float | None) -> Finding:
    if one.clock_s is None or here is None:
        return Finding("not known")
    ahead = one.clock_s - here
    return Finding(f"{ahead:+.2f} s", abs(ahead) < CLOCK_S)


def _table(visits: list[Visit], here: float | None) -> Table:
    table = Table(title="doctor")
    for name in ("partition", "ranks on", *COLUMNS, "clock"):
        table.add_column(name, overflow="fold")
    for one in visits:
        hosts = sorted({answers.host for answers in one.answers})
        cells = [_cell([a.findings[name] for a in one.answers if name in a.findings], name)
                 for name in COLUMNS]
        clock = _cell([_clock(a, here) for a in one.answers], "clock")
        table.add_row(escape(one.name), f"{one.ranks} on {', '.join(hosts) or '?'}", *cells, clock)
    return table


def _cell(findings: list[Finding], name: str) -> str:
    """Say the worst of what the ranks found."""
    if not findings:
        return "[red]no answer[/]"
    worst = next((finding for finding in findings if not finding.fine), findings[0])
    if name == "packages" and worst.fine:
        return f"{len(worst.told.split(', '))} found"
    if name == "python":
        return escape(worst.told.partition(" ")[0])
    return escape(worst.told) if worst.fine else f"[red]{escape(worst.told)}[/]"


def _troubles(one: Visit, here: float | None) -> Iterator[str]:
    """Say what is wrong in one place and what to change, once for all ranks that found it."""
    if one.trouble:
        yield f"{one.name}: {one.trouble}"
    said: dict[str, str] = {}
    for answers in one.answers:
        for name, finding in {**answers.findings, "clock": _clock(answers, here)}.items():
            if not finding.fine:
                said.setdefault(f"{name}: {finding.told}", f"rank {answers.rank} on {answers.host}")
    for told, where in said.items():
        yield f"{one.name}: {told} ({where}); {CHANGE[told.partition(':')[0]]}"
