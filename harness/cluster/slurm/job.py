"""The job of one trial on SLURM, on every rank."""

import hashlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.base.caches import keep_caches_here
from harness.base.errors import UserError
from harness.base.locks import job_id
from harness.base.units import counted, slurm_seconds
from harness.cluster import pages
from harness.cluster.rank_processes import TrialFailed, drop_own_lock, log, log_to_stderr, stop_on
from harness.cluster.slurm.commands import clean_environment
from harness.runs import peers
from harness.runs.execute import execute
from harness.runs.run import Run
from harness.runs.stopping import stop_after, stop_requested, was_terminated

REQUEUE_TRIES = 3
REQUEUE_LIMIT_S = 30.0
"""`scontrol requeue` was seen to hang."""
MAX_TIME_OUTS, SIGNAL_DELAY_S = "SVLL_MAX_TIME_OUTS", "SVLL_SIGNAL_DELAY_S"
"""Environment variables of a job: how often its time limit may end it, and how long before it SLURM
sends the signal."""
NO_GPU = "SVLL_NO_GPU"
"""Environment variable of a job: 1 if it requests no GPU."""
LATE_S = 60.0
"""Tolerance on the time at which SLURM sends a signal."""
SHORT_LIMIT = "short_limit_s"
"""Entry of a status: the time limit is below the signal's delay."""
MOST_IDLE = 3
"""After so many time-outs in a row at the same place without a new checkpoint, a job is not
requeued."""


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
        outlast_early_signal(run)
        is_over = stop_requested()
        if os.environ["WORLD_SIZE"] != "1" and was_terminated():
            is_over = False  # srun sends TERM if another rank cannot start: `execute` says so
        outcome = "stopped" if is_over else execute(run)
        if outcome != "stopped" and os.environ["RANK"] == "0":
            pages.write_if_over(run.folder.parent)
    except UserError as error:  # its message, not a traceback
        log.error("%s", error)
        raise TrialFailed(str(error)) from None
    if outcome == "failed":
        raise TrialFailed(run.status().get("error", "another rank failed"))
    if outcome == "stopped":
        if os.environ["RANK"] == "0":
            requeue(run, [run])
        # no return: a result that submitit wrote in part would break the next attempt's
        raise SystemExit(0)
    return outcome


def set_slurm_ranks() -> None:
    """Set the variables of torch, DeepSpeed and `harness.runs.peers` from SLURM's, and hide GPUs
    that the job did not request."""
    slurm = os.environ
    if slurm.get(NO_GPU) == "1":  # a site may let a job see them all; srun drops an empty variable
        slurm.setdefault("CUDA_VISIBLE_DEVICES", "")
    world = int(slurm.get("SLURM_STEP_NUM_TASKS", slurm.get("SLURM_NTASKS", "1")))
    os.environ["RANK"] = slurm.get("SLURM_PROCID", "0")
    os.environ["LOCAL_RANK"] = slurm.get("SLURM_LOCALID", "0")
    os.environ["WORLD_SIZE"] = str(world)
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    if world > 1:
        from submitit.slurm.slurm import _parse_node_list  # late: slow

        # a step may have other nodes than its allocation begins with
        nodes = slurm.get("SLURM_STEP_NODELIST", slurm.get("SLURM_JOB_NODELIST", ""))
        os.environ["MASTER_ADDR"] = _parse_node_list(nodes)[0]
    os.environ.pop("MASTER_PORT", None)  # rank 0 takes a free one
    attempt = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    os.environ[peers.ATTEMPT] = ".".join(
        [os.environ["MASTER_ADDR"], *(slurm.get(name, "0") for name in attempt)]
    )
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


def save_time_s(limit_s: float) -> float:
    """Return how long before a time limit a run begins to save where nothing else is asked for."""
    return min(90.0, max(10.0, limit_s / 5))


def outlast_early_signal(run: Run) -> None:
    """Use a time limit that is below the delay of SLURM's signal, which then comes at the start:
    ignore it, and stop shortly before the limit. An earlier attempt noted that this is needed."""
    if SHORT_LIMIT not in run.status():
        return
    try:
        _, left_s, limit_s = _queue_entry()
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("squeue: %s: SLURM's signal counts, however early", error)
        return
    if limit_s <= _signal_delay_s():
        before_s = save_time_s(limit_s)
        os.environ[SIGNAL_DELAY_S] = str(before_s)
        stop_after(left_s - before_s, instead_of=signal.SIGUSR2)
        log.warning("the time limit is %.0f s: stops %.0f s before it", limit_s, before_s)


