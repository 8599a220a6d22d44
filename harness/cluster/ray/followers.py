"""The ranks of a trial that do not report: all except rank 0, on its node and on further ones."""

import dataclasses
import logging
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from harness.cluster.rank_processes import (
    FINE,
    POLL_S,
    Process,
    RankGroup,
    end_helpers,
    end_within,
    start_process,
)
from harness.runs.run import Run

log = logging.getLogger(__name__)

NO_REPORTS = -1
"""In place of a pipe, for ranks that do not report."""
Lost = tuple[int, int]
"""The number and the exit status of a rank that failed or was killed."""


def first_lost(codes: Mapping[int, int | None]) -> Lost | None:
    """Return the lost rank among exit statuses by rank, None if all run or have ended well. A
    killed rank comes first, because the others fail without it."""
    lost = [(rank, code) for rank, code in codes.items() if code not in FINE]
    return min(lost, key=lambda one: (one[1] >= 0, one[0]), default=None)


class Followers(Protocol):
    """Ranks on one node that do not report."""

    def lost(self) -> Lost | None:
        """Return the rank that failed or was killed, if any."""

    def end(self, limit_s: float) -> list[int]:
        """Have the ranks stop and return their exit statuses; kill those that have not ended after
        `limit_s`."""


class FollowerRanks:
    """The followers on this node.

    They stop together with rank 0, with which they agree after every step; if rank 0 is gone, the
    end of their pipe stops them.
    """

    def __init__(self, run: Run, group: RankGroup, *, log_file: Path) -> None:
        answers, self.pipe = os.pipe()
        own = range(group.first == 0, group.ranks)
        self.processes = {
            group.first + local: start_rank(
                group, local, run, log_of(log_file, group.first + local), NO_REPORTS, answers
            )
            for local in own
        }
        os.close(answers)

    def lost(self) -> Lost | None:
        return first_lost({rank: process.poll() for rank, process in self.processes.items()})

    def end(self, limit_s: float) -> list[int]:
        os.close(self.pipe)
        codes = end_within([*self.processes.values()], limit_s)
        end_helpers(self.processes.values())
        return codes

    def watch(self) -> Lost | None:
        """Wait until a rank is lost, or all have ended well; returns the lost one."""
        while self.lost() is None and any(p.poll() is None for p in self.processes.values()):
            time.sleep(POLL_S)
        return self.lost()


class DistantRanks:
    """The followers on a further node, where an actor starts and watches them."""

    def __init__(self, actor: Any, group: RankGroup) -> None:
        self.actor, self.ranks = actor, range(group.first, group.first + group.ranks)
        self.watching = actor.watch.remote()

    def lost(self) -> Lost | None:
        import ray

        if not ray.wait([self.watching], timeout=0)[0]:
            return None
        try:
            found = ray.get(self.watching)
            return tuple(found) if found else None
        except ray.exceptions.RayActorError as error:  # its node is gone, perhaps
            log.warning("ranks %s: %s", [*self.ranks], error)
            return self.ranks[0], -signal.SIGKILL

    def end(self, limit_s: float) -> list[int]:
        import ray

        try:
            return list(ray.get(self.actor.end.remote(limit_s)))
        except ray.exceptions.RayActorError:
            return [-signal.SIGKILL] * len(self.ranks)


def start_elsewhere(run: Run, group: RankGroup, gpus: float, log_file: Path) -> list[DistantRanks]:
    """Start the ranks on the trial's further nodes, by an actor on each. gpus: Ray's share of each
    node's ranks."""
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    class Ranks(FollowerRanks):
        def __init__(self, group: RankGroup) -> None:
            os.chdir(working_folder)
            group = dataclasses.replace(group, gpus=own_gpus(gpus))
            super().__init__(run, group, log_file=log_file)

    working_folder = os.getcwd()
    actor = ray.remote(num_cpus=group.cpus * group.ranks, num_gpus=gpus,
                       max_concurrency=2)(Ranks)  # it watches while it is asked to end
    reserved = ray.util.get_current_placement_group()
    found = []
    for node in range(1, group.world // group.ranks):
        where = PlacementGroupSchedulingStrategy(placement_group=reserved,
                                                 placement_group_bundle_index=node)
        here = dataclasses.replace(group, first=node * group.ranks)
        found.append(DistantRanks(actor.options(scheduling_strategy=where).remote(here), here))
    return found


def own_gpus(share: float) -> str:
    """Return the GPUs that Ray gave to this actor, as in CUDA_VISIBLE_DEVICES; "" for none. That
    variable itself has all of the node where another one keeps Ray from setting it."""
    import ray

    return ",".join(map(str, ray.get_gpu_ids())) if share else ""


def log_of(log_file: Path, rank: int) -> Path:
    """Return the log file of a rank, beside that of rank 0."""
    return log_file.with_name(f"{log_file.name.split('.')[0]}.{rank}.log") if rank else log_file


def start_rank(
    group: RankGroup, local: int, run: Run, log_file: Path, reports: int, answers: int
) -> Process:
    """Start a rank that reads `answers` and writes to `reports`, unless that is negative."""
    return start_process(
        "harness.cluster.ray.trial", str(run.folder), str(reports), str(answers),
        log_file=log_file, environment=group.environment(local),
        inherited=[pipe for pipe in (reports, answers) if pipe >= 0],
    )
