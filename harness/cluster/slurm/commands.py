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
from harness.cluster.causes import cause_in_logs, end_of_output, exit_status
from harness.cluster.place import NoAnswer

ANSWER_LIMIT_S = 30.0
CANCEL_LIMIT_S = 120.0
IDS_PER_CALL = 500


@contextmanager
def submitting(what: str) -> Iterator[None]:
    """Let submitit submit jobs in the body, also from inside a job.

    sbatch would pass that job's variables to the new ones, so they are hidden. Raises UserError
    naming `what`, with the last line of sbatch's message.
    """
    hidden: dict[str, str] = {}
    if "SLURM_JOB_ID" in os.environ:
        prefixes = ("SLURM_", "SRUN_", "SUBMITIT_", "PMI")
        names = [n for n in os.environ if n.startswith(prefixes) and n != "SLURM_CONF"]
        hidden = {name: os.environ.pop(name) for name in names}
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
    # SQUEUE_STATES and the like would hide jobs
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SQUEUE_")}
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_LIMIT_S,
                                env=environment)
    except FileNotFoundError:
        raise NoAnswer(f"{command[0]}: not on PATH; --cluster local runs here") from None
    except subprocess.TimeoutExpired:
        error = f"no answer within {ANSWER_LIMIT_S:.0f} s"
    else:
        if answer.returncode == 0:
            return answer.stdout
        error = answer.stderr.strip() or f"exit status {answer.returncode}"
    raise NoAnswer(f"{command[0]}: {error}\nthe SLURM cluster does not answer; try again later, or "
                   "run on this machine with --cluster local")


def my_jobs() -> dict[str, tuple[str, str, str]]:
    """Return (state, reason, name) of the user's jobs by id (array_task), in one call."""
    text = ask([
        "squeue", "--noheader", "--array", f"--user={getpass.getuser()}", "--format=%i|%T|%r|%j",
    ])
    rows = [line.strip().split("|", 3) for line in text.splitlines() if line.count("|") >= 3]
    return {number: (state, reason, name) for number, state, reason, name in rows}


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

    jobs: the folder of each job's output. SLURM's accounting is asked once for all of them; without
    it, only the ends of the output are used.
    """
    try:
        text = ask([
            "sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={','.join(jobs)}",
            "--format=JobID,State,ExitCode,NodeList",
        ])
    except NoAnswer:  # accounting is absent, late or down
        text = ""
    rows = [line.split("|") for line in text.splitlines() if line.count("|") == 3]
    states = {job: f"{state} ({exit_status(status)}) on {nodes}"
              for job, state, status, nodes in rows
              if state.split()[0] not in ("COMPLETED", "RUNNING", "PENDING", "REQUEUED")}
    return {job: _death(states.get(job, ""), folder, job) for job, folder in jobs.items()}


def _death(state: str, folder: Path, job: str) -> str:
    """Return why a job died: its last state, "" if unknown, and what its output says."""
    cause = cause_in_logs(folder.glob(f"{job}_*_log.err"))
    if not cause and (not state or state.startswith("FAILED")):
        cause = end_of_output(folder, job)
    return ": ".join(filter(None, (state, cause)))
