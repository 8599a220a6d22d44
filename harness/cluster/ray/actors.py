"""Ray's actors: one per trial, and one for each further node on which a trial has ranks."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.cluster.rank_group import RankGroup
from harness.cluster.ray.watched_run import FollowerRanks, WatchedRun
from harness.runs.run import Run
from harness.sweeps.keys import Resources


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


def _start_others(run: Run, group: RankGroup, gpus: float, log_file: Path) -> Callable[[], Any]:
    """Start the ranks on the trial's further nodes, by an actor on each; returns what ends them."""
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    reserved = ray.util.get_current_placement_group()
    actors = []
    for node in range(1, group.world // group.ranks):
        where = PlacementGroupSchedulingStrategy(
            placement_group=reserved, placement_group_bundle_index=node
        )
        actors.append(_rank_actor().options(
            scheduling_strategy=where, num_cpus=group.cpus * group.ranks, num_gpus=gpus
        ).remote(
            str(run.folder), dataclasses.replace(group, first=node * group.ranks), gpus,
            str(log_file), os.getcwd(),
        ))
    return lambda: [ray.get(actor.end.remote()) for actor in actors]


def _rank_actor() -> Any:
    """Return the class of the actor that runs a trial's ranks on a further node."""
    import ray

    @ray.remote
    class Ranks:
        def __init__(
            self, folder: str, group: RankGroup, gpus: float, log_file: str, working_folder: str
        ) -> None:
            os.chdir(working_folder)
            group = dataclasses.replace(group, gpus=_own_gpus(gpus))
            self.followers = FollowerRanks(Run(Path(folder)), group, log_file=Path(log_file))

        def end(self) -> list[int]:
            return self.followers.end()

    return Ranks
