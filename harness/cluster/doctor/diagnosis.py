"""`launch/slurm.py --doctor`: one short job per partition checks what trials will find there."""

import dataclasses
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.base.errors import UserError
from harness.base.locks import writing
from harness.base.machine import visible_gpus
from harness.cluster import snapshots
from harness.cluster.causes import cause_in_logs, with_next_step
from harness.cluster.doctor import checks
from harness.cluster.rank_processes import RankGroup, end_within, start_process
from harness.cluster.slurm import commands, script, site
from harness.sweeps.keys import Resources
from harness.sweeps.reading import Sweep

PENDING_S = 120.0
"""How long a job may wait in the queue."""
RUNNING_S = 300.0
"""How long it may run."""
POLL_S = 1.0
ADVICE = {
    "python": "name an interpreter of 3.11 or newer (slurm.python)",
    "packages": "install them for the jobs' Python, or name the right one (slurm.python, "
    "slurm.setup)",
    "cores": "this site gives cores in another way: see slurm.srun_args and resources.cpus",
    "gpus": "ask for GPUs that are there, as this site wants it (slurm.gres=gpu:1, resources.gpus)",
    "all-reduce": "the ranks cannot talk: name the network card (slurm.env: GLOO_SOCKET_IFNAME, "
    "NCCL_SOCKET_IFNAME)",
    "files": "put the runs on another file system (run.runs)",
    "scratch": "name a folder with more room (slurm.env: TMPDIR)",
    "clock": "have the clocks set: a lock's age decides whether its holder is alive",
}
"""What to change, by check; the table's columns."""


@dataclass
class Diagnosis:
    """One partition, or this machine, and its ranks' reports."""

    name: str
    nodes: int
    tasks: int
    """Ranks on each node."""
    folder: Path
    gpus: int = 0
    """GPUs requested on each node."""
    job: str = ""
    trouble: str = ""
    """Why reports are missing."""
    over: bool = False
    started: float = field(default_factory=time.monotonic)

    @property
    def ranks(self) -> int:
        return self.nodes * self.tasks

    @property
    def is_whole(self) -> bool:
        """Whether every rank has finished its checks."""
        return sum(report.done for report in checks.read_reports(self.folder)) == self.ranks


def diagnose(sweep: Sweep, *, cluster: bool, console: Console) -> int:
    """Run the checks, print the table and what to change; returns 0 when all is fine.

    sweep: its `slurm` section and resources are checked. cluster: one job on each partition (those
    of slurm.partition, if it names some); otherwise processes on this machine. All files are
    removed when all is fine.
    """
    home = sweep.folder.parent / ".doctor" / uuid.uuid4().hex[:10]
    with writing(home.parent):
        home.mkdir(parents=True, mode=0o700)
    try:
        if cluster:
            sweep = dataclasses.replace(sweep, folder=home)
            diagnoses = _diagnose_partitions(sweep, home, console)
        else:
            diagnoses = [_diagnose_here(sweep, home)]
    except (UserError, KeyboardInterrupt):
        shutil.rmtree(home, ignore_errors=True)
        raise
    reports = {one.name: _reports(one, checks.clock_ahead(home)) for one in diagnoses}
    troubles = [line for one in diagnoses for line in _troubles(one, reports[one.name])]
    console.print(_table(diagnoses, reports))
    for line in [*troubles, *([f"files: {home}"] if troubles else [])]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if not troubles:
        shutil.rmtree(home)
    return 1 if troubles else 0


# --- on the cluster ---


def _diagnose_partitions(sweep: Sweep, home: Path, console: Console) -> list[Diagnosis]:
    wanted = [name for name in str(sweep.slurm.get("partition", "")).split(",") if name]
    partitions = [p for p in site.partitions() if p.up and (not wanted or p.name in wanted)]
    if unknown := set(wanted) - {p.name for p in partitions}:
        raise UserError(f"slurm.partition: no partition {', '.join(sorted(unknown))} that accepts "
                        "jobs here")
    if not partitions:
        raise UserError("no partition accepts jobs now")
    script.parameters(sweep, job_name="doctor")  # what it refuses, the smaller jobs here may not
    sweep = dataclasses.replace(sweep, code=snapshots.current_code(sweep).freeze())
    diagnoses = []
    try:
        for partition in partitions:
            nodes = max(1, min(2, partition.nodes))
            gpus = script.gpus_per_node(dataclasses.replace(
                sweep, resources=dataclasses.replace(sweep.resources, nodes=nodes)))
            one = Diagnosis(partition.name, nodes, _tasks(sweep.resources, nodes, gpus),
                            home / partition.name, gpus)
            diagnoses.append(one)
            _submit(sweep, one)
        with console.status("") as line:
            _wait(diagnoses, line.update)
    finally:
        commands.scancel([one.job for one in diagnoses if one.job and not one.over])
    return diagnoses


def _tasks(asked: Resources, nodes: int, gpus: int) -> int:
    """Return the ranks to run on each node: one per GPU, because NCCL refuses two on one GPU.
    gpus: how many are requested on each node.

    Without GPUs two in all, but one where a rank takes several cores: a node need not have twice as
    many.
    """
    if gpus:
        return min(asked.ranks_per_node, gpus)
    if nodes > 1:
        return 1
    return min(2, asked.ranks_per_node) if asked.cpus > 1 else 2


def _submit(sweep: Sweep, one: Diagnosis) -> None:
    one.folder.mkdir(mode=0o700)
    resources = dataclasses.replace(sweep.resources, nodes=one.nodes, tasks=one.tasks, time="10m")
    own = dataclasses.replace(sweep, resources=resources,
                              slurm={**sweep.slurm, "partition": one.name})
    executor = script.executor_for(own, one.folder, f"doctor.{one.name}")
    folder = str(one.folder.resolve())
    try:
        with commands.submitting("the job"):
            one.job = executor.submit(checks.check_job, folder, resources.cpus, one.gpus).job_id
    except UserError as error:
        one.trouble, one.over = str(error), True


