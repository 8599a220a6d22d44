"""Why SLURM jobs ended without a result."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from harness.cluster.causes import last_words
from harness.cluster.place import NoAnswer
from harness.cluster.slurm import commands


def deaths(jobs: Mapping[str, Path]) -> dict[str, str]:
    """Return what is known of jobs that ended without a word, by their id (array_task).

    jobs: the folder of each job's logs. SLURM's accounting is asked once for all of them; without
    it, the ends of the logs must do.
    """
    states = _accounted(jobs)
    found = {}
    for job, folder in jobs.items():
        told = [states[job]] if job in states else []
        told += last_words(folder.glob(f"{job}_*_log.err"))
        if told:
            found[job] = ": ".join(told)
    return found


def _accounted(jobs: Iterable[str]) -> dict[str, str]:
    """Return the final states by job id; nothing where accounting is absent, late or down."""
    try:
        text = commands.ask([
            "sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={','.join(jobs)}",
            "--format=JobID,State,ExitCode,NodeList",
        ])
    except NoAnswer:
        return {}
    rows = [line.split("|") for line in text.splitlines() if line.count("|") == 3]
    return {
        job: f"{state} (exit status {status}) on {nodes}"
        for job, state, status, nodes in rows
        if state.split()[0] not in ("COMPLETED", "RUNNING", "PENDING", "REQUEUED")
    }
