"""One task of a Ray job: Ray on this node, and the search if it is the first."""

import dataclasses
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from harness.base.caches import keep_caches_here
from harness.base.locks import held_lock, lock_holder
from harness.cluster import pages
from harness.cluster.known_places import place_named
from harness.cluster.local import slots
from harness.cluster.local.place import worker_lock
from harness.cluster.place import Place
from harness.cluster.rank_processes import GRACE_S, PARENT, POLL_S, log_to_stderr, stop_on
from harness.cluster.ray import external, nodes
from harness.cluster.ray.nodes import Node, RayFailed, Rendezvous
from harness.cluster.ray.plan import allocation, ours, signatures_of
from harness.cluster.ray.search_notes import was_ended_early
from harness.cluster.records import Record, read_record
from harness.runs.run import Run
from harness.runs.stopping import stop_requested
from harness.sweeps.keys import Allocation, Resources
from harness.sweeps.sweep_json import thaw

log = logging.getLogger(__name__)

TUNE = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # our own log is in the run folder
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # early epochs may have no metric
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
}
"""Environment variables of the driver."""
RUNS_EVERY_S = 1.0
"""How often, in the end, a job that is over looks at the runs that have not ended."""


def drive(record_file: str) -> None:
    """Run one task of the job: Ray on this node, and the search if it is the first.

    On a stop request every task ends its Ray, so that the runs on its node save; the first task
    then requeues the job. Raises RayFailed, or SystemExit after a stop.
    """
    stop_on(signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
    log_to_stderr()
    keep_caches_here()  # Ray, its driver, actors and trials on this node inherit it
    record = read_record(Path(record_file))
    place = place_named(record.cluster)
    task = place.task()
    rendezvous = Rendezvous(Path(record.folder), task.attempt)
    if task.number > 0:
        nodes.serve(rendezvous, _allocation(record))
        _wait_for_runs(record, host=socket.gethostname())
    else:
        with held_lock(worker_lock(record.file, 0)), _claimed(record, rendezvous):
            try:
                if not stop_requested():
                    peer = task.hosts[1] if record.options["nodes"] > 1 else None
                    _run_search(record, rendezvous, peer)
            except RayFailed as error:
                if not stop_requested():
                    raise
                log.warning("while stopping: %s", error)  # the same signal ended Ray
            _wait_for_runs(record)
            if not stop_requested():
                pages.write_if_over(record.sweep_folder)
        if stop_requested():
            _requeue(record, place)
    if stop_requested():
        # no return: a result that submitit wrote in part would break the next attempt's
        raise SystemExit(0)


def _requeue(record: Record, place: Place) -> None:
    """Requeue this job. After too many time-outs its open trials get the reason as their status.

    The job's folder counts them, so that a new launch, which has another, counts anew.
    """
    own = Run(Path(record.folder))
    signatures = signatures_of(record, thaw(record.options["sweep"]))
    runs = record.runs(ours(record, signatures))
    place.requeue(own, runs)
    reason = own.status().get("reason")
    if reason is None:
        return
    for run in runs:
        status = run.status()
        is_open = status["state"] in ("submitted", "running", "stopped")
        is_over = run.is_complete() or was_ended_early(run)
        if is_open and not is_over and lock_holder(run.lock_file) is None:
            facts = {key: value for key, value in status.items() if key not in ("state", "time")}
            run.set_status("stopped", **{**facts, "reason": f"the search {reason}"})


def _allocation(record: Record) -> Resources:
    frozen = record.options["sweep"]
    many = dataclasses.replace(Allocation(**frozen["ray"]),
                               trials_per_node=record.options["trials_per_node"])
    return allocation(Resources(**frozen["resources"]), many)


@contextmanager
def _claimed(record: Record, rendezvous: Rendezvous) -> Iterator[None]:
    """Claim the trials' GPUs and cores on this machine; Ray starts with those that are free. Writes
    to the rendezvous file, for the driver, how many trials can then run at the same time."""
    if record.options["pool"] is None:  # a scheduler has assigned them, or Ray is external
        yield
        return
    most: int = record.options["side_by_side"]
    together: int = record.options["sweep"]["ray"]["trials_per_gpu"]
    with slots.claimed(record, lambda: True, most=-(-most // together)) as claim:
        if claim is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(claim.gpus)
            room = min(most, claim.trials * together)
            if room < most:
                log.warning("%d instead of %d trials at a time: other sweeps are running here",
                            room, most)
            record.options["trials_per_node"] = room
            rendezvous.write(side_by_side=room)
        yield


def _run_search(record: Record, rendezvous: Rendezvous, peer: str | None) -> None:
    """Run Ray's head and the driver here until the driver ends or a stop is requested."""
    address, dashboard = (record.options["sweep"]["ray"][key] for key in ("address", "dashboard"))
    host: AbstractContextManager[Node | None]
    if address is not None:
        host = external.use(rendezvous, address)
        own = external.environment()
    else:
        host = nodes.head(rendezvous, _allocation(record), peer=peer, dashboard=dashboard)
        own = nodes.environment(rendezvous)
    with host as node:
        driver = subprocess.Popen(
            [sys.executable, "-m", "harness.cluster.ray.driver", str(record.file),
             str(rendezvous.file)],
            env={**own, **TUNE, PARENT: str(os.getpid())}, start_new_session=True,
            stdin=subprocess.DEVNULL,
        )
        try:
            while driver.poll() is None and not stop_requested():
                if node is not None:  # the driver ends when an external Ray does
                    node.check()
                time.sleep(POLL_S)
        finally:
            driver.kill()
            code = driver.wait()
        if code != 0 and not stop_requested():
            raise RayFailed(f"the search ended with exit status {code}; see its messages above")


def _wait_for_runs(record: Record, host: str | None = None) -> None:
    """Wait until no process (on `host`) holds a run of the search; after a stop, for GRACE_S. A run
    that the search no longer watches may still be computing its last result."""
    def holders(of: Iterable[Run]) -> dict[Run, dict[str, Any]]:
        found = {run: lock_holder(run.lock_file) for run in of}
        return {run: h for run, h in found.items() if h is not None and host in (None, h["host"])}

    runs = record.runs(signatures_of(record, thaw(record.options["sweep"])))
    deadline: float | None = None
    pauses = slots.pauses(RUNS_EVERY_S)
    held = holders(runs)
    while held:
        if deadline is None and stop_requested():
            deadline = time.monotonic() + GRACE_S
        if deadline is not None and time.monotonic() > deadline:
            log.warning("runs are still held: %s", [*held.values()])
            return
        time.sleep(next(pauses))
        held = holders(held) or holders(runs)  # of the others, one may just have begun
