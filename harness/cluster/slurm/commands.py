"""SLURM's commands: asked, with a limit on how long they may take; jobs cancelled."""

import getpass
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from harness.base.errors import UserError
from harness.cluster.place import NoAnswer

ANSWER_LIMIT_S = 30.0
CANCEL_LIMIT_S = 120.0
IDS_PER_CALL = 500


def is_here() -> bool:
    """Whether this machine submits to a SLURM cluster."""
    return shutil.which("sbatch") is not None


def last_line(error: Exception) -> str:
    """Return the line of a failed command's words that says what was wrong."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if "error" in line.lower()]
    return (told or lines or [repr(error)])[-1].strip()


@contextmanager
def outside_any_job() -> Iterator[None]:
    """Hide a surrounding job's variables from sbatch: it would hand them to the new job."""
    hidden: dict[str, str] = {}
    if "SLURM_JOB_ID" in os.environ:
        prefixes = ("SLURM_", "SRUN_", "SUBMITIT_", "PMI")
        names = [n for n in os.environ if n.startswith(prefixes) and n != "SLURM_CONF"]
        hidden = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(hidden)


def max_array_size() -> int:
    """Return how many tasks an array may have here."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", ask(["scontrol", "show", "config"]), re.M)
    return max(1, int(found[1])) if found else 1001


def ask(command: Sequence[str]) -> str:
    """Return what a SLURM command prints. Raises NoAnswer when it fails or does not come back."""
    # SQUEUE_STATES and the like would hide jobs from us
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SQUEUE_")}
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=ANSWER_LIMIT_S, env=environment
        )
    except FileNotFoundError:
        raise NoAnswer(f"{command[0]}: not on PATH; --cluster local runs here") from None
    except subprocess.TimeoutExpired:
        told = f"nothing within {ANSWER_LIMIT_S:.0f} s"
    else:
        if answer.returncode == 0:
            return answer.stdout
        told = answer.stderr.strip() or f"exit status {answer.returncode}"
    raise NoAnswer(
        f"{command[0]}: {told}\nthe SLURM cluster does not answer; try again later, or run on this "
        "machine by --cluster local"
    )


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
    """Cancel jobs and wait until the cluster has let go of them, so that trials may save.

    Raises UserError when it takes too long.
    """
    scancel(sorted(numbers))
    deadline = time.monotonic() + CANCEL_LIMIT_S
    while left := numbers & set(my_jobs()):
        if time.monotonic() > deadline:
            raise UserError(f"SLURM has not ended these jobs yet: {', '.join(sorted(left))}")
        time.sleep(1.0)
