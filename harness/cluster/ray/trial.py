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
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.base import network
from harness.base.errors import UserError
from harness.base.files import read_json, write_json
from harness.base.locks import job_id, lock_holder
from harness.base.mappings import flatten
from harness.cluster.local import worker as local
from harness.cluster.rank import (
    EXIT_STATUS,
    IN_USE_STATUS,
    TrialFailed,
    drop_own_lock,
    say_plainly,
)
from harness.runs import takeovers
from harness.runs.execute import execute
from harness.runs.run import Run, epoch_lines
from harness.runs.stopping import request_stop

log = logging.getLogger(__name__)

END_LIMIT_S = 30.0
"""How long further ranks may take to end after rank 0 has."""
HOLD_S = 30.0
"""How long an actor keeps its place after its run was stopped by a signal. That is what SLURM sends
when it takes the nodes away: the next trial must not begin before the job has ended the search."""
NOT_OURS = ("MASTER_ADDR", "MASTER_PORT", "CUDA_VISIBLE_DEVICES")
NO_REPORTS = -1
"""In place of a pipe, for ranks that report nothing."""


# --- what the search has seen of a run ---


def judged_file(run: Run) -> Path:
    """Where the search notes which epochs of a run it has judged."""
    return run.folder / "judged.json"


def judged(run: Run) -> set[tuple[Any, Any]]:
    """Return the (stage, epoch) that the search has judged; an epoch may be logged, and not yet."""
    try:
        return {(stage, epoch) for stage, epoch in read_json(judged_file(run))["epochs"]}
    except FileNotFoundError:
        return set()


def note_judged(run: Run, stage: Any, epoch: Any) -> None:
    """Note that the search has decided on an epoch; after what it decided is on disk."""
    before = judged(run)
    if (stage, epoch) not in before:
        write_json(judged_file(run), {"epochs": sorted([*before, (stage, epoch)], key=str)})


# --- being ended early ---


def early_end_file(run: Run) -> Path:
    """Where the search says that, and at which epoch, it ends the run early."""
    return run.folder / "early_end.json"


def end_early(run: Run, *, by: str, epoch: int) -> None:
    """Let the run be marked as ended early once it stops; called before it is told to."""
    write_json(early_end_file(run), {"by": by, "epoch": epoch})


def end_paused(run: Run, *, by: str, epoch: int) -> None:
    """Have a run that is paused, or about to be, marked as ended early.

    One that still saves is marked by its own process, which looks when it has let go of its lock:
    the status that it sets before would replace ours.
    """
    end_early(run, by=by, epoch=epoch)
    if lock_holder(run.lock_file) is None:
        mark_ended_early(run)


def mark_ended_early(run: Run) -> None:
    """Give a stopped run the status of one that the search ended, if the search did."""
    try:
        why = read_json(early_end_file(run))
    except FileNotFoundError:
        return
    facts = {key: v for key, v in run.status().items() if key not in ("state", "time", "reason")}
    reason = f"stopped early by {why['by']} at epoch {why['epoch']}"
    run.set_status("stopped", **{**facts, "reason": reason, "pruned": True})
    early_end_file(run).unlink(missing_ok=True)


def was_being_ended(run: Run) -> bool:
    """Whether a search had decided to end a run that has not been marked so, nor has gone on."""
    try:
        why = read_json(early_end_file(run))
    except FileNotFoundError:
        return False
    if run.is_complete() or was_ended_early(run) or run.status()["state"] == "failed":
        return False
    lines = epoch_lines(run)
    return bool(lines) and bool(lines[-1]["epoch"] == why["epoch"])


def was_ended_early(run: Run) -> bool:
    """Whether a search ended the run, and nobody has taken it up since."""
    status = run.status()
    return status["state"] == "stopped" and bool(status.get("pruned"))


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


class Followers:
    """The ranks of a trial on one node that report nothing: all but the first of all.

    They stop together with rank 0, with which they agree after every step; should it be gone, the
    end of their pipe stops them.
    """

    def __init__(self, run: Run, crew: Crew, *, log_file: Path) -> None:
        their_end, self.pipe = os.pipe()
        own = range(crew.first == 0, crew.ranks)
        stem = log_file.name.split(".")[0]
        self.logs = [log_file.with_name(f"{stem}.{crew.first + local}.log") for local in own]
        self.processes = [
            crew.start(local, run, log, NO_REPORTS, their_end)
            for local, log in zip(own, self.logs, strict=True)
        ]
        os.close(their_end)

    def end(self) -> list[int]:
        """Close the pipe, and return the ranks' exit statuses once they have ended.

        One that waits for a rank that is gone is killed.
        """
        os.close(self.pipe)
        deadline = time.monotonic() + END_LIMIT_S
        codes = []
        for process in self.processes:
            try:
                codes.append(process.wait(max(0.0, deadline - time.monotonic())))
            except subprocess.TimeoutExpired:
                process.kill()
                codes.append(process.wait())
        return codes


