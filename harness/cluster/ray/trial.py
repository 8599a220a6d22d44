"""One trial of a Ray search: the run in processes of its own, watched by Ray's actor.

    rank 0 -- JSON line --> actor     after every epoch
    actor  -- one byte  --> rank 0    go on

The run waits for the answer before it trains on, so that a search ends it at the epoch it judged by
and not some epochs later. When the pipe of answers closes instead, because the search has seen
enough or because the actor or its node went away, the run saves and stops. In a process of its own
it also has a main thread, the only one that can catch signals. Ranks of one trial meet as they do
anywhere else; those on a further node are started there by an actor of their own.
"""

import json
import logging
import os
import queue
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.base.errors import UserError
from harness.base.locks import job_id
from harness.cluster.rank import EXIT_STATUS, IN_USE_STATUS, say_plainly
from harness.cluster.ray.verdicts import mark_ended_early
from harness.cluster.slurm.job import drop_own_lock
from harness.runs.execute import execute
from harness.runs.run import Run
from harness.runs.stopping import request_stop

log = logging.getLogger(__name__)

NOT_OURS = ("MASTER_ADDR", "MASTER_PORT", "CUDA_VISIBLE_DEVICES")


# --- what the search has seen of a run ---


# --- being ended early ---


# --- the actor's side ---


@dataclass(frozen=True)
class Crew:
    """The ranks of one trial on one node."""

    ranks: int = 1
    """How many there are on each node."""
    first: int = 0
    """The number of the first one here."""
    world: int = 1
    """How many there are on all nodes."""
    cpus: int = 1
    """Cores of each."""
    gpus: float = 0
    """GPUs of this node's share, all of which each of its ranks sees."""
    address: str = "127.0.0.1"
    port: int = 0
    """Where rank 0 listens; 0: one rank, nobody listens."""

    def environment(self, local: int) -> dict[str, str]:
        """Return the environment of a rank; Ray has put the share's GPUs into this process'."""
        kept = {k: v for k, v in os.environ.items() if k not in NOT_OURS}
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "") if self.gpus else ""
        meeting = {"MASTER_ADDR": self.address, "MASTER_PORT": str(self.port)} if self.port else {}
        return {
            **kept, "RANK": str(self.first + local), "LOCAL_RANK": str(local),
            "WORLD_SIZE": str(self.world), "OMP_NUM_THREADS": str(self.cpus),
            "CUDA_VISIBLE_DEVICES": gpus, **meeting,
        }

    def start(
        self, local: int, run: Run, log_file: Path, reports: int, answers: int
    ) -> "subprocess.Popen[bytes]":
        """Start a rank, which reads `answers` and writes to `reports`, unless that is negative."""
        log_file.parent.mkdir(parents=True, exist_ok=True)
        passed = [pipe for pipe in (reports, answers) if pipe >= 0]
        with log_file.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "harness.cluster.ray.trial", str(run.folder),
                 str(reports), str(answers)],
                env=self.environment(local), pass_fds=passed, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            )


# --- the run's side ---


class Answers:
    """Reports epochs to the actor and waits for its answers."""

    def __init__(self, report_descriptor: int, answer_descriptor: int) -> None:
        self.reports = (
            os.fdopen(report_descriptor, "w", encoding="utf-8") if report_descriptor >= 0 else None
        )
        self.answer_descriptor = answer_descriptor
        self.received: queue.Queue[bytes] = queue.Queue()
        self.closed = threading.Event()
        # training does not look at the pipe between epochs: a thread notices when it closes
        threading.Thread(target=self._read, daemon=True).start()

    def report(self, line: dict[str, Any]) -> None:
        """Tell an epoch's metrics; returns when the run may go on, or has been asked to stop."""
        if not self.closed.is_set():
            try:
                print(json.dumps(line), file=self.reports, flush=True)
                self.received.get()
            except BrokenPipeError:
                self.closed.set()
        if self.closed.is_set():
            request_stop()

    def _read(self) -> None:
        while answer := os.read(self.answer_descriptor, 1):
            self.received.put(answer)
        self.closed.set()
        request_stop()
        self.received.put(b"")


def main(arguments: list[str]) -> int:
    """Carry out one run; see the head of this file."""
    say_plainly()
    folder, report_descriptor, answer_descriptor = arguments
    answers = Answers(int(report_descriptor), int(answer_descriptor))
    run = Run(Path(folder))
    try:
        if job_id() is not None:
            drop_own_lock(run)
        outcome = execute(run, report=answers.report if answers.reports is not None else None)
    except UserError as error:
        log.error("%s", error)
        return IN_USE_STATUS
    if outcome == "stopped" and answers.reports is not None:
        mark_ended_early(run)
    return EXIT_STATUS[outcome]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
