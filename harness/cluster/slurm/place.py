"""SLURM as a place where jobs run: submission by submitit, states by squeue, end by scancel."""

import logging
import os
import pkgutil
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path

from harness.base.errors import UserError
from harness.base.units import counted
from harness.cluster.place import Job, NoAnswer, Place, Room, Submission, Task
from harness.cluster.records import EVERY, Cluster, Record, read_records
from harness.cluster.slurm import before_and_after, commands, script, site
from harness.cluster.slurm.job import requeue, run_trial
from harness.cluster.snapshots import check_folders
from harness.runs.run import Run
from harness.sweeps.reading import Sweep, Trial

log = logging.getLogger(__name__)


@dataclass
class Slurm(Place):
    """The SLURM cluster to which this machine submits; see `place.Place` for the methods."""

    max_age_s: float = 0.0
    """Maximum age of squeue's answer."""
    patient: bool = False
    """Whether to wait for a controller that does not answer, instead of raising UserError."""
    name: Cluster = "slurm"
    title: str = "on SLURM"
    _site: str = ""
    _silent_until: float = float("-inf")
    """Before then SLURM is not asked for its name again: each record asks for it."""
    _jobs: dict[str, tuple[str, str, str]] | None = None
    _asked_at: float = float("-inf")
    _deaths: dict[str, str] = field(default_factory=dict)

    def check(self, sweep: Sweep, jobs: int) -> None:
        check_folders(sweep, script.UNREADABLE, script.NO_TEXT)
        site.check(sweep, jobs + before_and_after.job_count(sweep, jobs))

    def room(self, sweep: Sweep, limit: int | None, trials_per_gpu: int = 1) -> Room:
        room = Room(sweep.resources, most_jobs=commands.max_array_size())
        most = sweep.slurm.get("array_parallelism")
        if most is None:
            return room
        left, living = _left(sweep, most)
        if not left:
            log.warning("slurm.array_parallelism is %d: these trials wait until the %s of earlier "
                        "launches have ended", most, counted(len(living), "job"))
        return replace(room, at_once=left or most, after=() if left else living)

    def describe(self, sweep: Sweep, trials: int, limit: int | None) -> str:
        lines = script.variables(sweep)
        if sweep.slurm.get("wrap"):
            lines.append(f"inside {sweep.slurm['wrap'][0]}, jobs need at the same paths: "
                         f"{', '.join(script.inside(sweep))}; and SLURM's squeue and scontrol, to "
                         "requeue stopped trials")
        if sweep.resources.gpus is None and not script.gpu_option(sweep):
            lines.append("trials run on the CPU, because the sweep requests no GPU; resources.gpus"
                         "=1 requests one per trial, resources.gpus=0 hides this line")
        return "\n".join(lines)

    def preview(self, sweep: Sweep, jobs: int) -> str:
        return f"sbatch gets:\n\n{script.script(sweep, jobs)}"

    # --- submission, states, cancellation ---

    def site(self) -> str:
        if not self._site and time.monotonic() >= self._silent_until:
            try:
                self._site = commands.cluster_name()
            except NoAnswer:
                if not self.patient:
                    raise
                self._silent_until = time.monotonic() + commands.ANSWER_LIMIT_S
        return self._site

    def surrounding_jobs(
        self, sweep: Sweep, trials: Sequence[Trial], records: Sequence[Record]
    ) -> AbstractContextManager[Sequence[str]]:
        return before_and_after.surrounding_jobs(sweep, trials, records, self)

    def submit(self, submission: Submission, record: Record, after: Sequence[str] = ()) -> None:
        """Submit one array of jobs, or the one job of a function.

        The record stays even when sbatch fails: an sbatch that timed out may still have submitted,
        and the next launch looks for its jobs. Raises UserError with sbatch's message.
        """
        sweep, trials = submission.sweep, submission.trials
        jobs = dict.fromkeys(number.partition("_")[0] for number in after)  # arrays as a whole
        options = script.depending_on(sweep.slurm, [*jobs])
        if at_once := submission.options.get("at_once"):
            options = {**options, "array_parallelism": at_once}
        sweep = replace(sweep, slurm=options)
        name = script.job_name(sweep, record.token)
        executor = script.executor_for(sweep, Path(record.folder), name)
        around = record.options.get("around")
        with commands.submitting(f"the job {around} the trials" if around else "the jobs"):
            if submission.function:
                function = pkgutil.resolve_name(submission.function)
                record.jobs = {EVERY: executor.submit(function, str(record.file)).job_id}
            else:
                folders = [str(trial.run.folder.resolve()) for trial in trials]
                ids = [job.job_id for job in executor.map_array(run_trial, folders)]
                record.jobs = dict(zip([t.signature for t in trials], ids, strict=True))
        record.write("submitted")

    def settle(self, records: Sequence[Record]) -> None:
        jobs = commands.my_jobs()
        for record in records:
            recover(record, jobs)

    def jobs(self, records: Mapping[str, Sequence[Record]]) -> Mapping[str, Job]:
        named = {key: [(number, record) for record in own if (number := record.job_of(key))]
                 for key, own in records.items()}
        if not any(named.values()):
            return {}
        known = self._my_jobs()
        if known is None:
            return {key: Job("queued", "SLURM does not answer", own[-1][1].token)
                    for key, own in named.items() if own}
        return {key: _job(known[number], record) for key, own in named.items()
                for number, record in own if commands.is_of(known.get(number), record)}

    def _my_jobs(self) -> dict[str, tuple[str, str, str]] | None:
        """Return the user's jobs (see `commands.my_jobs`), None before SLURM's first answer."""
        if time.monotonic() - self._asked_at >= self.max_age_s:
            try:
                self._jobs = commands.my_jobs()
            except UserError as error:
                if not self.patient:
                    raise
                log.warning("%s", str(error).splitlines()[0])
            self._asked_at = time.monotonic()
        return self._jobs

    def deaths(self, records: Mapping[str, Record]) -> Mapping[str, str]:
        ids = _job_ids(records)
        # each is asked for once, because accounting may be slow
        if new := {n: Path(records[key].folder) for key, n in ids.items() if n not in self._deaths}:
            self._deaths |= dict.fromkeys(new, "") | commands.deaths(new)
        return {key: self._deaths[number] for key, number in ids.items()}

    def cancel(self, sweep: Sweep, records: Sequence[Record], runs: Sequence[Run]) -> None:
        if any(record.jobs for record in records):
            jobs = commands.my_jobs()
            if ids := {number for record in records for number in commands.living(record, jobs)}:
                commands.cancel(ids)

    # --- inside a job ---

    def task(self) -> Task:
        from submitit.slurm.slurm import SlurmJobEnvironment  # late: slow for --status

        attempt = f"{os.environ['SLURM_JOB_ID']}-{os.environ.get('SLURM_RESTART_COUNT', '0')}"
        hosts = tuple(SlurmJobEnvironment().hostnames)
        return Task(int(os.environ.get("SLURM_PROCID", "0")), attempt, hosts)

    def requeue(self, counted: Run, parts: Sequence[Run]) -> None:
        requeue(counted, parts)


