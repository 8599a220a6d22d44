"""Sweeps under Ray Tune in one allocation of a real SLURM."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

TOYS = Path(__file__).parents[1] / "toy"
sys.path.insert(0, str(TOYS))

import toy_experiment as toy  # noqa: E402

from harness.base.files import read_json  # noqa: E402
from harness.base.locks import lock_holder  # noqa: E402
from harness.cluster.launch import cancel, due, launch  # noqa: E402
from harness.cluster.local.place import worker_lock  # noqa: E402
from harness.cluster.records import read_records  # noqa: E402
from harness.cluster.slurm import commands  # noqa: E402
from harness.cluster.slurm.job import SIGNAL_DELAY_S  # noqa: E402
from harness.cluster.states import is_searched, survey  # noqa: E402
from harness.runs.run import epoch_lines  # noqa: E402
from harness.sweeps.reading import Sweep, with_proposed  # noqa: E402
from tests.slurm.sweeps import container  # noqa: E402

PATIENCE_S = 300
"""Ray takes 10 s to start on two idle cores, minutes on busy ones."""
TWO_NODES = {"nodes": 2, "trials_per_node": 2}
MEMORY = {"time": "10m", "memory": "1500MB"}


@pytest.fixture(autouse=True)
def surroundings(slurm: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Jobs find the toy experiment by what the login node exports; none outlives its test."""
    monkeypatch.setenv("PYTHONPATH", str(TOYS))
    yield
    slurm.run("scancel", "--quiet", "--user=root")


def test_a_search_over_two_nodes_cancelled_and_continued_gives_what_the_array_backend_gives(
    slurm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = {"work.quality": {"grid": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]}}
    recipe = {"work": {"epochs": 20, "epoch_s": 0.5}}
    by_ray = toy.make_sweep(
        tmp_path / "ray", search, recipe=recipe, backend="ray", ray=TWO_NODES, resources=MEMORY
    )
    by_array = toy.make_sweep(tmp_path / "array", search, recipe=recipe)
    launch(by_array, "local", jobs=6)
    over(by_array)
    assert len(launch(by_ray, "slurm")) == 6
    toy.until(lambda: progressed(by_ray) == 4, seconds=PATIENCE_S)
    assert {t.run.status().get("host") for t in by_ray.trials} >= {"node1", "node2"}
    assert len(processes_of(read_records(by_ray.folder)[0].folder)) >= 10
    cancel(by_ray)
    assert states(by_ray).count("stopped") >= 4
    assert_clean(by_ray)

    monkeypatch.setenv("TOY_WORK", '{"epoch_s": 0}')  # the rest need not take its time
    launch(by_ray, "slurm")
    over(by_ray)
    assert states(by_ray) == ["complete"] * 6
    for one, other in zip(by_array.trials, by_ray.trials, strict=True):
        assert one.run.signature == other.run.signature
        assert one.run.result() == other.run.result()
        assert one.run.metrics() == other.run.metrics()
    record = read_records(by_ray.folder)[-1]
    assert {t.run.status()["job"] for t in by_ray.trials} == set(record.jobs.values())
    assert launch(by_ray, "slurm") == []
    assert_clean(by_ray)


def test_points_are_proposed_and_their_trials_run_over_both_nodes_unless_a_rank_is_killed(
    slurm: Any, tmp_path: Path
) -> None:
    image = container(tmp_path)
    sweep = toy.make_sweep(
        tmp_path, {"work.quality": {"uniform": [0.1, 0.9]}}, samples=4, seeds=[1],
        search_seed=4,  # of which the third point is worse than the second
        recipe={"work": {"epochs": 4, "epoch_s": 0.5}}, backend="ray",
        algorithm={"tpe": {"startup": 2}},
        scheduler={"asha": {"grace": 1, "reduction": 2}},
        resources={"nodes": 2, **MEMORY}, ray={"nodes": 2}, slurm={"wrap": image.wrap},
    )
    assert launch(sweep, "slurm") == []
    assert is_searched(sweep)
    toy.until(lambda: list(sweep.folder.glob("*/seen-1.json")), seconds=PATIENCE_S)
    [file] = sweep.folder.glob("*/seen-1.json")
    os.kill(read_json(file)["pid"], signal.SIGKILL)  # on the second node
    killed = time.time()
    toy.until(lambda: not is_searched(sweep), seconds=PATIENCE_S)
    sweep = with_proposed(sweep)
    assert (len(sweep.trials), sweep.to_propose) == (4, 0)
    assert states(sweep)[0] == "failed"
    assert survey(sweep)[0].note == "rank 1: killed by SIGKILL (out of memory?)"
    assert sweep.trials[0].run.status()["time"] - killed < 15.0
    assert set(states(sweep)[1:]) == {"complete", "ended early"}
    outside = {os.readlink(f"/proc/{slurm.pid_of(node)}/ns/mnt") for node in ("node1", "node2")}
    for trial in sweep.trials:
        seen = [read_json(trial.run.folder / f"seen-{rank}.json") for rank in range(2)]
        assert {one["host"] for one in seen} == {"node1", "node2"}
        assert all(Path(one["file"]).is_relative_to(sweep.folder / "code") for one in seen)
        assert not {one["mounts"] for one in seen} & outside
        assert [(one["RANK"], one["LOCAL_RANK"], one["WORLD_SIZE"]) for one in seen] == [
            ("0", "0", "2"), ("1", "0", "2")
        ]
        assert len({(one["MASTER_ADDR"], one["SVLL_ATTEMPT"]) for one in seen}) == 1
    assert [view.trial.index for view in due(survey(sweep))] == [0]
    assert_clean(sweep)


