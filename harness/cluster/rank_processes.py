"""The ranks of a trial: one rank as a process, and all ranks on a node, started and watched.

    python -m harness.cluster.rank_processes RUN_FOLDER
"""

import ctypes
import logging
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from harness.base.errors import Hindered, UserError
from harness.base.files import log_tail
from harness.base.locks import Busy, is_beating, job_id, lock_holder
from harness.runs import peers
from harness.runs.execute import execute
from harness.runs.failures import LOST_RANK
from harness.runs.logs import FORMAT, log_own_packages
from harness.runs.run import Run
from harness.runs.stopping import request_stop, stop_requested

log = logging.getLogger(__name__)

EXIT_STATUS = {"complete": 0, "failed": 1, "stopped": 3}
FINE = (None, EXIT_STATUS["complete"], EXIT_STATUS["stopped"])
"""Exit statuses of ranks that run or have ended well."""
IN_USE_STATUS = 2
"""Exit status of a rank that found another process in its run folder."""
HINDERED_STATUS = 4
"""Exit status of a rank that could not write to its run folder."""
GRACE_S = 30.0
"""How long a trial may take to save after a stop was requested."""
BROKEN_S = 4.0
"""How long the other ranks may take to end after one has failed; they notice it by themselves."""
POLL_S = 0.2
REPLACED = ("MASTER_ADDR", "MASTER_PORT", peers.ATTEMPT)
PARENT = "SVLL_PARENT_PID"
"""The variable that tells a process who started it: the parent may be dead before it can look."""

Process = subprocess.Popen[bytes]


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
    """Have the kernel send TERM when the process that started this one by `start_process` dies, so
    that a killed worker leaves no orphan. End now if it has died already."""
    set_parent_death_signal = 1
    ctypes.CDLL(None, use_errno=True).prctl(set_parent_death_signal, signal.SIGTERM)
    parent = os.environ.pop(PARENT, "")  # its own children have another
    if parent and os.getppid() != int(parent):
        os.kill(os.getpid(), signal.SIGTERM)


def stop_on(*numbers: int) -> None:
    """Let signals request a stop, for as long as this process lives."""
    for number in numbers:
        signal.signal(number, request_stop)


