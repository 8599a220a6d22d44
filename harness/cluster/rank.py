"""What a job does: take its rank from its surroundings, carry out one run, tell the scheduler.

`run_trial` is what submitit calls on every rank of a SLURM job. `python -m harness.cluster.rank
RUN_FOLDER` is one rank on this machine. Either gets the path of a run folder and nothing else.
"""

import ctypes
import logging
import signal
import sys
from pathlib import Path

from harness.base.errors import Hindered, UserError
from harness.base.locks import Busy
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


# --- in a SLURM job ---


# --- on this machine ---


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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
