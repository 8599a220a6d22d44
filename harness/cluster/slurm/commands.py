"""SLURM's commands, each with a time limit: the user's jobs, why jobs died, cancellation."""

import os
import re
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from harness.base.errors import UserError
from harness.base.units import counted
from harness.cluster.causes import cause_in_logs, end_of_output, exit_status
from harness.cluster.place import NoAnswer
from harness.cluster.records import Record

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
    return max(1, int(_config("MaxArraySize") or 1001))


def cluster_name() -> str:
    """Return the name of the cluster that answers."""
    return _config("ClusterName")


def _config(key: str) -> str:
    match = re.search(rf"^{key}\s*=\s*(\S+)", ask(["scontrol", "show", "config"]), re.M)
    return match[1] if match else ""


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
        raise NoAnswer(f"{command[0]}: not on PATH; give the command on a login node of "
                       "the SLURM cluster, or, for new sweeps, with --cluster local") from None
    except subprocess.TimeoutExpired:
        raise no_answer(command, f"no answer within {ANSWER_LIMIT_S:.0f} s") from None


def no_answer(command: Sequence[str], error: str) -> NoAnswer:
    return NoAnswer(f"{command[0]}: {error}\nthe SLURM cluster does not answer; try again later, "
                    "or run on this machine with --cluster local")


def my_jobs() -> dict[str, tuple[str, str, str]]:
    """Return (state, reason, name) of the user's jobs by id (array_task), in one call. The reason
    BeginTime has the time at which the job may start."""
    text = ask([  # without --all, jobs in hidden partitions would look as if they had ended
        "squeue", "--all", "--noheader", "--array", f"--user={os.getuid()}",
        "--format=%i|%T|%r|%S|%j",
    ])
    rows = [line.strip().split("|", 4) for line in text.splitlines() if line.count("|") >= 4]
    return {number: (state, f"{reason} {start}" if reason == "BeginTime" else reason, name)
            for number, state, reason, start, name in rows}


def is_of(job: tuple[str, str, str] | None, record: Record) -> bool:
    """Return whether a job with a record's number is the record's: numbers come again."""
    return job is not None and job[2].endswith(f".{record.token}")


def living(record: Record, jobs: Mapping[str, tuple[str, str, str]]) -> list[str]:
    """Return the ids of a record's jobs that are among `jobs` (see `my_jobs`)."""
    return [number for number in record.jobs.values() if is_of(jobs.get(number), record)]


def in_pieces(numbers: Iterable[str]) -> Iterator[list[str]]:
    """Yield ids in lists that fit into one argument of a command (128 kB)."""
    ids = list(numbers)
    for start in range(0, len(ids), IDS_PER_CALL):
        yield ids[start : start + IDS_PER_CALL]


def arrays_of(numbers: Iterable[str]) -> list[str]:
    """Return the ids of the arrays, or single jobs, to which jobs belong."""
    return list(dict.fromkeys(number.partition("_")[0] for number in numbers))


def scancel(numbers: Iterable[str]) -> None:
    """Cancel jobs or arrays by id."""
    for ids in in_pieces(numbers):
        ask(["scancel", "--quiet", *ids])


def cancel(numbers: set[str]) -> None:
    """Cancel whole arrays, given by their jobs, and wait until their trials have saved. Raises
    UserError after CANCEL_LIMIT_S."""
    scancel(arrays_of(sorted(numbers)))
    deadline = time.monotonic() + CANCEL_LIMIT_S
    while left := numbers & set(my_jobs()):
        if time.monotonic() > deadline:
            raise UserError(f"SLURM has not ended {counted(len(left), 'job')} yet: "
                            f"{', '.join(sorted(left)[:10])}{', ...' * (len(left) > 10)}")
        time.sleep(1.0)


def deaths(jobs: Mapping[str, Path]) -> dict[str, str]:
    """Return why jobs died, as far as is known, by their id (array_task).

    jobs: the folder of each job's logs; its name ends the job's. SLURM's accounting is asked once
    for up to IDS_PER_CALL arrays; without it, only the ends of the logs are used.
    """
    rows: list[list[str]] = []
    with suppress(NoAnswer):  # accounting is absent, late or down
        for ids in in_pieces(arrays_of(jobs)):
            text = ask([
                "sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={','.join(ids)}",
                "--format=JobID,State,ExitCode,NodeList,JobName",
            ])
            rows += [line.split("|", 4) for line in text.splitlines() if line.count("|") >= 4]
    states = {job: f"{state} ({exit_status(status)}) on {nodes}"
              for job, state, status, nodes, name in rows
              if job in jobs and name.endswith(f".{jobs[job].name}")
              and state.split()[0] not in ("COMPLETED", "RUNNING", "PENDING", "REQUEUED")}
    logs: dict[tuple[Path, str], list[Path]] = {}
    for folder in set(jobs.values()):  # listed once, not for each of its jobs
        for log in folder.glob("*_log.err"):
            job, _, _ = log.name.removesuffix("_log.err").rpartition("_")
            logs.setdefault((folder, job), []).append(log)
    return {job: _death(states.get(job, ""), logs.get((folder, job), ()), folder, job)
            for job, folder in jobs.items()}


def _death(state: str, logs: Iterable[Path], folder: Path, job: str) -> str:
    """Return why a job died: its last state, "" if unknown, and what its output says."""
    cause = cause_in_logs(logs)
    if not cause and (not state or state.startswith("FAILED")):
        cause = end_of_output(folder, job)
    return ": ".join(filter(None, (state, cause)))
