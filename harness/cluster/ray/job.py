"""One task of a Ray job: Ray on this node, and on the first one the search."""

import dataclasses
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
from harness.cluster import pages, rank_group
from harness.cluster.local import background, shares
from harness.cluster.rank import say_plainly
from harness.cluster.ray import guest as ray_guest
from harness.cluster.ray import nodes as ray_cluster
from harness.cluster.ray.driver import POLL_S, log
from harness.cluster.ray.nodes import Meeting, Node, RayFailed, Share
from harness.cluster.ray.shares import _runs, _share, _signatures
from harness.cluster.records import Record, read_record
from harness.cluster.slurm.job import requeue
from harness.runs.stopping import request_stop, stop_requested
from harness.sweeps.frozen import thaw
from harness.sweeps.keys import Allocation, Resources


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
        with held_lock(background.worker_lock(record.file, 0)), _claimed_here(record, meeting):
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
    runs = _runs(record, _signatures(record, thaw(record.options["sweep"])))
    while True:
        holders = [lock_holder(run.lock_file) for run in runs]
        if not any(h for h in holders if h is not None and host in (None, h["host"])):
            return
        if deadline is None and stop_requested():
            deadline = time.monotonic() + rank_group.GRACE_S
        if deadline is not None and time.monotonic() > deadline:
            log.warning("runs are still held: %s", [h for h in holders if h])
            return
        time.sleep(POLL_S)
