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
from harness.runs.stopping import request_stop

log = logging.getLogger(__name__)

EXIT_STATUS = {"complete": 0, "failed": 1, "stopped": 3}
IN_USE_STATUS = 2
"""Exit status of a rank that found another process in its run folder."""
HINDERED_STATUS = 4
"""Exit status of a rank that could not write to its run folder."""


class TrialFailed(Exception):
    """Ends the job with an error; the run's status already has the cause."""


def main(arguments: list[str]) -> int:
    """Execute the run as one rank; the caller has set torch's rank variables."""
    end_with_parent()
    log_to_stderr()
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


def stop_on(*numbers: int) -> None:
    """Let signals request a stop, for as long as this process lives."""
    for number in numbers:
        signal.signal(number, request_stop)


def log_to_stderr() -> None:
    """Log to stderr, which is the job's log file."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )


def drop_own_lock(run: Run) -> None:
    """Remove the lock of an earlier, killed attempt of this same job.

    From another node such a lock looks alive for a while. SLURM restarts a job only after the old
    attempt has ended; where that is wrong, as with a node cut off from the controller, the
    heartbeat shows it and the lock stays.
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
