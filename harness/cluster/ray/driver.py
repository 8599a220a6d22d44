"""`backend: ray`: one job in which Ray Tune schedules the trials of a sweep.

The job's tasks, one per node, start Ray (`ray_cluster`); the first also starts the driver, a
process of its own that hands the trials to Tune and can be ended at any moment, because nothing is
kept in it: what is true of a trial is in its run folder. Tune gets numbers and gives decisions; the
trials are the same runs as in backend `array`, with the same signatures and folders.
"""

import dataclasses
import importlib.util
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from harness.base.errors import UserError
from harness.base.files import read_json
from harness.base.locks import held_lock, lock_holder
from harness.base.units import gigabytes
from harness.cluster import pages, shares
from harness.cluster.local import worker as local
from harness.cluster.rank import end_with_parent, requeue, say_plainly
from harness.cluster.ray import guest as ray_guest
from harness.cluster.ray import nodes as ray_cluster
from harness.cluster.ray.actors import trial_actor
from harness.cluster.ray.nodes import Meeting, Node, RayFailed, Share
from harness.cluster.ray.points import Points, searcher
from harness.cluster.ray.schedulers import make_scheduler
from harness.cluster.ray.trial import mark_ended_early, was_being_ended, was_ended_early
from harness.cluster.records import EVERY, Cluster, Record, new_record, read_record
from harness.cluster.slurm import script as slurm
from harness.config.build import changeable_keys
from harness.runs import takeovers
from harness.runs.run import Run, epoch_lines
from harness.runs.stopping import request_stop, stop_requested
from harness.sweeps.frozen import freeze, thaw
from harness.sweeps.keys import Allocation, HyperBand, Pbt, Resources
from harness.sweeps.reading import Sweep, Trial, expand
from harness.sweeps.space import RECIPE

log = logging.getLogger(__name__)

POLL_S = 0.2
NO_LIMIT = 10**6
NODES_LIMIT_S = 120.0
"""How long the driver waits for all nodes before it begins with those that are there."""


# --- the launcher's side ---


def check(sweep: Sweep) -> None:
    """Raise UserError for what this backend cannot do."""
    faults, one, many = [], sweep.resources, sweep.ray
    if many.address is not None and many.dashboard:
        faults.append("ray.dashboard: the Ray at ray.address has its own")
    if sweep.scheduler is not None and not sweep.metric.startswith("validation."):
        faults.append(
            f"scheduler: {sweep.scheduler.kind} compares trials while they train, but "
            f"{sweep.metric} is computed after the last epoch; use {sweep.experiment.metric}, or "
            "scheduler: none"
        )
    if isinstance(sweep.scheduler, HyperBand) and sweep.algorithm is not None:
        faults.append(
            "scheduler: hyperband halves trials that begin together, an algorithm proposes them "
            "one by one; use asha"
        )
    if isinstance(sweep.scheduler, Pbt):
        faults.extend(_population_faults(sweep))
    if many.dashboard and importlib.util.find_spec("aiohttp_cors") is None:
        faults.append("ray.dashboard: is not installed: pip install 'ray[default]'")
    if many.trials_per_gpu > 1 and one.gpus != 1:
        faults.append(
            f"ray.trials_per_gpu: {many.trials_per_gpu} trials share one GPU, so resources.gpus "
            f"must be 1, found {'null' if one.gpus is None else one.gpus}"
        )
    if one.nodes > 1 and (many.nodes % one.nodes or many.trials_per_node > 1):
        faults.append(
            f"resources.nodes: a trial of {one.nodes} nodes needs them for itself: set ray.nodes "
            f"to a multiple of it, and ray.trials_per_node to 1 (found {many.nodes} and "
            f"{many.trials_per_node})"
        )
    if faults:
        raise UserError("\n".join(f"{sweep.file}: {fault}" for fault in faults))


def _population_faults(sweep: Sweep) -> Iterator[str]:
    known = changeable_keys(sweep.base.schema)
    if sweep.algorithm is not None:
        yield "scheduler: pbt begins with a population, an algorithm proposes points one by one"
    if not any(dimension.key in known for dimension in sweep.space.dimensions):
        yield ("scheduler: pbt changes settings of trials that go on, none of these can be; search "
               f"one of {', '.join(sorted(known))}")
    if sweep.space.is_conditional or any(d.key == RECIPE for d in sweep.space.dimensions):
        yield "scheduler: pbt takes no conditions and no recipes among what is searched"


