"""The ranks of a trial on one node: started, watched, ended and settled."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.base.files import log_tail
from harness.base.locks import lock_holder
from harness.cluster.rank import EXIT_STATUS, HINDERED_STATUS, IN_USE_STATUS
from harness.runs.run import Run
from harness.runs.stopping import stop_requested

log = logging.getLogger(__name__)

GRACE_S = 30.0
"""How long a trial may take to save after it was told to stop."""
POLL_S = 0.2
REPLACED = ("MASTER_ADDR", "MASTER_PORT")

Process = subprocess.Popen[bytes]


@dataclass(frozen=True)
class RankGroup:
    """The ranks of one trial on one node."""

    ranks: int = 1
    """How many there are on each node."""
    first: int = 0
    """The number of the first one here."""
    world: int = 1
    """How many there are on all nodes."""
    cpus: int = 1
    """Cores of each."""
    gpus: str = ""
    """CUDA_VISIBLE_DEVICES of all ranks here; each takes the one of its local rank."""
    address: str = "127.0.0.1"
    port: int = 0
    """Where rank 0 listens; 0: one rank, nobody listens."""

    def environment(self, local: int) -> dict[str, str]:
        """Return the environment of a rank, by which torch and DeepSpeed find the others."""
        kept = {name: value for name, value in os.environ.items() if name not in REPLACED}
        master = {"MASTER_ADDR": self.address, "MASTER_PORT": str(self.port)} if self.port else {}
        return {
            **kept, "RANK": str(self.first + local), "LOCAL_RANK": str(local),
            "WORLD_SIZE": str(self.world), "OMP_NUM_THREADS": str(self.cpus),
            "CUDA_VISIBLE_DEVICES": self.gpus, **master,
        }

    def start(
        self, local: int, module: str, *arguments: str, log_file: Path,
        inherited: Sequence[int] = (),
    ) -> Process:
        """Start a rank as `python -m module arguments`, in a separate session.

        inherited: open files that it keeps, such as locks and pipes.
        """
        log_file.parent.mkdir(parents=True, exist_ok=True)
        with log_file.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", module, *arguments], env=self.environment(local),
                pass_fds=inherited, start_new_session=True, stdin=subprocess.DEVNULL,
                stdout=output, stderr=subprocess.STDOUT,
            )


def wait(processes: Sequence[Process]) -> int | None:
    """Wait for all ranks and return the first that failed, if any.

    When this process is told to stop, or when a rank fails, the ranks are told to stop, and are
    killed with all that they started if they do not within the grace time.
    """
    deadline: float | None = None
    broken: int | None = None
    while any(process.poll() is None for process in processes):
        if broken is None:
            broken = _failed_rank(processes)
        if deadline is None and (stop_requested() or broken is not None):
            deadline = time.monotonic() + GRACE_S
            for process in processes:
                process.terminate()
        if deadline is not None and time.monotonic() > deadline:
            for process in processes:
                _kill_session(process)
        time.sleep(POLL_S)
    for process in processes:
        _kill_session(process)  # helpers that a killed rank left behind
    return broken if broken is not None else _failed_rank(processes)


def end_within(processes: Sequence[Process], limit_s: float) -> list[int]:
    """Return the exit statuses of ranks that are about to end; who takes longer is killed."""
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
    fine = (None, EXIT_STATUS["complete"], EXIT_STATUS["stopped"])
    return next((r for r, p in enumerate(processes) if p.poll() not in fine), None)


def _kill_session(process: Process) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def settle(run: Run, broken: int | None, codes: Sequence[int], logs: Sequence[Path]) -> None:
    """Write the status of a trial whose first rank could not, or did not know, what happened.

    broken: the first rank that failed, if any. codes, logs: exit status and log of each rank.
    """
    status = run.status()
    if run.is_complete() or status["state"] == "failed" or lock_holder(run.lock_file) is not None:
        return
    facts = {key: status[key] for key in ("attempts", "started") if key in status}
    try:
        if stop_requested():
            if status["state"] != "stopped":
                run.set_status("stopped", reason="cancelled before it could save", **facts)
        elif broken is not None:
            error = _explained(codes[broken])
            if len(codes) > 1:
                error = f"rank {broken}: {error}"
            lines = log_tail(logs[broken]).splitlines()
            hindered = codes[broken] < 0 or codes[broken] in (IN_USE_STATUS, HINDERED_STATUS)
            run.set_status(
                "failed", error=error, lines=lines, log=str(logs[broken]), hindered=hindered,
                **facts,
            )
    except OSError as error:  # the other trials go on
        log.error("%s: cannot be written: %s", run.status_file, error.strerror)


def _explained(code: int) -> str:
    """Return in words what an exit status means."""
    if code == -signal.SIGKILL:
        return "killed by SIGKILL (out of memory?)"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    if code == IN_USE_STATUS:
        return "another process was in the run folder"
    if code == HINDERED_STATUS:
        return "its run folder could not be written"
    return f"ended with exit status {code}"
