"""What tests ask of a sweep of toys on SLURM."""

import os

import toy_experiment as toy

from harness.cluster.known_places import all_places
from harness.cluster.records import read_records
from harness.cluster.slurm import commands
from harness.cluster.states import ALIVE, survey
from harness.sweeps.reading import Sweep


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
