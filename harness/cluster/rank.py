"""One rank of a trial: `python -m harness.cluster.rank RUN_FOLDER`, and what all ranks share."""

import ctypes
import logging
import signal
import sys
import time
from pathlib import Path

from harness.base.errors import Hindered, UserError
from harness.base.locks import HEARTBEAT_S, Busy, job_id, lock_holder
from harness.runs.execute import execute
from harness.runs.run import Run

log = logging.getLogger(__name__)

EXIT_STATUS = {"complete": 0, "failed": 1, "stopped": 3}
IN_USE_STATUS = 2
"""Exit status of a rank that found another process in its run folder."""
HINDERED_STATUS = 4
"""Exit status of a rank that could not write to its run folder."""


class TrialFailed(Exception):
    """Makes the job end with an error, after the run's status has said why."""


def main(arguments: list[str]) -> int:
    """Carry out the run as one rank; torch's rank variables are set by whoever started this."""
    end_with_parent()
    say_plainly()
    try:
        return EXIT_STATUS[execute(Run(Path(arguments[0])))]
    except UserError as error:
        log.error("%s", error)
        if isinstance(error, Busy):
            return IN_USE_STATUS
        return HINDERED_STATUS if isinstance(error, Hindered) else EXIT_STATUS["failed"]


def end_with_parent() -> None:
    """Have the kernel send TERM when the parent dies, so that a killed worker leaves no orphan."""
    set_parent_death_signal = 1
    ctypes.CDLL(None, use_errno=True).prctl(set_parent_death_signal, signal.SIGTERM)


def say_plainly() -> None:
    """Log to stderr, which is the job's log file."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )


def drop_own_lock(run: Run) -> None:
    """Remove the lock that an earlier attempt of this very job left behind.

    One that was killed outright could not, and from another node its lock looks alive for a while.
    SLURM starts a job again only when the old one has ended; should that be wrong, as with a node
    cut off from the controller, its heartbeat shows it and the lock stays.
    """
    holder = lock_holder(run.lock_file)
    if holder is None or holder.get("job") != job_id():
        return
    beat = run.lock_file.stat().st_mtime
    time.sleep(2.5 * HEARTBEAT_S)
    if run.lock_file.exists() and run.lock_file.stat().st_mtime == beat:
        log.warning("the earlier attempt of this job was killed on %s", holder["host"])
        run.lock_file.unlink()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
