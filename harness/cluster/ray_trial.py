"""One trial of a Ray search: the run in a process of its own, watched by Ray's actor.

    run   -- JSON line --> actor     after every epoch
    actor -- one byte  --> run       go on

The run waits for the answer before it trains on, so that a search ends it at the epoch it judged by
and not some epochs later. When the pipe of answers closes instead, because the search has seen
enough or because the actor or its node went away, the run saves and stops. In a process of its own
it also has a main thread, the only one that can catch signals.
"""

import json
import logging
import os
import queue
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.cluster import local
from harness.cluster.jobs import (
    EXIT_STATUS,
    IN_USE_STATUS,
    TrialFailed,
    drop_own_lock,
    say_plainly,
)
from harness.errors import UserError
from harness.files import read_json, write_json
from harness.runs import Run, job_id
from harness.stopping import request_stop
from harness.trial import execute

log = logging.getLogger(__name__)

HOLD_S = 30.0
"""How long an actor keeps its place after its run was stopped by a signal. That is what SLURM sends
when it takes the nodes away: the next trial must not begin before the job has ended the search."""
NOT_OURS = ("MASTER_ADDR", "MASTER_PORT", "CUDA_VISIBLE_DEVICES")


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Return the numbers of a nested mapping by dotted key, such as `validation.mAP`."""
    found: dict[str, float] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            found |= flatten(item, f"{prefix}{key}.")
        elif isinstance(item, int | float) and not isinstance(item, bool):
            found[f"{prefix}{key}"] = item
    return found


def epoch_lines(run: Run) -> list[dict[str, Any]]:
    """Return what the run has logged at the ends of epochs, in order."""
    return [line for line in run.metrics() if line.get("kind") == "epoch"]


# --- being ended early ---


def early_end_file(run: Run) -> Path:
    """Where the search says that, and at which epoch, it ends the run early."""
    return run.folder / "early_end.json"


def end_early(run: Run, *, by: str, epoch: int) -> None:
    """Let the run be marked as ended early once it stops; called before it is told to."""
    write_json(early_end_file(run), {"by": by, "epoch": epoch})


def mark_ended_early(run: Run) -> None:
    """Give a stopped run the status of one that the search ended, if the search did."""
    try:
        why = read_json(early_end_file(run))
    except FileNotFoundError:
        return
    facts = {key: v for key, v in run.status().items() if key not in ("state", "time", "reason")}
    reason = f"stopped early by {why['by']} at epoch {why['epoch']}"
    run.set_status("stopped", **{**facts, "reason": reason, "pruned": True})


def was_ended_early(run: Run) -> bool:
    """Whether a search ended the run, and nobody has taken it up since."""
    status = run.status()
    return status["state"] == "stopped" and bool(status.get("pruned"))


# --- the actor's side ---


class WatchedRun:
    """A run as Tune sees it: one result after the other, the last with `done`."""

    def __init__(self, run: Run, *, log_file: Path, cpus: int, gpus: int) -> None:
        self.run = run
        self.log_file = log_file
        self.cpus, self.gpus = cpus, gpus
        self.process: subprocess.Popen[bytes] | None = None
        self.over = False
        # What earlier attempts reached is told again, as the search may not know it. The lines
        # after the last checkpoint will be logged a second time; they are told once.
        self.stored = deque(epoch_lines(run))
        self.told: set[tuple[Any, Any]] = set()
        early_end_file(run).unlink(missing_ok=True)

    def next_result(self) -> dict[str, Any]:
        """Return the metrics of the next epoch, or of the end, with `done`.

        Raises TrialFailed when the run failed.
        """
        if self.stored:
            return self._tell(self.stored.popleft())
        if self.process is None:
            if self.run.is_complete():
                return self._end_result()
            self._start()
        else:
            self._go_on()
        for text in self.reports:
            line = json.loads(text)
            if _epoch_of(line) not in self.told:
                return self._tell(line)
            self._go_on()
        return self._ended()

    def end(self) -> None:
        """Have the run save and stop, unless it is over, and wait for that."""
        if self.over:
            return
        if self.process is None:
            if not self.run.is_complete():
                mark_ended_early(self.run)
            return
        self._part()

    def _part(self) -> int:
        """Close the pipes, wait for the process and return its exit status."""
        assert self.process is not None
        self.answers.close()
        code = self.process.wait()
        self.reports.close()
        self.over = True
        return code

    def _tell(self, line: dict[str, Any]) -> dict[str, Any]:
        self.told.add(_epoch_of(line))
        return {**flatten(line), "stage": line.get("stage")}

    def _go_on(self) -> None:
        try:
            self.answers.write(b"g")
        except BrokenPipeError:  # the process died; its reports end too
            log.warning("%s: its process is gone", self.run.name)

    def _start(self) -> None:
        reports, their_report = os.pipe()
        their_answer, answers = os.pipe()
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        with self.log_file.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "harness.cluster.ray_trial", str(self.run.folder),
                 str(their_report), str(their_answer)],
                env=self._environment(), pass_fds=(their_report, their_answer),
                start_new_session=True, stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT,
            )
        os.close(their_report)
        os.close(their_answer)
        self.reports = os.fdopen(reports, "rb")
        self.answers = os.fdopen(answers, "wb", buffering=0)

    def _environment(self) -> dict[str, str]:
        """One rank, on what Ray reserved for it; Ray has put its GPUs into the environment."""
        kept = {k: v for k, v in os.environ.items() if k not in NOT_OURS}
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "") if self.gpus else ""
        return {
            **kept, "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1",
            "OMP_NUM_THREADS": str(self.cpus), "CUDA_VISIBLE_DEVICES": gpus,
        }

    def _ended(self) -> dict[str, Any]:
        code = self._part()
        if code == EXIT_STATUS["stopped"]:
            time.sleep(HOLD_S)
        if code in (EXIT_STATUS["complete"], EXIT_STATUS["stopped"]):
            return self._end_result()
        if code != IN_USE_STATUS:
            local.settle(self.run, 0, [code], [self.log_file])
        raise TrialFailed(self.run.status().get("error", "another process was in the run folder"))

    def _end_result(self) -> dict[str, Any]:
        self.over = True
        return {**flatten(self.run.result() or {}), "done": True}


def _epoch_of(line: Mapping[str, Any]) -> tuple[Any, Any]:
    return line.get("stage"), line.get("epoch")


# --- the run's side ---


class Answers:
    """Reports epochs to the actor and waits for its answers."""

    def __init__(self, report_descriptor: int, answer_descriptor: int) -> None:
        self.reports = os.fdopen(report_descriptor, "w", encoding="utf-8")
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
        outcome = execute(run, report=answers.report)
    except UserError as error:
        log.error("%s", error)
        return IN_USE_STATUS
    if outcome == "stopped":
        mark_ended_early(run)
    return EXIT_STATUS[outcome]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
