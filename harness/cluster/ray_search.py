"""`backend: ray`: one job in which Ray Tune schedules the trials of a sweep.

The job's tasks, one per node, start Ray (`ray_cluster`); the first also starts the driver, a
process of its own that hands the trials to Tune and can be ended at any moment, because nothing is
kept in it: what is true of a trial is in its run folder. Tune gets numbers and gives decisions; the
trials are the same runs as in backend `array`, with the same signatures and folders.
"""

import dataclasses
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from harness.cluster import local, ray_cluster, slurm
from harness.cluster.jobs import end_with_parent, requeue, say_plainly
from harness.cluster.ray_cluster import Meeting, RayFailed, Share
from harness.cluster.ray_trial import (
    WatchedRun,
    end_early,
    epoch_lines,
    flatten,
    was_ended_early,
)
from harness.cluster.records import Cluster, Record, new_record, read_record
from harness.errors import UserError
from harness.files import read_json
from harness.runs import Run, held_lock, lock_holder
from harness.stopping import request_stop, stop_requested
from harness.sweeps import Resources, Sweep, Trial, expand
from harness.units import gigabytes

log = logging.getLogger(__name__)

POLL_S = 0.2
NODES_LIMIT_S = 120.0
"""How long the driver waits for all nodes before it begins with those that are there."""
NO_END = 10**9
"""ASHA's last rung: how long a trial trains is its own affair."""


# --- the launcher's side ---


def check(sweep: Sweep) -> None:
    """Raise UserError for what this backend cannot do."""
    faults = []
    if sweep.resources.ranks > 1:
        faults.append(
            f"{sweep.file}: resources: backend ray runs trials of one rank, this asks for "
            f"{sweep.resources.ranks}; use backend: array, or nodes, tasks and gpus of 1"
        )
    if sweep.scheduler.kind == "asha" and not sweep.metric.startswith("validation."):
        faults.append(
            f"{sweep.file}: scheduler: asha compares trials while they train, but {sweep.metric} "
            "is computed after the last epoch; use validation.mAP, or scheduler: none"
        )
    if faults:
        raise UserError("\n".join(faults))