def log_to_stderr() -> None:
    """Log to stderr, which is the job's log file."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(FORMAT))
    log_own_packages(handler)
    logging.basicConfig(handlers=[handler], level=logging.WARNING)


def drop_own_lock(run: Run) -> None:
    """Remove the lock of an earlier, killed attempt of this same job.

    From another node such a lock looks alive for a while. SLURM restarts a job only after the old
    attempt has ended; where that is wrong, as with a node cut off from the controller, the
    heartbeat shows it and the lock stays.
    """
    holder = lock_holder(run.lock_file)
    if holder is None or holder.get("job") != job_id():
        return
    if not is_beating(run.lock_file):
        log.warning("the earlier attempt of this job was killed on %s", holder["host"])
        run.lock_file.unlink(missing_ok=True)


# --- all ranks on one node ---


@dataclass(frozen=True)
class RankGroup:
    """The ranks of one trial on one node."""

    ranks: int = 1
    """Ranks per node."""
    first: int = 0
    """The number of the first rank on this node."""
    world: int = 1
    """Ranks on all nodes."""
    cpus: int = 1
    """Cores per rank."""
    gpus: str = ""
    """CUDA_VISIBLE_DEVICES of all ranks here; each takes the one of its local rank."""
    address: str = "127.0.0.1"
    """The host of rank 0."""
    attempt: str = field(default_factory=lambda: secrets.token_hex(8))
    """What only these ranks share; each start needs its own."""

    def environment(self, local: int) -> dict[str, str]:
        """Return the environment of a rank, in which torch and DeepSpeed find the others."""
        kept = {name: value for name, value in os.environ.items() if name not in REPLACED}
        master = {"MASTER_ADDR": self.address, peers.ATTEMPT: self.attempt}
        return {**kept, "RANK": str(self.first + local), "LOCAL_RANK": str(local),
                "WORLD_SIZE": str(self.world), "OMP_NUM_THREADS": str(self.cpus),
                "CUDA_VISIBLE_DEVICES": self.gpus, **master}


def start_process(
    module: str, *arguments: str, log_file: Path, environment: Mapping[str, str],
    inherited: Sequence[int] = (),
) -> Process:
    """Start `python -m module arguments` in a separate session; log_file gets its output.
    inherited: open files that it keeps, such as locks and pipes."""
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("ab") as output:
        return subprocess.Popen([sys.executable, "-m", module, *arguments],
                                env={**environment, PARENT: str(os.getpid())},
                                pass_fds=inherited, start_new_session=True,
                                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)


def wait(processes: Sequence[Process]) -> int | None:
    """Wait for all ranks and return the first that failed, if any.

    After a stop request or the failure of a rank, all ranks get TERM; after GRACE_S or BROKEN_S
    they are killed with all their child processes.
    """
    deadline: float | None = None
    broken: int | None = None
    while any(process.poll() is None for process in processes):
        if broken is None:
            broken = _failed_rank(processes)
        if deadline is None and (stop_requested() or broken is not None):
            deadline = time.monotonic() + (GRACE_S if broken is None else BROKEN_S)
            for process in processes:
                process.terminate()
        if deadline is not None and time.monotonic() > deadline:
            end_helpers(processes)
        time.sleep(POLL_S)
    end_helpers(processes)
    return broken if broken is not None else _failed_rank(processes)


def end_within(processes: Sequence[Process], limit_s: float) -> list[int]:
    """Return the exit statuses of ranks that are about to end; slower ones are killed."""
    deadline = time.monotonic() + limit_s
    codes = []
    for process in processes:
        try:
            codes.append(process.wait(max(0.0, deadline - time.monotonic())))
        except subprocess.TimeoutExpired:
            process.kill()
            codes.append(process.wait())
    return codes


def _failed_rank(processes: Sequence[Process]) -> int | None:
    return next((r for r, p in enumerate(processes) if p.poll() not in FINE), None)


def end_helpers(processes: Iterable[Process]) -> None:
    """Kill ranks and the processes that they have started or, killed, left behind."""
    for process in processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def settle(run: Run, broken: int | None, codes: Sequence[int], logs: Sequence[Path]) -> None:
    """Write the status of a trial whose rank 0 could not write it, or did not know the cause.
    broken: the first rank that failed, if any. codes, logs: exit status and log of each rank."""
    status = run.status()
    knows_more = broken is not None and codes[broken] < 0  # which signal killed the lost rank
    is_settled = status["state"] == "failed" and not (
        knows_more and re.search(LOST_RANK, status.get("error", ""))
    )
    if run.is_complete() or is_settled or lock_holder(run.lock_file) is not None:
        return
    facts = {key: status[key] for key in ("attempts", "started") if key in status}
    try:
        if stop_requested():
            if status["state"] != "stopped":
                run.set_status("stopped", reason="cancelled before it could save", **facts)
        elif broken is not None:
            code, file = codes[broken], logs[broken]
            error = f"rank {broken}: {_explained(code)}" if len(codes) > 1 else _explained(code)
            hindered = code < 0 or code in (IN_USE_STATUS, HINDERED_STATUS)
            run.set_status("failed", error=error, lines=log_tail(file).splitlines(), log=str(file),
                           hindered=hindered, **facts)
    except OSError as error:  # the worker still has other trials
        log.error("%s: cannot be written: %s", run.status_file, error.strerror)


def _explained(code: int) -> str:
    if code == -signal.SIGKILL:
        return "killed by SIGKILL (out of memory?)"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return {
        IN_USE_STATUS: "another process was in the run folder",
        HINDERED_STATUS: "its run folder could not be written",
    }.get(code, f"ended with exit status {code}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