def requeue(run: Run | None = None, parts: Sequence[Run] = ()) -> None:
    """Requeue this job, unless it is being cancelled or has timed out too often.

    run: its status keeps the count; without it nothing is counted. parts: the runs that the job
    carries out, if it is not `run`.

    SLURM sends the same TERM before a preemption and for `scancel`, but only a job that may
    continue is still RUNNING then. The next launch resumes a job that was not requeued.
    """
    job, is_counted = job_id(), run is None
    for _ in range(REQUEUE_TRIES):
        try:
            state, left_s, limit_s = _queue_entry()
            if state != "RUNNING":
                log.warning("job %s is %s: not requeued", job, state or "gone")
                return
            if run is not None and not is_counted:
                is_counted = True
                if not _may_continue(run, parts or [run], left_s, limit_s):
                    return
            _run(["scontrol", "requeue", str(job)])
            log.info("job %s was requeued", job)
            return
        except (OSError, subprocess.SubprocessError) as error:
            log.warning("scontrol requeue %s: %s", job, error)
            time.sleep(1.0)
    log.error("job %s could not be requeued; launch the sweep again", job)


def _may_continue(run: Run, parts: Sequence[Run], left_s: float, limit_s: float) -> bool:
    """Count a time-out or a preemption in the run's status; False after too many time-outs. Not by
    submitit, which takes every signal for a time-out if the limit is ten minutes or less."""
    status, delay_s = run.status(), _signal_delay_s()
    by_limit = left_s <= delay_s + LATE_S
    is_early = limit_s <= delay_s and left_s > save_time_s(limit_s) and SHORT_LIMIT not in status
    if is_early and run in parts:  # the trials of a search get the signal too, and stop
        status[SHORT_LIMIT] = limit_s
        log.warning("SLURM's signal came %.0f s before the time limit of %.0f s, which is below "
                    "slurm.signal_delay_s (%.0f s): this is not counted as a time-out, and the "
                    "next attempt outlasts the signal", left_s, limit_s, delay_s)
        why = ""
    elif by_limit:
        why = _count_time_out(parts, status, limit_s)
    else:
        status["preemptions"], why = status.get("preemptions", 0) + 1, ""
    if why:
        status["reason"] = f"{why}; give it more time (resources.time), or launch it again"
        log.error("not requeued: %s", status["reason"])
    facts = {key: value for key, value in status.items() if key not in ("state", "time")}
    run.set_status(status["state"], **facts)
    return not why


def _count_time_out(parts: Sequence[Run], status: dict[str, Any], limit_s: float) -> str:
    """Count a time-out in a status; returns why there may be no further one, "" if there may."""
    most = int(os.environ.get(MAX_TIME_OUTS, "20"))
    status["time_outs"] = count = status.get("time_outs", 0) + 1
    reached, has_saved = _reached(parts)
    is_further = reached != status["reached"] if "reached" in status else has_saved
    idle = 0 if is_further else status.get("idle_time_outs", 0) + 1
    status |= {"reached": reached, "idle_time_outs": idle}
    log.info("time limit of %.0f s reached %s, at most %d", limit_s, counted(count, "time"), most)
    if count > most:
        return (f"reached its time limit {counted(count, 'time')}, allowed are {most} "
                "(resources.max_time_outs)")
    if idle >= MOST_IDLE:
        return (f"reached its time limit of {limit_s:.0f} s {counted(idle, 'time')} in a row "
                "without a new checkpoint")
    return ""


def _reached(runs: Sequence[Run]) -> tuple[str, bool]:
    """Return a short text that changes whenever some runs have come further, and whether any has
    saved. Before and after training, the reason of a stop says how far a run has come."""
    saved = sorted(str(path) for run in runs
                   for path in (*run.checkpoints.glob("[!.]*-*"), *run.folder.glob("result.json")))
    reasons = []
    for run in runs:
        with suppress(UserError):  # one run's damaged status does not end a search
            reasons.append(str(run.status().get("reason")))
    text = "\n".join([*saved, *reasons])
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16], bool(saved)


def _signal_delay_s() -> float:
    return float(os.environ.get(SIGNAL_DELAY_S, "90"))


def _queue_entry() -> tuple[str, float, float]:
    """Return this job's state ("" if it is gone), the seconds left to it, and its time limit."""
    line = _run(["squeue", "--noheader", f"--jobs={job_id()}", "--format=%T|%L|%l"]).strip()
    state, left, limit = [*line.split("|"), "", ""][:3]
    return state, slurm_seconds(left), slurm_seconds(limit)


def _run(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True,
                          timeout=REQUEUE_LIMIT_S, env=clean_environment()).stdout