def _job_ids(records: Mapping[str, Record]) -> dict[str, str]:
    return {key: number for key, record in records.items() if (number := record.job_of(key))}


def _job(job: tuple[str, str, str], record: Record) -> Job:
    state, reason, _ = job
    if state == "PENDING":
        return Job("queued", "" if reason == "None" else reason, record.token)
    if EVERY in record.jobs:
        return Job("queued", "waits in the search", record.token)
    return Job("running", state, record.token)


def _left(sweep: Sweep, most: int) -> tuple[int, list[str]]:
    """Return how many jobs may run beside the living ones of a sweep, of which at most `most` may,
    and the ids of the living ones. SLURM knows such a limit only for each array."""
    jobs = commands.my_jobs()
    used, living = 0, []
    for record in read_records(sweep.folder):
        if record.trials and (own := commands.living(record, jobs)):
            used += min(len(own), record.options.get("at_once", most))
            living += own
    return max(0, most - used), living


def recover(record: Record, jobs: Mapping[str, tuple[str, str, str]]) -> None:
    """Settle a submission whose launcher was killed before it stored the job ids.

    Jobs whose submitit file exists can run and are adopted; others are cancelled, and their trials
    count as missing again.
    """
    lost = []
    for number, job in jobs.items():
        if not commands.is_of(job, record):
            continue
        _, _, index = number.partition("_")
        if not (Path(record.folder) / f"{number}_submitted.pkl").exists():
            lost.append(number)
        elif record.options.get("function"):
            record.jobs = {EVERY: number}
        else:
            record.jobs[record.trials[int(index or 0)]] = number
    commands.scancel(lost)
    record.write("submitted")
