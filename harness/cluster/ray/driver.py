"""The driver of a Ray search: a process that gives the trials of a sweep to Ray Tune.

It keeps no state and may be killed at any moment: a trial's state is in its run folder. Tune gets
metrics and returns decisions; the trials are the same runs as with backend `array`, with the same
signatures and folders.
"""

import dataclasses
import logging
import os
import signal
import sys
import time
from contextlib import chdir
from pathlib import Path
from typing import Any

from harness.base.errors import UserError
from harness.base.files import read_json
from harness.cluster.rank_processes import end_with_parent, log_to_stderr
from harness.cluster.ray.plan import ours, signatures_of
from harness.cluster.ray.points import Points, searcher
from harness.cluster.ray.schedulers import make_scheduler
from harness.cluster.ray.search_notes import mark_ended_early, was_being_ended, was_ended_early
from harness.cluster.ray.watched_run import trial_actor
from harness.cluster.records import Record, read_record
from harness.runs import takeovers
from harness.runs.run import Run, epoch_lines
from harness.sweeps.keys import HyperBand, Pbt
from harness.sweeps.reading import Sweep
from harness.sweeps.sweep_json import thaw

log = logging.getLogger(__name__)

POLL_S = 0.2
NODES_LIMIT_S = 120.0
"""How long the driver waits for missing nodes before it starts without them."""


def search(record: Record, rendezvous: dict[str, Any]) -> None:
    """Run the open trials under Ray Tune and return when there are no more."""
    sweep = thaw(record.options["sweep"])
    signatures = signatures_of(record, sweep)
    finished, due = _split(record, signatures)
    if isinstance(sweep.scheduler, HyperBand):  # it halves trials together, so it needs all again
        due = [run for run in record.runs(signatures) if run in finished or run in due]
    points = Points(sweep, due)
    log.info("%d trials are finished, %d are to be run, %d points to be proposed",
             len(finished), len(due), sweep.to_propose)
    if not points.most:
        return
    import ray

    # Ray puts the present folder, perhaps the working tree, before the frozen code in its workers
    with chdir(sweep.code or "."):
        ray.init(address=rendezvous["address"], log_to_driver=False, logging_level=logging.WARNING,
                 **rendezvous["init"])
    _wait_for_nodes(record.options["nodes"])
    scheduler = make_scheduler(sweep)
    scheduler.replay(finished, due)  # all that was logged before this process started
    tuner = _tuner(record, rendezvous, sweep, points, scheduler)
    # Tune looks for its own records, which it was configured not to write
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
    tuner.fit()
    every = record.runs(signatures)
    if isinstance(sweep.scheduler, Pbt) and all(run.is_complete() for run in every):
        for run in every:
            takeovers.forget_exports(run)


def _tuner(
    record: Record, rendezvous: dict[str, Any], sweep: Sweep, points: Points, scheduler: Any
) -> Any:
    from ray import tune

    replay = isinstance(sweep.scheduler, HyperBand)
    shared = {
        "cwd": os.getcwd(), "logs": record.folder, "resources": dataclasses.asdict(sweep.resources),
        "trials_per_gpu": sweep.ray.trials_per_gpu, "replay": replay,
        "exports": (sweep.metric, sweep.scheduler.every, sweep.experiment.carried_files)
        if isinstance(sweep.scheduler, Pbt) else ("", 0, ()),
    }
    side_by_side: int | None = rendezvous.get("side_by_side", record.options["side_by_side"])
    storage = rendezvous["storage"]
    if replay:  # the trials of a bracket wait for each other
        os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(points.most)
        side_by_side = None
    elif "temp" in rendezvous:  # on the node: it is ours, and no paused trial moves to another
        storage = f"{rendezvous['temp']}/tune"
    return tune.Tuner(
        tune.with_resources(trial_actor(), _bundles(sweep)),
        tune_config=tune.TuneConfig(
            search_alg=searcher(points, shared), num_samples=points.most,
            # no more: a further point would be proposed before these have reported
            max_concurrent_trials=side_by_side,
            scheduler=scheduler, trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
            # importing takes an actor seconds; it only watches, so the next trial can reuse it
            reuse_actors=sweep.resources.nodes == 1,
        ),
        # nobody needs Tune's own records, which are removed with Ray's folder
        run_config=tune.RunConfig(name="search", verbose=0, storage_path=storage,
                                  callbacks=[_progress_log()],
                                  checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False)),
    )


def _split(record: Record, signatures: list[str]) -> tuple[list[Run], list[Run]]:
    """Return the sweep's finished runs and its open ones, those with most epochs first.

    In that order the search would have seen them. A run that failed in an earlier attempt of this
    job waits for the next launch.
    """
    every = record.runs(signatures)
    for run in every:
        if was_being_ended(run):  # by a search that was then killed
            mark_ended_early(run)
    finished = [run for run in every if run.is_complete() or was_ended_early(run)]
    mine = ours(record, signatures)
    due = [run for run in every
           if run.signature in mine and run not in finished and run.status()["state"] != "failed"]
    return finished, sorted(due, key=lambda run: -len(epoch_lines(run)))


def _bundles(sweep: Sweep) -> Any:
    """Return the resources of a trial: a bundle on each of its nodes."""
    from ray import tune

    one = sweep.resources
    gpus = (one.gpus or 0) / sweep.ray.trials_per_gpu
    bundle = {"CPU": one.cpus * one.ranks_per_node, **({"GPU": gpus} if gpus else {})}
    return tune.PlacementGroupFactory([bundle] * one.nodes,
                                      strategy="STRICT_SPREAD" if one.nodes > 1 else "PACK")


def _wait_for_nodes(count: int) -> None:
    import ray

    deadline = time.monotonic() + NODES_LIMIT_S
    while True:
        alive = [node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]]
        if len(alive) >= count or time.monotonic() > deadline:
            break
        time.sleep(POLL_S)
    level = logging.INFO if len(alive) >= count else logging.WARNING
    log.log(level, "%d of %d nodes: %s", len(alive), count, ", ".join(sorted(alive)))


def _trial_name(trial: Any) -> str:
    return Path(trial.config["run"]).name


def _progress_log() -> Any:
    """Return a callback that logs the search's progress to the job's log."""
    from ray import tune

    class ProgressLog(tune.Callback):
        def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            log.info("%s: starts", trial)

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            log.info("%s: over", trial)

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            log.warning("%s: failed", trial)

    return ProgressLog()


def main(arguments: list[str]) -> int:
    """Run the driver process; returns its exit status."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # the task that started this one handles it
    end_with_parent()
    log_to_stderr()
    record_file, rendezvous_file = map(Path, arguments)
    try:
        search(read_record(record_file), read_json(rendezvous_file))
    except UserError as error:
        log.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    # by its full name, so that Ray's pickles refer to this module and not to __main__
    from harness.cluster.ray import driver

    sys.exit(driver.main(sys.argv[1:]))