class WatchedRun:
    """A run as Tune sees it: one result after the other, the last with `done`.

    others: called when the run starts, has its ranks on further nodes started and returns what ends
    them. retell: whether all that earlier attempts logged is told again; else what the search has
    not judged.
    exports: of population based training, the metric, after how many epochs that have it a
    checkpoint is kept for others (0: never), and the files of the experiment that go with it.
    """

    def __init__(
        self, run: Run, *, log_file: Path, crew: Crew, retell: bool = False,
        others: Callable[[Crew], Callable[[], Any]] = lambda crew: lambda: None,
        exports: tuple[str, int, tuple[str, ...]] = ("", 0, ()),
    ) -> None:
        self.run, self.exports = run, exports
        self.log_file = log_file
        self.crew, self.others = crew, others
        self.process: subprocess.Popen[bytes] | None = None
        self.over = False
        # The lines after the last checkpoint will be logged a second time; they are told once.
        self.stored = deque(epoch_lines(run))
        self.told: set[tuple[Any, Any]] = set()
        if not retell:
            self.told = judged(run)
            self.stored = deque(line for line in self.stored if _epoch_of(line) not in self.told)
        early_end_file(run).unlink(missing_ok=True)

    def skip_stored(self) -> None:
        """Take what is logged already for told."""
        self.told |= {_epoch_of(line) for line in self.stored}
        self.stored.clear()

    def next_result(self) -> dict[str, Any]:
        """Return the metrics of the next epoch, or of the end, with `done`.

        Raises TrialFailed when the run failed.
        """
        if self.stored:
            line = self.stored.popleft()
            self._export(line, patience_s=0.0)
            return self._tell(line)
        if takeovers.is_planned(self.run):
            self._take_over()
        if self.process is None:
            if self.run.is_complete():
                return self._end_result()
            self._start()
        else:
            self._go_on()
        for text in self.reports:
            line = json.loads(text)
            if _epoch_of(line) not in self.told:
                self._export(line)
                return self._tell(line)
            self._go_on()
        return self._ended()

    def _export(self, line: dict[str, Any], patience_s: float = takeovers.PATIENCE_S) -> None:
        """Keep the state after an epoch that is compared, where it can still be had."""
        metric, every, carried_files = self.exports
        numbers = flatten(line)
        if every and metric in numbers and line["epoch"] % every == 0:
            takeovers.export(
                self.run, stage=line["stage"], epoch=line["epoch"], score=numbers[metric],
                carried_files=carried_files, patience_s=patience_s,
            )

    def _take_over(self) -> None:
        """Let the run end, and have the next one go on from another run's state."""
        if self.process is not None:
            self._part()
            self.process, self.over = None, False
        takeovers.carry_out(self.run)
        self.told = {_epoch_of(line) for line in epoch_lines(self.run)}

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
        """Close the pipes, wait for the processes and return rank 0's exit status."""
        assert self.process is not None
        self.answers.close()
        code = self.process.wait()
        self.reports.close()
        self.codes = self.followers.end()
        self.end_others()
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
        crew = self.crew
        if crew.world > 1:
            crew = replace(crew, port=network.free_port())
        reports, their_report = os.pipe()
        their_answer, answers = os.pipe()
        self.process = crew.start(0, self.run, self.log_file, their_report, their_answer)
        os.close(their_report)
        os.close(their_answer)
        self.reports = os.fdopen(reports, "rb")
        self.answers = os.fdopen(answers, "wb", buffering=0)
        self.followers = Followers(self.run, crew, log_file=self.log_file)
        self.end_others = self.others(crew)

    def _ended(self) -> dict[str, Any]:
        code = self._part()
        if code == EXIT_STATUS["stopped"]:
            time.sleep(HOLD_S)
        if code in (EXIT_STATUS["complete"], EXIT_STATUS["stopped"]):
            return self._end_result()
        if code != IN_USE_STATUS:
            codes = [code, *self.codes]
            # a rank that was killed is the cause of what others say
            broken = next((rank for rank, one in enumerate(codes) if one < 0), 0)
            logs = [self.log_file, *self.followers.logs]
            local.settle(self.run, broken, codes, logs)
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