def allocation(sweep: Sweep) -> Sweep:
    """Return the sweep with the resources of the whole job in place of one trial's."""
    one, count = sweep.resources, sweep.ray.trials_per_node
    memory = None
    if one.memory is not None:
        memory = f"{round(gigabytes(one.memory) * count * 1024)}MB"
    whole = Resources(
        nodes=sweep.ray.nodes, tasks=1, cpus=one.cpus * count, gpus=one.gpus * count,
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
    slots = local.slots_for(sweep.resources, jobs) if cluster == "local" else None
    record = new_record(
        sweep.folder, cluster, [trial.signature for trial in trials],
        backend="ray", workers=1, nodes=sweep.ray.nodes if cluster == "slurm" else 1,
        trials_per_node=slots or sweep.ray.trials_per_node,
        cpus=sweep.resources.cpus, gpus=sweep.resources.gpus,
        metric=sweep.metric, mode=sweep.mode, scheduler=dataclasses.asdict(sweep.scheduler),
        sweep=[trial.signature for trial in expand(sweep)], code=str(sweep.code or ""),
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
    record.jobs = dict.fromkeys(record.trials, job.job_id)
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
    options = record.options
    share = Share(
        cpus=options["cpus"] * options["trials_per_node"],
        gpus=options["gpus"] * options["trials_per_node"],
    )
    task = int(os.environ.get("SLURM_PROCID", "0")) if record.cluster == "slurm" else 0
    if task > 0:
        ray_cluster.serve(meeting, share)
        _wait_for_runs(record, host=socket.gethostname())
    else:
        with held_lock(local.worker_lock(record.file, 0)):
            try:
                _lead(record, meeting, share)
            except RayFailed as error:
                if not stop_requested():
                    raise
                log.warning("while stopping: %s", error)  # the same signal ended Ray
            _wait_for_runs(record)
        if stop_requested() and record.cluster == "slurm":
            requeue()
    if stop_requested():
        # not a return: a result that submitit half wrote would break the next attempt's
        raise SystemExit(0)


def _attempt(record: Record) -> str:
    """Name this attempt: a job that was put back into the queue keeps its id."""
    if record.cluster == "local":
        return "local"
    return f"{os.environ['SLURM_JOB_ID']}-{os.environ.get('SLURM_RESTART_COUNT', '0')}"


def _lead(record: Record, meeting: Meeting, share: Share) -> None:
    """Keep Ray's head here and run the driver until it is done or a stop is asked for."""
    with ray_cluster.head(meeting, share, peer=_second_host(record)) as node:
        driver = subprocess.Popen(
            [sys.executable, "-m", "harness.cluster.ray_search", str(record.file),
             str(meeting.file)],
            env=_driver_environment(meeting), start_new_session=True, stdin=subprocess.DEVNULL,
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


def _driver_environment(meeting: Meeting) -> dict[str, str]:
    return {
        **ray_cluster.environment(meeting),
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # our own log is in the run folder
        "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # stage 1 has no validation metric
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "RAY_AIR_NEW_OUTPUT": "0",
    }


def _wait_for_runs(record: Record, host: str | None = None) -> None:
    """Wait until no run of the search is in anyone's hands (or only on `host`).

    After a stop they have the usual time to save; otherwise a run that the search no longer
    follows may still be computing its last result.
    """
    deadline: float | None = None
    while True:
        holders = [lock_holder(run.lock_file) for run in _runs(record, record.trials)]
        if not any(h for h in holders if h is not None and host in (None, h["host"])):
            return
        if deadline is None and stop_requested():
            deadline = time.monotonic() + local.GRACE_S
        if deadline is not None and time.monotonic() > deadline:
            log.warning("runs are still held: %s", [h for h in holders if h])
            return
        time.sleep(POLL_S)


def _runs(record: Record, signatures: list[str]) -> list[Run]:
    return [Run(Path(record.folder).parents[1] / signature) for signature in signatures]


# --- the driver ---


def search(record: Record, meeting: dict[str, Any]) -> None:
    """Hand the trials that are still to be done to Ray Tune and return when it has no more."""
    finished, due = _split(record)
    log.info("%d trials are finished, %d are to be run", len(finished), len(due))
    if not due:
        return
    import ray
    from ray import tune

    ray.init(
        address=meeting["address"], _node_ip_address=meeting["ip"], log_to_driver=False,
        logging_level=logging.WARNING,
    )
    _wait_for_nodes(record.options["nodes"])
    options = record.options
    scheduler = _scheduler(options)
    for run in finished:
        _tell(scheduler, run)
    shared = {"cwd": os.getcwd(), "logs": record.folder, "cpus": options["cpus"],
              "gpus": options["gpus"]}
    tuner = tune.Tuner(
        tune.with_resources(_trainable(), {"cpu": options["cpus"], "gpu": options["gpus"]}),
        param_space={"run": tune.grid_search([str(run.folder) for run in due]), **shared},
        tune_config=tune.TuneConfig(
            scheduler=scheduler, trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
            # an actor costs seconds of importing; it only watches, so the next trial may have it
            reuse_actors=True,
        ),
        # Tune's own records are of no use to us and go with Ray's folder
        run_config=tune.RunConfig(
            name="search", storage_path=f"{meeting['temp']}/tune", verbose=0,
            callbacks=[_narrator()],
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )
    # afterwards Tune looks for the records that we have told it not to write
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
    tuner.fit()


def _split(record: Record) -> tuple[list[Run], list[Run]]:
    """Return the sweep's finished runs, and those to do, the furthest first.

    So the search meets first what it would have met first. A run that failed in an earlier attempt
    of this job waits for the next launch.
    """
    finished = [
        run for run in _runs(record, record.options["sweep"])
        if run.is_complete() or was_ended_early(run)
    ]
    due = [
        run for run in _runs(record, record.trials)
        if run not in finished and run.status()["state"] != "failed"
    ]
    return finished, sorted(due, key=lambda run: -len(epoch_lines(run)))


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


def _scheduler(options: dict[str, Any]) -> Any:
    """Return Tune's scheduler. Its time is our `epoch`: Tune's own count restarts with a trial."""
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

    if options["scheduler"]["kind"] == "none":
        return FIFOScheduler()

    class Asha(ASHAScheduler):
        def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
            decision = str(super().on_trial_result(controller, trial, result))
            if decision == self.STOP and controller is not None:
                log.info("%s: ended at epoch %s", trial, result["epoch"])
                end_early(Run(Path(trial.config["run"])), by="ASHA", epoch=result["epoch"])
            return decision

    return Asha(
        time_attr="epoch", max_t=NO_END, grace_period=options["scheduler"]["grace"],
        reduction_factor=options["scheduler"]["reduction"],
        metric=options["metric"], mode=options["mode"],
    )


def _tell(scheduler: Any, run: Run) -> None:
    """Show a scheduler the epochs of a run that Tune will not start, as if it just had run."""
    stand_in = SimpleNamespace(trial_id=run.signature)
    scheduler.on_trial_add(None, stand_in)
    for line in epoch_lines(run):
        scheduler.on_trial_result(None, stand_in, flatten(line))


def _trial_name(trial: Any) -> str:
    return Path(trial.config["run"]).name


def _trainable() -> type:
    """Return the class that Ray makes an actor of, one per trial."""
    from ray import tune

    class RayTrial(tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            os.chdir(config["cwd"])
            run = Run(Path(config["run"]))
            self.watched = WatchedRun(
                run, log_file=Path(config["logs"]) / f"{run.signature}.0.log",
                cpus=config["cpus"], gpus=config["gpus"],
            )

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.cleanup()
            self.setup(new_config)
            return True

        def step(self) -> dict[str, Any]:
            return self.watched.next_result()

        def cleanup(self) -> None:
            self.watched.end()

    return RayTrial


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
    search(read_record(record_file), read_json(meeting_file))
    return 0


if __name__ == "__main__":
    # by its full name: what Ray pickles must refer to this module, not be a copy of it
    from harness.cluster import ray_search

    sys.exit(ray_search.main(sys.argv[1:]))
