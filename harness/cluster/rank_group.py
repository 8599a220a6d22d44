"""The ranks of a trial on one node: started, watched and settled."""

import os
import signal
import subprocess
import time
from pathlib import Path

from harness.base.locks import lock_holder
from harness.base.text import log_tail
from harness.cluster.local.claims import Claim
from harness.cluster.local.worker import POLL_S, log
from harness.cluster.rank import EXIT_STATUS, HINDERED_STATUS, IN_USE_STATUS
from harness.cluster.records import Record
from harness.runs.run import Run
from harness.runs.stopping import stop_requested

GRACE_S = 30.0
"""How long a trial may take to save after it was told to stop."""


def _environment(record: Record, claim: Claim, rank: int, port: str) -> dict[str, str]:
    options = record.options
    return {
        **os.environ,
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(options["ranks"]),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        "OMP_NUM_THREADS": str(options["cpus"]), "CUDA_VISIBLE_DEVICES": ",".join(claim.gpus),
    }


def _wait(processes: list["subprocess.Popen[bytes]"]) -> int | None:
    """Wait for all ranks and return the first that failed, if any.

    When told to stop, or when one rank fails, the others are told to stop, and are ended with all
    that they started if they do not within the grace time.
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
                _kill_group(process)
        time.sleep(POLL_S)
    for process in processes:
        _kill_group(process)  # helpers that a killed rank left behind
    return broken if broken is not None else _failed_rank(processes)


def _failed_rank(processes: list["subprocess.Popen[bytes]"]) -> int | None:
    fine = (None, EXIT_STATUS["complete"], EXIT_STATUS["stopped"])
    return next((r for r, p in enumerate(processes) if p.poll() not in fine), None)


def _kill_group(process: "subprocess.Popen[bytes]") -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)  # each rank leads a session of its own
    except ProcessLookupError:
        return


def settle(run: Run, broken: int | None, codes: list[int], logs: list[Path]) -> None:
    """Write the status of a trial whose first rank could not, or did not know, what happened."""
    status = run.status()
    if run.is_complete() or status["state"] == "failed" or lock_holder(run.lock_file) is not None:
        return
    facts = {key: status[key] for key in ("attempts", "started") if key in status}
    try:
        if stop_requested():
            if status["state"] != "stopped":
                run.set_status("stopped", reason="cancelled before it could save", **facts)
        elif broken is not None:
            told = _end_in_words(codes[broken])
            if len(codes) > 1:
                told = f"rank {broken}: {told}"
            lines = log_tail(logs[broken]).splitlines()
            hindered = codes[broken] < 0 or codes[broken] in (IN_USE_STATUS, HINDERED_STATUS)
            run.set_status(
                "failed", error=told, lines=lines, log=str(logs[broken]), hindered=hindered, **facts
            )
    except OSError as error:  # the other trials go on
        log.error("%s: cannot be written: %s", run.status_file, error.strerror)


def _end_in_words(code: int) -> str:
    if code == -signal.SIGKILL:
        return "killed by SIGKILL (out of memory?)"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    if code == IN_USE_STATUS:
        return "another process was in the run folder"
    if code == HINDERED_STATUS:
        return "its run folder could not be written"
    return f"ended with exit status {code}"