def _wait(diagnoses: list[Diagnosis], show: Callable[[str], None]) -> None:
    """Return when every job has ended, or was cancelled because it took too long."""
    running: dict[str, float] = {}
    while left := [one for one in diagnoses if not one.over]:
        jobs = commands.my_jobs()
        for one in left:
            now = time.monotonic()
            if one.job not in jobs:
                one.over = True
                if not one.is_whole:
                    time.sleep(2 * POLL_S)  # its last files may become visible a moment later
                if not one.is_whole:
                    death = with_next_step(commands.deaths({one.job: one.folder}).get(one.job, ""))
                    one.trouble = death or f"the job ended without an answer; see {one.folder}"
            elif jobs[one.job][0] == "PENDING":
                if now - one.started > PENDING_S:
                    one.trouble = f"still pending after {PENDING_S:.0f} s ({jobs[one.job][1]})"
            elif now - running.setdefault(one.job, now) > RUNNING_S:
                one.trouble = f"no answer after {RUNNING_S:.0f} s"
            if one.trouble and not one.over:
                commands.scancel([one.job])
                one.over = True
        show(", ".join(f"{one.name}: {jobs.get(one.job, ('', ''))[0].lower()}" for one in left))
        time.sleep(POLL_S)


# --- on this machine ---


def _diagnose_here(sweep: Sweep, home: Path) -> Diagnosis:
    visible, asked = visible_gpus(), sweep.resources
    if asked.gpus is None:
        asked = dataclasses.replace(asked, gpus=len(visible), tasks=None)
    gpus = visible[: asked.gpus]
    tasks = _tasks(dataclasses.replace(asked, gpus=len(gpus)), 1, len(gpus))
    one = Diagnosis("this machine", 1, tasks, home, asked.gpus or 0)
    group = RankGroup(ranks=one.ranks, world=one.ranks, cpus=asked.cpus, gpus=",".join(gpus))
    processes = [
        start_process("harness.cluster.doctor.checks", str(home), str(asked.cpus), str(one.gpus),
                      log_file=home / f"{rank}.log", environment=group.environment(rank))
        for rank in range(one.ranks)
    ]
    end_within(processes, RUNNING_S)
    if not one.is_whole:
        if time.monotonic() - one.started > RUNNING_S:
            one.trouble = f"no answer after {RUNNING_S:.0f} s"
        else:
            cause = with_next_step(cause_in_logs(home.glob("*.log")))
            one.trouble = cause or f"a process died; see {home}"
    return one


# --- output ---


def _reports(one: Diagnosis, here: float | None) -> list[checks.RankReport]:
    """Return the ranks' reports, with a finding on their clocks against this machine's."""
    reports = checks.read_reports(one.folder)
    for report in reports:
        found = checks.Finding("not known")
        if report.clock_s is not None and here is not None:
            ahead = report.clock_s - here
            found = checks.Finding(f"{ahead:+.2f} s", abs(ahead) < checks.CLOCK_S)
        report.findings["clock"] = found
        if (fault := _gpu_fault(report, reports, one.gpus)) and "gpus" in report.findings:
            report.findings["gpus"] = checks.Finding(fault, fine=False)
    return reports


def _gpu_fault(
    report: checks.RankReport, reports: list[checks.RankReport], requested: int
) -> str:
    """Return what is wrong with the GPUs of a rank beside those of the others on its node; each may
    see one only."""
    beside = [other for other in reports if other.host == report.host]
    if not report.gpus or not all(other.gpus for other in beside):
        return ""
    if sharing := [str(other.rank) for other in beside
                   if other is not report and other.gpus[0] == report.gpus[0]]:
        return f"also used by rank {', '.join(sharing)}: {report.gpus[0]}"
    seen = {gpu for other in beside for gpu in other.gpus}
    return f"{len(seen)}; {requested} asked" if len(seen) < requested else ""


def _table(diagnoses: list[Diagnosis], reports: Mapping[str, list[checks.RankReport]]) -> Table:
    table = Table(title="doctor")
    for name in ("partition", "ranks on", *ADVICE):
        table.add_column(name, overflow="fold")
    for one in diagnoses:
        hosts = ", ".join(sorted({report.host for report in reports[one.name]})) or "?"
        all_findings = [report.findings for report in reports[one.name]]
        cells = [_cell([f[name] for f in all_findings if name in f], name) for name in ADVICE]
        table.add_row(escape(one.name), f"{one.ranks} on {hosts}", *cells)
    return table


def _cell(findings: list[checks.Finding], name: str) -> str:
    """Return the worst of the ranks' findings."""
    if not findings:
        return "[red]no answer[/]"
    worst = next((finding for finding in findings if not finding.fine), findings[0])
    if name == "packages" and worst.fine:
        return f"{len(worst.text.split(', '))} found"
    if name == "python":
        return escape(worst.text.partition(" ")[0])
    return escape(worst.text) if worst.fine else f"[red]{escape(worst.text)}[/]"


def _troubles(one: Diagnosis, reports: list[checks.RankReport]) -> Iterator[str]:
    """Yield what is wrong and what to change, once for all ranks that found it."""
    if one.trouble:
        yield f"{one.name}: {one.trouble}"
    ranks: dict[tuple[str, str], str] = {}
    for report in reports:
        for name, finding in report.findings.items():
            if not finding.fine:
                ranks.setdefault((name, finding.text), f"rank {report.rank} on {report.host}")
    for (name, text), rank in ranks.items():
        yield f"{one.name}: {name}: {text} ({rank}); {ADVICE[name]}"