def _share(one: Resources, many: Allocation) -> Share:
    """Return what each node gives to all trials on it together."""
    count = many.trials_per_node
    return Share(
        cpus=one.cpus * one.ranks_per_node * count,
        gpus=-(-(one.gpus or 0) * count // many.trials_per_gpu),
    )


def allocation(sweep: Sweep) -> Sweep:
    """Return the sweep with the resources of the whole job in place of one trial's."""
    one, share = sweep.resources, _share(sweep.resources, sweep.ray)
    memory = None
    if one.memory is not None:
        memory = f"{round(gigabytes(one.memory) * sweep.ray.trials_per_node * 1024)}MB"
    whole = Resources(
        nodes=sweep.ray.nodes, tasks=1, cpus=share.cpus, gpus=share.gpus,
        time=one.time, memory=memory,
    )
    return dataclasses.replace(sweep, resources=whole)


def submit(
    sweep: Sweep, trials: list[Trial], *, cluster: Cluster, jobs: int | None = None
) -> Record:
    """Submit the one job that searches over `trials`, and return at once.

    Their run folders exist and their status is `submitted` already. jobs: how many run at a time
    on this machine. Raises UserError when the sweep asks for what this backend cannot do, or when
    the job was not taken.
    """
    check(sweep)
    address, resources = sweep.ray.address, sweep.resources
    slots, pool = None, {}
    if address is not None:
        room, resources = ray_guest.room(address, resources, sweep.ray)
        slots = min(jobs or NO_LIMIT, room)
        cluster = "local"  # the driver is here, wherever its trials are
    elif cluster == "local":
        if sweep.resources.nodes > 1:
            raise UserError(
                f"{sweep.file}: resources.nodes: a trial of {sweep.resources.nodes} nodes cannot "
                "run here; resources.nodes=1 resources.tasks=N tries its ranks on this machine"
            )
        resources = shares.settled(resources)
        slots = shares.slots_for(resources, jobs, sweep.ray.trials_per_gpu)
        pool = {"pool": dataclasses.asdict(
            shares.pool_for(resources, slots, sweep.ray.trials_per_gpu)
        )}
    sweep = dataclasses.replace(
        sweep, resources=dataclasses.replace(resources, gpus=resources.gpus or 0)
    )
    record = new_record(
        sweep.folder, cluster, [trial.signature for trial in trials],
        backend="ray", workers=1, nodes=sweep.ray.nodes if cluster == "slurm" else 1,
        trials_per_node=slots or sweep.ray.trials_per_node,
        side_by_side=slots
        or max(1, sweep.ray.nodes * sweep.ray.trials_per_node // sweep.resources.nodes),
        sweep={**freeze(sweep), "known": [trial.signature for trial in expand(sweep)]},
        code=str(sweep.code or ""), **pool,
    )
    record.write()
    if cluster == "local":
        local.start(record)
    else:
        _submit_slurm(allocation(sweep), record)
    return record


def _submit_slurm(sweep: Sweep, record: Record) -> None:
    name = slurm.job_name(sweep, record.token)
    executor = slurm.executor_for(sweep, Path(record.folder), name)
    try:
        with slurm.outside_any_job():
            job = executor.submit(drive, str(record.file))
    except Exception as error:
        raise UserError(f"sbatch did not take the job: {slurm.last_line(error)}") from None
    record.jobs = {EVERY: job.job_id}
    record.state = "submitted"
    record.write()


# --- the job's side ---


def drive(record_file: str) -> None:
    """Be one task of the job: Ray on this node, and on the first one the search. For submitit.

    When told to stop, every task ends its Ray, whereupon the runs on its node save; the first then
    puts the job back into SLURM's queue. Raises RayFailed, or SystemExit after a stop.
    """
    for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, request_stop)
    say_plainly()
    record = read_record(Path(record_file))
    meeting = Meeting(Path(record.folder), _attempt(record))
    task = int(os.environ.get("SLURM_PROCID", "0")) if record.cluster == "slurm" else 0
    if task > 0:
        ray_cluster.serve(meeting, _node_share(record))
        _wait_for_runs(record, host=socket.gethostname())
    else:
        with held_lock(local.worker_lock(record.file, 0)), _claimed_here(record, meeting):
            try:
                if not stop_requested():
                    _lead(record, meeting, _node_share(record))
            except RayFailed as error:
                if not stop_requested():
                    raise
                log.warning("while stopping: %s", error)  # the same signal ended Ray
            _wait_for_runs(record)
            if not stop_requested():
                pages.write_if_over(Path(record.folder).parents[1])
        if stop_requested() and record.cluster == "slurm":
            requeue()
    if stop_requested():
        # not a return: a result that submitit half wrote would break the next attempt's
        raise SystemExit(0)


def _node_share(record: Record) -> Share:
    frozen = record.options["sweep"]
    many = dataclasses.replace(
        Allocation(**frozen["ray"]), trials_per_node=record.options["trials_per_node"]
    )
    return _share(Resources(**frozen["resources"]), many)


@contextmanager
def _claimed_here(record: Record, meeting: Meeting) -> Iterator[None]:
    """Claim the trials' GPUs and cores; Ray starts with those that are free.

    How many trials then run side by side, the driver finds in the meeting file.
    """
    if "pool" not in record.options:  # in a SLURM job, or on somebody else's Ray
        yield
        return
    slots: int = record.options["side_by_side"]
    together: int = record.options["sweep"]["ray"]["trials_per_gpu"]
    with shares.share_of(record, lambda _: True, most=-(-slots // together)) as claim:
        if claim is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(claim.gpus)
            room = min(slots, claim.trials * together)
            if room < slots:
                log.warning("%d instead of %d trials at a time: other sweeps are running here",
                            room, slots)
            record.options["trials_per_node"] = room
            meeting.write(side_by_side=room)
        yield


def _attempt(record: Record) -> str:
    """Name this attempt: a job that was put back into the queue keeps its id."""
    if record.cluster == "local":
        return "local"
    return f"{os.environ['SLURM_JOB_ID']}-{os.environ.get('SLURM_RESTART_COUNT', '0')}"


def _lead(record: Record, meeting: Meeting, share: Share) -> None:
    """Keep Ray's head here and run the driver until it is done or a stop is asked for."""
    address = record.options["sweep"]["ray"]["address"]
    place: AbstractContextManager[Node | ray_guest.Host]
    if address is not None:
        place = ray_guest.guest(meeting, address)
    else:
        place = ray_cluster.head(
            meeting, share, peer=_second_host(record),
            dashboard=record.options["sweep"]["ray"]["dashboard"],
        )
    with place as node:
        driver = subprocess.Popen(
            [sys.executable, "-m", "harness.cluster.ray.driver", str(record.file),
             str(meeting.file)],
            env=_driver_environment(meeting, address), start_new_session=True,
            stdin=subprocess.DEVNULL,
        )
        try:
            while driver.poll() is None and not stop_requested():
                node.check()
                time.sleep(POLL_S)
        finally:
            driver.kill()
            code = driver.wait()
        if code != 0 and not stop_requested():
            raise RayFailed(f"the search ended with exit status {code}; its words are above")


def _second_host(record: Record) -> str | None:
    if record.options["nodes"] == 1:
        return None
    from submitit.slurm.slurm import SlurmJobEnvironment

    return str(SlurmJobEnvironment().hostnames[1])


def _driver_environment(meeting: Meeting, address: str | None) -> dict[str, str]:
    own = ray_cluster.environment(meeting) if address is None else ray_guest.environment()
    return {
        **own,
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # our own log is in the run folder
        "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # early epochs may have no metric
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "RAY_AIR_NEW_OUTPUT": "0",
    }


def _wait_for_runs(record: Record, host: str | None = None) -> None:
    """Wait until no run of the search is in anyone's hands (or only on `host`).

    After a stop they have the usual time to save; otherwise a run that the search no longer
    follows may still be computing its last result.
    """
    deadline: float | None = None
    runs = _runs(record, _signatures(record, thaw(record.options["sweep"])))
    while True:
        holders = [lock_holder(run.lock_file) for run in runs]
        if not any(h for h in holders if h is not None and host in (None, h["host"])):
            return
        if deadline is None and stop_requested():
            deadline = time.monotonic() + local.GRACE_S
        if deadline is not None and time.monotonic() > deadline:
            log.warning("runs are still held: %s", [h for h in holders if h])
            return
        time.sleep(POLL_S)


def _signatures(record: Record, sweep: Sweep) -> list[str]:
    """Return all runs of a search, also those of points that were proposed since it began."""
    proposed = [trial.signature for trial in sweep.trials]
    return list(dict.fromkeys([*record.options["sweep"]["known"], *proposed]))


def _runs(record: Record, signatures: list[str]) -> list[Run]:
    return [Run(Path(record.folder).parents[1] / signature) for signature in signatures]


# --- the driver ---


def search(record: Record, meeting: dict[str, Any]) -> None:
    """Hand the trials that are still to be done to Ray Tune and return when it has no more."""
    sweep = thaw(record.options["sweep"])
    signatures = _signatures(record, sweep)
    finished, due = _split(record, signatures)
    retell = isinstance(sweep.scheduler, HyperBand)
    if retell:  # it halves trials together, and so must meet all of them again
        due = [run for run in _runs(record, signatures) if run in finished or run in due]
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
        address=meeting["address"], log_to_driver=False, logging_level=logging.WARNING,
        **meeting["init"],
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
    side_by_side: int | None = meeting.get("side_by_side", record.options["side_by_side"])
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
                meeting["storage"] if retell or "temp" not in meeting else f"{meeting['temp']}/tune"
            ),
            callbacks=[_narrator()],
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )
    # afterwards Tune looks for the records that we have told it not to write
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
    tuner.fit()
    every = _runs(record, signatures)
    if isinstance(sweep.scheduler, Pbt) and all(run.is_complete() for run in every):
        for run in every:
            takeovers.forget_exports(run)


def _split(record: Record, signatures: list[str]) -> tuple[list[Run], list[Run]]:
    """Return the sweep's finished runs, and those to do, the furthest first.

    So the search meets first what it would have met first. A run that failed in an earlier attempt
    of this job waits for the next launch.
    """
    every = _runs(record, signatures)
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
    record_file, meeting_file = map(Path, arguments)
    try:
        search(read_record(record_file), read_json(meeting_file))
    except UserError as error:
        log.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    # by its full name: what Ray pickles must refer to this module, not be a copy of it
    from harness.cluster.ray import driver as ray_search

    sys.exit(ray_search.main(sys.argv[1:]))
