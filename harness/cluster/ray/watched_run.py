"""A run that an actor of Ray starts, answers after each epoch, and ends."""

import dataclasses
import json
import logging
import os
import secrets
import select
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.base.mappings import numeric_leaves
from harness.cluster.rank_processes import (
    EXIT_STATUS,
    IN_USE_STATUS,
    POLL_S,
    Process,
    RankGroup,
    TrialFailed,
    end_helpers,
    end_within,
    settle,
)
from harness.cluster.ray.followers import (
    FollowerRanks,
    Followers,
    Lost,
    first_lost,
    log_of,
    own_gpus,
    start_elsewhere,
    start_rank,
)
from harness.cluster.ray.search_notes import early_end_file, judged, mark_ended_early
from harness.runs import takeovers
from harness.runs.run import Run, epoch_lines
from harness.sweeps.keys import Resources

log = logging.getLogger(__name__)

END_LIMIT_S = 30.0
"""How long further ranks may take to end after rank 0."""
HOLD_S = 30.0
"""How long an actor keeps its resources after a signal stopped its run. SLURM sends it when it
takes the nodes away: no further trial must begin before the job has ended the search."""
LOST_LIMIT_S = 5.0
"""How long the ranks of a trial may take to end once one is lost. They cannot save without it, but
rank 0 may be writing a checkpoint, or its status."""
KILLED_LIMIT_S = 1.0
"""How long to look for a killed rank after another one failed, perhaps because of it."""


class WatchedRun:
    """A run as Tune sees it: one result per epoch, and a last one with `done`.

    start_others: called when the run starts; starts its ranks on further nodes. replay: return all
    epochs of earlier attempts again; otherwise those that the search has not judged. exports: for
    population based training, the metric, the interval in epochs at which checkpoints are kept for
    other runs (0: never), and the experiment's files kept with them.
    """

    def __init__(
        self, run: Run, *, log_file: Path, group: RankGroup, replay: bool = False,
        start_others: Callable[[RankGroup], Sequence[Followers]] = lambda group: (),
        exports: tuple[str, int, tuple[str, ...]] = ("", 0, ()),
    ) -> None:
        self.run, self.exports = run, exports
        self.log_file, self.group, self.start_others = log_file, group, start_others
        self.process: Process | None = None
        self.followers: list[Followers] = []
        self.over = False
        # the lines after the last checkpoint will be logged again, but are reported once
        self.reported = set() if replay else judged(run)
        self.stored = deque(ln for ln in epoch_lines(run) if _epoch_of(ln) not in self.reported)
        early_end_file(run).unlink(missing_ok=True)

    def skip_stored(self) -> None:
        """Count the epochs that are already logged as reported."""
        self.reported |= {_epoch_of(line) for line in self.stored}
        self.stored.clear()

    def next_result(self) -> dict[str, Any]:
        """Return the next epoch's metrics, or the last result with `done`; raises TrialFailed."""
        if self.stored:
            line = self.stored.popleft()
            self._export(line, patience_s=0.0)
            return self._report(line)
        if takeovers.is_planned(self.run):
            self._take_over()
        if self.process is None:
            if self.run.is_complete():
                return self._last_result()
            self._start_all()
        else:
            self._answer()
        for text in self._lines():
            line = json.loads(text)
            if _epoch_of(line) not in self.reported:
                self._export(line)
                return self._report(line)
            self._answer()
        return self._after_end()

    def _export(self, line: dict[str, Any], patience_s: float = takeovers.PATIENCE_S) -> None:
        """Keep the checkpoint of an epoch at which the population is compared, if it exists."""
        metric, every, carried_files = self.exports
        numbers = numeric_leaves(line)
        if every and metric in numbers and line["epoch"] % every == 0:
            takeovers.export(self.run, stage=line["stage"], epoch=line["epoch"],
                             score=numbers[metric], carried_files=carried_files,
                             patience_s=patience_s)

    def _take_over(self) -> None:
        """End the run, and replace its state by another run's."""
        if self.process is not None:
            self._close()
            self.process, self.followers, self.over = None, [], False
        takeovers.carry_out(self.run)
        self.reported = {_epoch_of(line) for line in epoch_lines(self.run)}

    def end(self) -> None:
        """Have the run save and stop, and wait until it has ended."""
        if self.over:
            return
        if self.process is not None:
            self._settle(self._close())
        elif not self.run.is_complete():
            mark_ended_early(self.run)

    def _lines(self) -> Iterator[bytes]:
        """Yield what rank 0 reports, until it ends or another rank is lost."""
        is_ready = select.poll()
        is_ready.register(self.reports, select.POLLIN)
        while True:
            is_over = self._process().poll() is not None or self._lost() is not None
            if is_ready.poll(0 if is_over else 1000 * POLL_S):
                if not (line := self.reports.readline()):
                    return
                yield line
            elif is_over:  # helpers of a killed rank may keep the pipe open
                return

    def _process(self) -> Process:
        assert self.process is not None
        return self.process

    def _lost(self) -> Lost | None:
        """Return the rank that failed or was killed, if any."""
        found = [one for followers in self.followers if (one := followers.lost()) is not None]
        return first_lost({0: self._process().poll(), **dict(found)})

    def _close(self) -> Lost | None:
        """Close the pipes and wait until all ranks have ended, in little time if one was lost;
        returns the lost rank."""
        self.answers.close()
        while self._lost() is None:
            with suppress(subprocess.TimeoutExpired):
                self._process().wait(POLL_S)
                break
        lost = self._lost()
        deadline = time.monotonic() + (KILLED_LIMIT_S if self.group.world > 1 else 0.0)
        while lost is not None and lost[1] >= 0 and time.monotonic() < deadline:
            time.sleep(POLL_S)
            now = self._lost()
            lost = now if now is not None and now[1] < 0 else lost
        limit_s = END_LIMIT_S if lost is None else LOST_LIMIT_S
        deadline = time.monotonic() + limit_s
        self.codes = end_within([self._process()], limit_s)
        end_helpers([self._process()])
        self.reports.close()
        for followers in self.followers:
            self.codes += followers.end(max(0.0, deadline - time.monotonic()))
        self.over = True
        return lost

    def _report(self, line: dict[str, Any]) -> dict[str, Any]:
        self.reported.add(_epoch_of(line))
        return {**numeric_leaves(line), "stage": line.get("stage")}

    def _answer(self) -> None:
        try:
            self.answers.write(b"g")
        except BrokenPipeError:  # the process died; its reports end too
            log.warning("%s: its process is gone", self.run.name)

    def _start_all(self) -> None:
        group = dataclasses.replace(self.group, attempt=secrets.token_hex(8))
        reports, report_end = os.pipe()
        answer_end, answers = os.pipe()
        self.process = start_rank(group, 0, self.run, self.log_file, report_end, answer_end)
        os.close(report_end)
        os.close(answer_end)
        self.reports = os.fdopen(reports, "rb")
        self.answers = os.fdopen(answers, "wb", buffering=0)
        self.followers.append(FollowerRanks(self.run, group, log_file=self.log_file))
        self.followers += self.start_others(group)

    def _after_end(self) -> dict[str, Any]:
        lost = self._close()
        if lost is None and self.codes[0] == EXIT_STATUS["stopped"]:
            time.sleep(HOLD_S)
        if lost is None or self.run.is_complete():
            return self._last_result()
        self._settle(lost)
        error = self.run.status().get("error", "another process was in the run folder")
        raise TrialFailed(error)

    def _settle(self, lost: Lost | None) -> None:
        """Write the status of a run that lost a rank, unless rank 0 knew the cause."""
        if lost is None or self.codes[0] == IN_USE_STATUS:
            return
        log.warning("%s: rank %d was lost", self.run.name, lost[0])
        logs = [log_of(self.log_file, rank) for rank in range(len(self.codes))]
        codes = [*self.codes]
        codes[lost[0]] = lost[1]  # an actor may have gone with its rank
        settle(self.run, lost[0], codes, logs)

    def _last_result(self) -> dict[str, Any]:
        self.over = True
        return {**numeric_leaves(self.run.result() or {}), "done": True}


