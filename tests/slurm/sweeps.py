"""What tests ask of a sweep of toys on SLURM."""

import os
import shlex
from pathlib import Path
from typing import NamedTuple

import toy_experiment as toy

from harness.cluster.known_places import all_places
from harness.cluster.records import read_records
from harness.cluster.slurm import commands
from harness.cluster.states import ALIVE, survey
from harness.sweeps.reading import Sweep


class Container(NamedTuple):
    """A stand-in for a container: another mount name space, and a note of each start."""

    wrap: list[str]
    record: Path

    def started(self) -> list[list[str]]:
        """Return the host and the words of each start, in order of hosts."""
        lines = self.record.read_text(encoding="utf-8").splitlines()
        return sorted(shlex.split(line) for line in lines)


def container(folder: Path) -> Container:
    record, script = folder / "starts.txt", folder / "enter"
    script.write_text(f'#!/bin/sh\necho "$(uname -n) $*" >> {shlex.quote(str(record))}\nshift\n'
                      'exec unshare --mount "$@"\n')
    script.chmod(0o755)
    return Container([str(script), "image of $SLURM_JOB_PARTITION.sif"], record)


def states(sweep: Sweep) -> list[str]:
    return [view.state for view in survey(sweep)]


def over(sweep: Sweep, *, patience_s: float = 180) -> None:
    """Wait until nothing of the sweep is on its way."""
    places = all_places(max_age_s=1.0)
    toy.until(
        lambda: not any(v.state in ALIVE for v in survey(sweep, places)), seconds=patience_s
    )


def until_running(sweep: Sweep, index: int) -> None:
    toy.until(lambda: sweep.trials[index].run.status()["state"] == "running")


def job_of(sweep: Sweep, index: int) -> str:
    return read_records(sweep.folder)[-1].jobs[sweep.trials[index].signature]


def mine(sweep: Sweep) -> dict[str, tuple[str, str, str]]:
    """Return the jobs of a sweep as `my_jobs` does: its trials, and those before and after."""
    tokens = {record.token for record in read_records(sweep.folder)}
    return {n: job for n, job in commands.my_jobs().items() if job[2].split(".")[-1] in tokens}


def assert_whole(sweep: Sweep, *, epochs: int, attempts: int) -> None:
    [trial] = sweep.trials
    assert [entry["epoch"] for entry in trial.run.metrics()] == list(range(1, epochs + 1))
    toy.until(lambda: trial.run.status()["state"] == "complete")  # a moment after its result
    assert trial.run.status()["attempts"] == attempts
    assert os.path.exists(trial.run.result_file)
