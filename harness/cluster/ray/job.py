"""One task of a Ray job: Ray on this node, and on the first one the search."""

import dataclasses
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

from harness.base.locks import held_lock, lock_holder
from harness.cluster import pages
from harness.cluster.local.background import worker_lock
from harness.cluster.local.slots import share_of
from harness.cluster.places import place_named
from harness.cluster.rank import say_plainly
from harness.cluster.rank_group import GRACE_S, POLL_S
from harness.cluster.ray import external, nodes
from harness.cluster.ray.nodes import Node, RayFailed, Rendezvous, Share
from harness.cluster.ray.shares import node_share, runs_of, signatures_of
from harness.cluster.records import Record, read_record
from harness.runs.stopping import request_stop, stop_requested
from harness.sweeps.frozen import thaw
from harness.sweeps.keys import Allocation, Resources

log = logging.getLogger(__name__)


def drive(record_file: str) -> None:
    """Be one task of the job: Ray on this node, and on the first one the search.

    When told to stop, every task ends its Ray, whereupon the runs on its node save; the first then
    requeues the job. Raises RayFailed, or SystemExit after a stop.
    """
    for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, request_stop)
    say_plainly()
    record = read_record(Path(record_file))
    place = place_named(record.cluster)
    task = place.task()
    rendezvous = Rendezvous(Path(record.folder), task.attempt)
    if task.number > 0:
        nodes.serve(rendezvous, _node_share(record))
        _wait_for_runs(record, host=socket.gethostname())
    else:
        with held_lock(worker_lock(record.file, 0)), _claimed_here(record, rendezvous):
            try:
                if not stop_requested():
                    peer = task.hosts[1] if record.options["nodes"] > 1 else None
                    _lead(record, rendezvous, peer)
            except RayFailed as error:
                if not stop_requested():
                    raise
                log.warning("while stopping: %s", error)  # the same signal ended Ray
            _wait_for_runs(record)
            if not stop_requested():
                pages.write_if_over(Path(record.folder).parents[1])
        if stop_requested():
            place.requeue()
    if stop_requested():
        # not a return: a result that submitit half wrote would break the next attempt's
        raise SystemExit(0)


def _node_share(record: Record) -> Share:
    frozen = record.options["sweep"]
    many = dataclasses.replace(
        Allocation(**frozen["ray"]), trials_per_node=record.options["trials_per_node"]
    )
    return node_share(Resources(**frozen["resources"]), many)


@contextmanager
def _claimed_here(record: Record, rendezvous: Rendezvous) -> Iterator[None]:
    """Claim the trials' GPUs and cores; Ray starts with those that are free.

    The driver finds in the rendezvous file how many trials then run side by side.
    """
    if record.options["pool"] is None:  # a scheduler has given them, or it is somebody else's Ray
        yield
        return
    slots: int = record.options["side_by_side"]
    together: int = record.options["sweep"]["ray"]["trials_per_gpu"]
    with share_of(record, lambda _: True, most=-(-slots // together)) as claim:
        if claim is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(claim.gpus)
            room = min(slots, claim.trials * together)
            if room < slots:
                log.warning("%d instead of %d trials at a time: other sweeps are running here",
                            room, slots)
            record.options["trials_per_node"] = room
            rendezvous.write(side_by_side=room)
        yield


def _lead(record: Record, rendezvous: Rendezvous, peer: str | None) -> None:
    """Keep Ray's head here and run the driver until it is done or a stop is asked for."""
    asked = record.options["sweep"]["ray"]
    host: AbstractContextManager[Node | external.UsersRay]
    if asked["address"] is not None:
        host = external.use(rendezvous, asked["address"])
    else:
        host = nodes.head(
            rendezvous, _node_share(record), peer=peer, dashboard=asked["dashboard"]
        )
    with host as node:
        driver = subprocess.Popen(
            [sys.executable, "-m", "harness.cluster.ray.driver", str(record.file),
             str(rendezvous.file)],
            env=_driver_environment(rendezvous, asked["address"]), start_new_session=True,
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


def _driver_environment(rendezvous: Rendezvous, address: str | None) -> dict[str, str]:
    own = nodes.environment(rendezvous) if address is None else external.environment()
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
    runs = runs_of(record, signatures_of(record, thaw(record.options["sweep"])))
    while True:
        holders = [lock_holder(run.lock_file) for run in runs]
        if not any(h for h in holders if h is not None and host in (None, h["host"])):
            return
        if deadline is None and stop_requested():
            deadline = time.monotonic() + GRACE_S
        if deadline is not None and time.monotonic() > deadline:
            log.warning("runs are still held: %s", [h for h in holders if h])
            return
        time.sleep(POLL_S)