def _epoch_of(line: Mapping[str, Any]) -> tuple[Any, Any]:
    return line.get("stage"), line.get("epoch")


# --- as actors ---


def trial_actor() -> type:
    """Return the class of Ray's actor of a trial."""
    import ray
    from ray import tune

    class RayTrial(tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            os.chdir(config["cwd"])
            run = Run(Path(config["run"]))
            resources = Resources(**config["resources"])
            gpus = resources.gpus / config["trials_per_gpu"]
            log_file = Path(config["logs"]) / f"{run.signature}.0.log"
            group = RankGroup(
                ranks=resources.ranks_per_node, world=resources.ranks, cpus=resources.cpus,
                gpus=own_gpus(gpus),
                address=ray.util.get_node_ip_address() if resources.nodes > 1 else "127.0.0.1",
            )
            self.watched = WatchedRun(
                run, log_file=log_file, group=group, replay=config["replay"],
                start_others=lambda group: start_elsewhere(run, group, gpus, log_file),
                exports=tuple(config["exports"]),
            )

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.cleanup()
            self.setup(new_config)
            return True

        def step(self) -> dict[str, Any]:
            return self.watched.next_result()

        def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
            """Return a placeholder: a paused run has its own checkpoints."""
            return {"paused": True}

        def load_checkpoint(self, checkpoint: Any) -> None:
            """Continue after a pause; the search already knows what the run has logged."""
            self.watched.skip_stored()

        def cleanup(self) -> None:
            self.watched.end()

    return RayTrial
