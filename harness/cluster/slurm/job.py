"""The job of one trial on SLURM, on every rank."""

import os
import signal
import subprocess
import time
from pathlib import Path

from harness.base.caches import keep_caches_here
from harness.base.errors import UserError
from harness.base.locks import job_id
from harness.base.units import counted, slurm_seconds
from harness.cluster import pages
from harness.cluster.rank_processes import TrialFailed, drop_own_lock, log, log_to_stderr, stop_on
from harness.runs.execute import execute
from harness.runs.run import Run
from harness.runs.stopping import stop_requested

REQUEUE_TRIES = 3
REQUEUE_LIMIT_S = 30.0
"""`scontrol requeue` was seen to hang."""
MAX_TIME_OUTS, SIGNAL_DELAY_S = "SVLL_MAX_TIME_OUTS", "SVLL_SIGNAL_DELAY_S"
"""Environment variables of a job: how often its time limit may end it, and how long before it SLURM
sends the signal."""
LATE_S = 60.0
"""Tolerance on the time at which SLURM sends a signal."""


def run_trial(run_folder: str) -> str:
    """Execute the run as one rank of a SLURM job; the job of a stopped run is requeued. Raises
    TrialFailed when the run failed, so that the job's exit status shows it too."""
    # first of all: submitit's own handler would save on one rank while others wait
    stop_on(signal.SIGUSR2, signal.SIGTERM)
    log_to_stderr()
    keep_caches_here()
    set_slurm_ranks()
    check_cores()
    run = Run(Path(run_folder))
    if os.environ["RANK"] == "0":
        drop_own_lock(run)
    try:
        outcome = "stopped" if stop_requested() else execute(run)
        if outcome != "stopped" and os.environ["RANK"] == "0":
            pages.write_if_over(run.folder.parent)
    except UserError as error:  # its message, not a traceback
        log.error("%s", error)
        raise TrialFailed(str(error)) from None
    if outcome == "failed":
        raise TrialFailed(run.status().get("error", "another rank failed"))
    if outcome == "stopped":
        if os.environ["RANK"] == "0":
            requeue(run)
        # no return: a result that submitit wrote in part would break the next attempt's
        raise SystemExit(0)
    return outcome


def set_slurm_ranks() -> None:
    """Set torch's and DeepSpeed's variables (rank, world, master) from SLURM's."""
    slurm = os.environ
    world = int(slurm.get("SLURM_STEP_NUM_TASKS", slurm.get("SLURM_NTASKS", "1")))
    os.environ["RANK"] = slurm.get("SLURM_PROCID", "0")
    os.environ["LOCAL_RANK"] = slurm.get("SLURM_LOCALID", "0")
    os.environ["WORLD_SIZE"] = str(world)
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    if world > 1:
        from submitit.slurm.slurm import SlurmJobEnvironment  # late: slow

        os.environ["MASTER_ADDR"] = SlurmJobEnvironment().hostnames[0]
    # jobs on one node need different ports; ids of jobs that run together are close
    os.environ["MASTER_PORT"] = str(20000 + int(slurm.get("SLURM_JOB_ID", "0")) % 20000)
    os.environ.setdefault("OMP_NUM_THREADS", slurm.get("SLURM_CPUS_PER_TASK", "1"))


def join_step() -> None:
    """Set torch's rank variables if `srun` alone started this process as one of several tasks.

    torchrun and deepspeed set them themselves. Only a step has SLURM_STEP_NUM_TASKS; the shell of
    an allocation is no step, or a step of one task.
    """
    if "RANK" not in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        set_slurm_ranks()


def check_cores() -> None:
    """Log this rank's cores, and warn when they are fewer than the job asked for."""
    cores = os.sched_getaffinity(0)
    asked = int(os.environ.get("SLURM_CPUS_PER_TASK", "1"))
    log.info("rank %s of %s on %s: cores %s", os.environ["RANK"], os.environ["WORLD_SIZE"],
             os.uname().nodename, ",".join(map(str, sorted(cores))))
    if len(cores) < asked:
        log.warning("%d cores were asked for, srun gave %d", asked, len(cores))


def requeue(run: Run | None = None) -> None:
    """Requeue this job, unless it is being cancelled or has timed out too often.

    SLURM sends the same TERM before a preemption and for `scancel`, but only a job that may
    continue is still RUNNING then. The next launch resumes a job that was not requeued.
    """
    job, is_counted = job_id(), run is None
    for _ in range(REQUEUE_TRIES):
        try:
            line = _run(["squeue", "--noheader", f"--jobs={job}", "--format=%T|%L"]).strip()
            state, _, left = line.partition("|")
            if state != "RUNNING":
                log.warning("job %s is %s: not requeued", job, state or "gone")
                return
            if run is not None and not is_counted:
                is_counted = True
                if not _may_continue(run, slurm_seconds(left)):
                    return
            _run(["scontrol", "requeue", str(job)])
            log.info("job %s was requeued", job)
            return
        except (OSError, subprocess.SubprocessError) as error:
            log.warning("scontrol requeue %s: %s", job, error)
            time.sleep(1.0)
    log.error("job %s could not be requeued; launch the sweep again", job)


def _may_continue(run: Run, left_s: float) -> bool:
    """Count a time-out or a preemption in the run's status; False after too many time-outs. Not by
    submitit, which takes every signal for a time-out if the limit is ten minutes or less."""
    status = run.status()
    by_limit = left_s <= float(os.environ.get(SIGNAL_DELAY_S, "90")) + LATE_S
    kind = "time_outs" if by_limit else "preemptions"
    status[kind] = count = status.get(kind, 0) + 1
    most = int(os.environ.get(MAX_TIME_OUTS, "20"))
    over = by_limit and count > most
    if over:
        status["reason"] = (f"reached its time limit {counted(count, 'time')}, allowed are {most} "
                            "(resources.max_time_outs); give it more time (resources.time), or "
                            "launch it again")
        log.error("not requeued: %s", status["reason"])
    facts = {key: value for key, value in status.items() if key not in ("state", "time")}
    run.set_status(status["state"], **facts)
    return not over


def _run(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True,
                          timeout=REQUEUE_LIMIT_S).stdout
