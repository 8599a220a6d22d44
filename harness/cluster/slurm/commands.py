"""SLURM's commands, each with a time limit: the user's jobs, why jobs died, cancellation."""

import getpass
import os
import re
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from harness.base.errors import UserError
from harness.cluster.causes import cause_in_logs
from harness.cluster.place import NoAnswer

ANSWER_LIMIT_S = 30.0
CANCEL_LIMIT_S = 120.0
IDS_PER_CALL = 500
OF_SLURM = ("SBATCH_", "SALLOC_", "SRUN_", "SLURM_", "SQUEUE_", "SINFO_", "SACCT_", "SCONTROL_",
            "SCANCEL_", "SUBMITIT_", "PMI")
"""Beginnings of variables that change what SLURM's commands do, or that belong to a job."""
OF_THE_SITE = ("SLURM_CONF", "SLURM_JWT")
"""Those by which the commands find their cluster and are admitted."""


def clean_environment() -> dict[str, str]:
    """Return this process's environment without variables that change SLURM's commands, such as
    SBATCH_TIMELIMIT, SQUEUE_STATES and SLURM_TIME_FORMAT."""
    return {name: value for name, value in os.environ.items()
            if name in OF_THE_SITE or not name.startswith(OF_SLURM)}


@contextmanager
def submitting(what: str) -> Iterator[None]:
    """Let submitit submit jobs in the body, also from inside a job.

    sbatch prefers variables such as SBATCH_TIMELIMIT to its script, and passes those of a job to
    the new ones, so they are hidden. Raises UserError naming `what`, with the last line of sbatch's
    message.
    """
    kept = clean_environment()
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name not in kept}
    try:
        yield
    except Exception as error:  # submitit's own classes differ between its versions
        lines = [line for line in str(error).splitlines() if line.strip()] or [repr(error)]
        errors = [line for line in lines if "error" in line.lower()]
        raise UserError(f"sbatch refused {what}: {(errors or lines)[-1].strip()}") from None
    finally:
        os.environ.update(hidden)


def max_array_size() -> int:
    """Return the largest number of tasks in an array."""
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", ask(["scontrol", "show", "config"]), re.M)
    return max(1, int(match[1])) if match else 1001


def ask(command: Sequence[str]) -> str:
    """Return what a SLURM command prints. Raises NoAnswer when it fails or does not return."""
    answer = call(command)
    if answer.returncode == 0:
        return answer.stdout
    raise no_answer(command, answer.stderr.strip() or f"exit status {answer.returncode}")


def call(command: Sequence[str], text: str = "") -> "subprocess.CompletedProcess[str]":
    """Run a SLURM command that reads `text`. Raises NoAnswer when it is missing or does not
    return."""
    try:
        return subprocess.run(command, input=text, capture_output=True, text=True,
                              timeout=ANSWER_LIMIT_S, env=clean_environment())
    except FileNotFoundError:
        raise NoAnswer(f"{command[0]}: not on PATH; --cluster local runs here") from None
    except subprocess.TimeoutExpired:
        raise no_answer(command, f"no answer within {ANSWER_LIMIT_S:.0f} s") from None


def no_answer(command: Sequence[str], error: str) -> NoAnswer:
    return NoAnswer(f"{command[0]}: {error}\nthe SLURM cluster does not answer; try again later, "
                    "or run on this machine with --cluster local")


def my_jobs() -> dict[str, tuple[str, str, str]]:
    """Return (state, reason, name) of the user's jobs by id (array_task), in one call. The reason
    BeginTime has the time at which the job may start."""
    text = ask([
        "squeue", "--noheader", "--array", f"--user={getpass.getuser()}", "--format=%i|%T|%r|%S|%j",
    ])
    rows = [line.strip().split("|", 4) for line in text.splitlines() if line.count("|") >= 4]
    return {number: (state, f"{reason} {start}" if reason == "BeginTime" else reason, name)
            for number, state, reason, start, name in rows}


def scancel(numbers: Iterable[str]) -> None:
    """Cancel jobs by id."""
    ids = list(numbers)
    for start in range(0, len(ids), IDS_PER_CALL):
        ask(["scancel", "--quiet", *ids[start : start + IDS_PER_CALL]])


def cancel(numbers: set[str]) -> None:
    """Cancel jobs and wait until their trials have saved. Raises UserError after CANCEL_LIMIT_S."""
    scancel(sorted(numbers))
    deadline = time.monotonic() + CANCEL_LIMIT_S
    while left := numbers & set(my_jobs()):
        if time.monotonic() > deadline:
            raise UserError(f"SLURM has not ended these jobs yet: {', '.join(sorted(left))}")
        time.sleep(1.0)


def deaths(jobs: Mapping[str, Path]) -> dict[str, str]:
    """Return why jobs died, as far as is known, by their id (array_task).

    jobs: the folder of each job's logs. SLURM's accounting is asked once for all of them; without
    it, only the ends of the logs are used.
    """
    try:
        text = ask([
            "sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={','.join(jobs)}",
            "--format=JobID,State,ExitCode,NodeList",
        ])
    except NoAnswer:  # accounting is absent, late or down
        text = ""
    rows = [line.split("|") for line in text.splitlines() if line.count("|") == 3]
    states = {job: f"{state} (exit status {status}) on {nodes}"
              for job, state, status, nodes in rows
              if state.split()[0] not in ("COMPLETED", "RUNNING", "PENDING", "REQUEUED")}
    causes = {job: [states.get(job, ""), cause_in_logs(folder.glob(f"{job}_*_log.err"))]
              for job, folder in jobs.items()}
    return {job: ": ".join(filter(None, texts)) for job, texts in causes.items() if any(texts)}
