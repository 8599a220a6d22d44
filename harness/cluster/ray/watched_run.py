"""A run as Ray's actor sees it: started, answered epoch by epoch, ended."""

import json
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.base import machine
from harness.base.mappings import numeric_leaves
from harness.cluster.rank import EXIT_STATUS, IN_USE_STATUS, TrialFailed
from harness.cluster.rank_group import Process, RankGroup, end_within, settle
from harness.cluster.ray.verdicts import early_end_file, judged, mark_ended_early
from harness.runs import takeovers
from harness.runs.run import Run, epoch_lines

log = logging.getLogger(__name__)

END_LIMIT_S = 30.0
"""How long further ranks may take to end after rank 0 has."""
HOLD_S = 30.0
"""How long an actor keeps its place after its run was stopped by a signal. That is what SLURM sends
when it takes the nodes away: the next trial must not begin before the job has ended the search."""
NO_REPORTS = -1
"""In place of a pipe, for ranks that report nothing."""


class FollowerRanks:
    """The ranks of a trial on one node that report nothing: all but the first of all.

    They stop together with rank 0, with which they agree after every step; should it be gone, the
    end of their pipe stops them.
    """

    def __init__(self, run: Run, group: RankGroup, *, log_file: Path) -> None:
        answers, self.pipe = os.pipe()
        own = range(group.first == 0, group.ranks)
        stem = log_file.name.split(".")[0]
        self.logs = [log_file.with_name(f"{stem}.{group.first + local}.log") for local in own]
        self.processes = [
            _start(group, local, run, log, NO_REPORTS, answers)
            for local, log in zip(own, self.logs, strict=True)
        ]
        os.close(answers)

    def end(self) -> list[int]:
        """Close the pipe, and return the ranks' exit statuses once they have ended.

        A rank that waits for one that is gone is killed.
        """
        os.close(self.pipe)
        return end_within(self.processes, END_LIMIT_S)


class WatchedRun:
    """A run as Tune sees it: one result after the other, the last with `done`.

    others: called when the run starts, has its ranks on further nodes started and returns what ends
    them. retell: whether all that earlier attempts logged is told again; else what the search has
    not judged.
    exports: of population based training, the metric, after how many epochs that have it a
    checkpoint is kept for others (0: never), and the files of the experiment that go with it.
    """

    def __init__(
        self, run: Run, *, log_file: Path, group: RankGroup, retell: bool = False,
        others: Callable[[RankGroup], Callable[[], Any]] = lambda group: lambda: None,
        exports: tuple[str, int, tuple[str, ...]] = ("", 0, ()),
    ) -> None:
        self.run, self.exports = run, exports
        self.log_file = log_file
        self.group, self.others = group, others
        self.process: Process | None = None
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
        numbers = numeric_leaves(line)
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
        return {**numeric_leaves(line), "stage": line.get("stage")}

    def _go_on(self) -> None:
        try:
            self.answers.write(b"g")
        except BrokenPipeError:  # the process died; its reports end too
            log.warning("%s: its process is gone", self.run.name)

    def _start(self) -> None:
        group = self.group
        if group.world > 1:
            group = replace(group, port=machine.free_port())
        reports, their_report = os.pipe()
        their_answer, answers = os.pipe()
        self.process = _start(group, 0, self.run, self.log_file, their_report, their_answer)
        os.close(their_report)
        os.close(their_answer)
        self.reports = os.fdopen(reports, "rb")
        self.answers = os.fdopen(answers, "wb", buffering=0)
        self.followers = FollowerRanks(self.run, group, log_file=self.log_file)
        self.end_others = self.others(group)

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
            settle(self.run, broken, codes, logs)
        raise TrialFailed(self.run.status().get("error", "another process was in the run folder"))

    def _end_result(self) -> dict[str, Any]:
        self.over = True
        return {**numeric_leaves(self.run.result() or {}), "done": True}


def _epoch_of(line: Mapping[str, Any]) -> tuple[Any, Any]:
    return line.get("stage"), line.get("epoch")


def _start(
    group: RankGroup, local: int, run: Run, log_file: Path, reports: int, answers: int
) -> Process:
    """Start a rank, which reads `answers` and writes to `reports`, unless that is negative."""
    return group.start(
        local, "harness.cluster.ray.trial", str(run.folder), str(reports), str(answers),
        log_file=log_file, inherited=[pipe for pipe in (reports, answers) if pipe >= 0],
    )
