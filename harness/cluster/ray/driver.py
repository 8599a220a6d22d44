"""The driver of a Ray search: a process that hands the trials of a sweep to Ray Tune.

It can be ended at any moment, because nothing is kept in it: what is true of a trial is in its run
folder. Tune gets numbers and gives decisions; the trials are the same runs as in backend `array`,
with the same signatures and folders.
"""

import dataclasses
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from harness.base.errors import UserError
from harness.base.files import read_json
from harness.cluster.rank import end_with_parent, say_plainly
from harness.cluster.ray.actors import trial_actor
from harness.cluster.ray.points import Points, searcher
from harness.cluster.ray.schedulers import make_scheduler
from harness.cluster.ray.shares import runs_of, signatures_of
from harness.cluster.ray.verdicts import mark_ended_early, was_being_ended, was_ended_early
from harness.cluster.records import Record, read_record
from harness.runs import takeovers
from harness.runs.run import Run, epoch_lines
from harness.sweeps.frozen import thaw
from harness.sweeps.keys import HyperBand, Pbt
from harness.sweeps.reading import Sweep

log = logging.getLogger(__name__)

POLL_S = 0.2
NODES_LIMIT_S = 120.0
"""How long the driver waits for all nodes before it begins with those that are there."""


def search(record: Record, rendezvous: dict[str, Any]) -> None:
    """Hand the trials that are still to be done to Ray Tune and return when it has no more."""
    sweep = thaw(record.options["sweep"])
    signatures = signatures_of(record, sweep)
    finished, due = _split(record, signatures)
    retell = isinstance(sweep.scheduler, HyperBand)
    if retell:  # it halves trials together, and so must meet all of them again
        due = [run for run in runs_of(record, signatures) if run in finished or run in due]
    points = Points(sweep, due)
    log.info(
        "%d trials are finished, %d are to be run, %d points to be proposed",
        len(finished), len(due), sweep.to_propose,
    )
    if not points.most:
        return
    import ray
    from ray import tune

    ray.init(
        address=rendezvous["address"], log_to_driver=False, logging_level=logging.WARNING,
        **rendezvous["init"],
    )
    _wait_for_nodes(record.options["nodes"])
    scheduler = make_scheduler(sweep)
    # both before what the search itself will see, and all that was logged up to now
    scheduler.tell(finished, due)
    shared = {
        "cwd": os.getcwd(), "logs": record.folder, "resources": dataclasses.asdict(sweep.resources),
        "trials_per_gpu": sweep.ray.trials_per_gpu, "retell": retell,
        "exports": (sweep.metric, sweep.scheduler.every, sweep.experiment.carried_files)
        if isinstance(sweep.scheduler, Pbt) else ("", 0, ()),
    }
    side_by_side: int | None = rendezvous.get("side_by_side", record.options["side_by_side"])
    if retell:  # brackets are of trials that wait together
        os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(points.most)
        side_by_side = None
    tuner = tune.Tuner(
        tune.with_resources(trial_actor(), _bundles(sweep)),
        tune_config=tune.TuneConfig(
            search_alg=searcher(points, shared), num_samples=points.most,
            # not one more: it would be proposed before others have told how they went
            max_concurrent_trials=side_by_side,
            scheduler=scheduler, trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
            # an actor costs seconds of importing; it only watches, so the next trial may have it
            reuse_actors=sweep.resources.nodes == 1,
        ),
        # Tune's own records are of no use to us and go with Ray's folder
        run_config=tune.RunConfig(
            name="search", verbose=0,
            # on the node, unless a paused trial may go on on another or the node is not ours
            storage_path=(
                rendezvous["storage"] if retell or "temp" not in rendezvous
                else f"{rendezvous['temp']}/tune"
            ),
            callbacks=[_narrator()],
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )
    # afterwards Tune looks for the records that we have told it not to write
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
    tuner.fit()
    every = runs_of(record, signatures)
    if isinstance(sweep.scheduler, Pbt) and all(run.is_complete() for run in every):
        for run in every:
            takeovers.forget_exports(run)


def _split(record: Record, signatures: list[str]) -> tuple[list[Run], list[Run]]:
    """Return the sweep's finished runs, and those to do, the furthest first.

    So the search meets first what it would have met first. A run that failed in an earlier attempt
    of this job waits for the next launch.
    """
    every = runs_of(record, signatures)
    for run in every:
        if was_being_ended(run):  # when the search that did so was killed
            mark_ended_early(run)
    finished = [run for run in every if run.is_complete() or was_ended_early(run)]
    open_to_us = {*record.trials, *signatures[len(record.options["sweep"]["known"]):]}
    due = [
        run for run in every
        if run.signature in open_to_us and run not in finished and run.status()["state"] != "failed"
    ]
    return finished, sorted(due, key=lambda run: -len(epoch_lines(run)))


def _bundles(sweep: Sweep) -> Any:
    """Return what a trial reserves: a bundle on each of its nodes."""
    from ray import tune

    one = sweep.resources
    gpus = (one.gpus or 0) / sweep.ray.trials_per_gpu
    bundle = {"CPU": one.cpus * one.ranks_per_node, "GPU": gpus}
    held = {name: amount for name, amount in bundle.items() if amount}
    return tune.PlacementGroupFactory(
        [held] * one.nodes, strategy="STRICT_SPREAD" if one.nodes > 1 else "PACK"
    )


def _wait_for_nodes(count: int) -> None:
    import ray

    deadline = time.monotonic() + NODES_LIMIT_S
    while True:
        alive = [node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]]
        if len(alive) >= count or time.monotonic() > deadline:
            break
        time.sleep(POLL_S)
    log.log(
        logging.INFO if len(alive) >= count else logging.WARNING,
        "%d of %d nodes: %s", len(alive), count, ", ".join(sorted(alive)),
    )


def _trial_name(trial: Any) -> str:
    return Path(trial.config["run"]).name


def _narrator() -> Any:
    """Return a callback that writes the search's course into the job's log."""
    from ray import tune

    class Narrator(tune.Callback):
        def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            log.info("%s: starts", trial)

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            log.info("%s: over", trial)

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            log.warning("%s: failed", trial)

    return Narrator()


def main(arguments: list[str]) -> int:
    """Be the driver process."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # the task that started this one answers it
    end_with_parent()
    say_plainly()
    record_file, rendezvous_file = map(Path, arguments)
    try:
        search(read_record(record_file), read_json(rendezvous_file))
    except UserError as error:
        log.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    # by its full name: what Ray pickles must refer to this module, not be a copy of it
    from harness.cluster.ray import driver

    sys.exit(driver.main(sys.argv[1:]))
