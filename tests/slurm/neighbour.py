"""A second cluster beside the one of `cluster.py`: another controller, none of its nodes up."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import toy_experiment as toy

from harness.cluster.rank_processes import end_with_parent
from tests.commands import free_port


@contextmanager
def neighbour(cluster: Any, name: str, *, first_job: int) -> Iterator[Path]:
    """Run a cluster of that name, in which no job starts; yields its slurm.conf. It shares munge
    with the other cluster, and counts its jobs from `first_job`."""
    folder: Path = cluster.folder / name
    (folder / "state").mkdir(parents=True)
    changes = {
        "ClusterName": name, "FirstJobId": first_job, "SlurmctldPort": free_port(),
        "SlurmctldPidFile": folder / "pid", "SlurmctldLogFile": folder / "slurmctld.log",
        "StateSaveLocation": folder / "state", "NodeName": "far NodeAddr=192.0.2.1 State=DOWN",
        "AccountingStorageType": "accounting_storage/none",
    }
    kept = [line for line in cluster.conf.read_text().splitlines()
            if line.partition("=")[0] not in changes]
    conf = folder / "slurm.conf"
    conf.write_text("\n".join([*(f"{key}={value}" for key, value in changes.items()), *kept, ""]))
    environment = {**os.environ, "SLURM_CONF": str(conf)}

    def is_up() -> bool:
        ping = subprocess.run(["scontrol", "ping"], env=environment, capture_output=True)
        return b"is UP" in ping.stdout

    with (folder / "out").open("wb") as out:
        controller = subprocess.Popen(["slurmctld", "-D"], env=environment, stdout=out, stderr=out,
                                      preexec_fn=end_with_parent, cwd="/")
    try:
        toy.until(is_up, seconds=60)
        yield conf
    finally:
        controller.terminate()
        controller.wait()
        shutil.rmtree(folder)