def test_a_preempted_search_saves_on_all_nodes_and_resumes_by_itself(
    slurm: Any, tmp_path: Path
) -> None:
    sweep = toy.make_sweep(
        tmp_path, {"work.quality": {"grid": [0.1, 0.2, 0.3, 0.4, 0.5]}},
        recipe={"work": {"epochs": 40, "epoch_s": 0.5}}, backend="ray", ray=TWO_NODES,
        resources=MEMORY,
    )
    launch(sweep, "slurm")
    toy.until(lambda: progressed(sweep) == 4, seconds=PATIENCE_S)
    slurm.run("srun", "-p", "urgent", "-N2", "--exclusive", "hostname", timeout=120)
    over(sweep)
    assert states(sweep) == ["complete"] * 5
    for trial in sweep.trials:
        assert [line["epoch"] for line in epoch_lines(trial.run)] == list(range(1, 41))
    assert [t.run.status()["attempts"] for t in sweep.trials] == [2, 2, 2, 2, 1]
    assert len(read_records(sweep.folder)) == 1
    assert read_json(sweep.trials[0].run.folder / "seen-0.json")["SLURM_RESTART_COUNT"] == "1"
    assert_clean(sweep)


def test_a_search_that_reached_its_time_limit_too_often_is_not_requeued_and_its_trials_tell(
    slurm: Any, tmp_path: Path
) -> None:
    sweep = toy.make_sweep(
        tmp_path, {"work.quality": {"grid": [0.1, 0.2]}}, backend="ray",
        # any signal in the last hour of its ten minutes counts as that of the limit
        resources={**MEMORY, "max_time_outs": 0}, slurm={"env": {SIGNAL_DELAY_S: "3600"}},
    )
    launch(sweep, "slurm")
    [record] = read_records(sweep.folder)
    toy.until(lambda: lock_holder(worker_lock(record.file, 0)), seconds=PATIENCE_S)
    saved = sweep.trials[0].run  # the others have not begun
    saved.set_status("stopped", attempts=1, reason="told to stop")
    slurm.run("scancel", "--signal=USR2", *record.jobs.values())
    over(sweep)
    why = ("the search reached its time limit 1 time, allowed are 0 (resources.max_time_outs); "
           "give it more time (resources.time), or launch it again")
    assert [(view.state, view.note) for view in survey(sweep)] == [("stopped", why)] * 2
    assert [trial.run.status()["attempts"] for trial in sweep.trials] == [1, 0]
    assert len(due(survey(sweep))) == 2
    assert_clean(sweep)


def states(sweep: Sweep) -> list[str]:
    return [view.state for view in survey(sweep)]


def progressed(sweep: Sweep) -> int:
    return sum(len(epoch_lines(trial.run)) >= 2 for trial in sweep.trials)


def over(sweep: Sweep) -> None:
    """Wait until the sweep's jobs have left the queue, and not only its trials."""
    toy.until(lambda: not {"queued", "running"} & set(states(sweep)), seconds=PATIENCE_S)
    jobs = {job for record in read_records(sweep.folder) for job in record.jobs.values()}
    toy.until(lambda: not jobs & set(commands.my_jobs()), seconds=PATIENCE_S)


def assert_clean(sweep: Sweep) -> None:
    """Nothing of Ray is left on any node, nor a token. The nodes share this machine's processes."""
    for record in read_records(sweep.folder):
        toy.until(lambda record=record: not processes_of(record.folder))
        assert not list(Path(record.folder).glob("*.token"))
        for file in Path(record.folder).glob("ray-*-*.json"):
            assert not Path(read_json(file)["temp"]).exists()


def processes_of(job_folder: str) -> list[str]:
    """Return the processes that know the job's token: all of Ray, its workers and trials."""
    found = []
    for file in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if f"RAY_AUTH_TOKEN_PATH={job_folder}/".encode() in file.read_bytes():
                found.append(file.parent.name)
    return found
