"""A run that an actor of Ray starts, answers after each epoch, and ends."""

import dataclasses
import json
import logging
import os
import secrets
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from harness.base.mappings import numeric_leaves
from harness.cluster.rank_processes import (
    EXIT_STATUS,
    IN_USE_STATUS,
    Process,
    RankGroup,
    TrialFailed,
    end_within,
    settle,
    start_process,
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
NO_REPORTS = -1
"""In place of a pipe, for ranks that do not report."""


class FollowerRanks:
    """The ranks of a trial on one node that do not report: all except rank 0.

    They stop together with rank 0, with which they agree after every step; if rank 0 is gone, the
    end of their pipe stops them.
    """

    def __init__(self, run: Run, group: RankGroup, *, log_file: Path) -> None:
        answers, self.pipe = os.pipe()
        own = range(group.first == 0, group.ranks)
        stem = log_file.name.split(".")[0]
        self.logs = [log_file.with_name(f"{stem}.{group.first + local}.log") for local in own]
        self.processes = [_start(group, local, run, log, NO_REPORTS, answers)
                          for local, log in zip(own, self.logs, strict=True)]
        os.close(answers)

    def end(self) -> list[int]:
        """Close the pipe and return the exit statuses; a rank that does not end is killed."""
        os.close(self.pipe)
        return end_within(self.processes, END_LIMIT_S)


class WatchedRun:
    """A run as Tune sees it: one result per epoch, and a last one with `done`.

    start_others: called when the run starts; starts its ranks on further nodes and returns what
    ends them. replay: return all epochs of earlier attempts again; otherwise those that the search
    has not judged. exports: for population based training, the metric, the interval in epochs at
    which checkpoints are kept for other runs (0: never), and the experiment's files kept with them.
    """

    def __init__(
        self, run: Run, *, log_file: Path, group: RankGroup, replay: bool = False,
        start_others: Callable[[RankGroup], Callable[[], Any]] = lambda group: lambda: None,
        exports: tuple[str, int, tuple[str, ...]] = ("", 0, ()),
    ) -> None:
        self.run, self.exports = run, exports
        self.log_file, self.group, self.start_others = log_file, group, start_others
        self.process: Process | None = None
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
        for text in self.reports:
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
            self.process, self.over = None, False
        takeovers.carry_out(self.run)
        self.reported = {_epoch_of(line) for line in epoch_lines(self.run)}

    def end(self) -> None:
        """Have the run save and stop, and wait until it has ended."""
        if self.over:
            return
        if self.process is not None:
            self._close()
        elif not self.run.is_complete():
            mark_ended_early(self.run)

    def _close(self) -> int:
        """Close the pipes, wait for the processes and return rank 0's exit status."""
        assert self.process is not None
        self.answers.close()
        code = self.process.wait()
        self.reports.close()
        self.codes = self.followers.end()
        self.end_others()
        self.over = True
        return code

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
        self.process = _start(group, 0, self.run, self.log_file, report_end, answer_end)
        os.close(report_end)
        os.close(answer_end)
        self.reports = os.fdopen(reports, "rb")
        self.answers = os.fdopen(answers, "wb", buffering=0)
        self.followers = FollowerRanks(self.run, group, log_file=self.log_file)
        self.end_others = self.start_others(group)

    def _after_end(self) -> dict[str, Any]:
        code = self._close()
        if code == EXIT_STATUS["stopped"]:
            time.sleep(HOLD_S)
        if code in (EXIT_STATUS["complete"], EXIT_STATUS["stopped"]):
            return self._last_result()
        if code != IN_USE_STATUS:
            codes = [code, *self.codes]
            # a killed rank is the cause of the other ranks' errors
            broken = next((rank for rank, one in enumerate(codes) if one < 0), 0)
            settle(self.run, broken, codes, [self.log_file, *self.followers.logs])
        error = self.run.status().get("error", "another process was in the run folder")
        raise TrialFailed(error)

    def _last_result(self) -> dict[str, Any]:
        self.over = True
        return {**numeric_leaves(self.run.result() or {}), "done": True}


def _epoch_of(line: Mapping[str, Any]) -> tuple[Any, Any]:
    return line.get("stage"), line.get("epoch")


def _start(
    group: RankGroup, local: int, run: Run, log_file: Path, reports: int, answers: int
) -> Process:
    """Start a rank that reads `answers` and writes to `reports`, unless that is negative."""
    return start_process(
        "harness.cluster.ray.trial", str(run.folder), str(reports), str(answers),
        log_file=log_file, environment=group.environment(local),
        inherited=[pipe for pipe in (reports, answers) if pipe >= 0],
    )


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
                gpus=_own_gpus(gpus),
                address=ray.util.get_node_ip_address() if resources.nodes > 1 else "127.0.0.1",
            )
            self.watched = WatchedRun(
                run, log_file=log_file, group=group, replay=config["replay"],
                start_others=lambda group: _start_others(run, group, gpus, log_file),
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


def _own_gpus(share: float) -> str:
    """Return the GPUs that Ray gave to this process, as in CUDA_VISIBLE_DEVICES; "" for none."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "") if share else ""


def _start_others(
    run: Run, group: RankGroup, gpus: float, log_file: Path
) -> Callable[[], Any]:
    """Start the ranks on the trial's further nodes, by an actor on each; returns what ends them."""
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    class Ranks:
        def __init__(self, group: RankGroup) -> None:
            os.chdir(working_folder)
            group = dataclasses.replace(group, gpus=_own_gpus(gpus))
            self.followers = FollowerRanks(run, group, log_file=log_file)

        def end(self) -> list[int]:
            return self.followers.end()

    working_folder = os.getcwd()
    actor = ray.remote(num_cpus=group.cpus * group.ranks, num_gpus=gpus)(Ranks)
    reserved = ray.util.get_current_placement_group()
    actors = []
    for node in range(1, group.world // group.ranks):
        where = PlacementGroupSchedulingStrategy(placement_group=reserved,
                                                 placement_group_bundle_index=node)
        here = dataclasses.replace(group, first=node * group.ranks)
        actors.append(actor.options(scheduling_strategy=where).remote(here))
    return lambda: [ray.get(started.end.remote()) for started in actors]
