"""Ranks of a trial on several nodes of a real SLURM."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TOYS = Path(__file__).parents[1] / "toy"
sys.path.insert(0, str(TOYS))

import toy_experiment as toy  # noqa: E402

from harness.base.files import read_json  # noqa: E402
from harness.cluster.launch import launch  # noqa: E402
from harness.cluster.states import survey  # noqa: E402
from tests.slurm.sweeps import assert_whole, container, mine, over  # noqa: E402


@pytest.fixture(autouse=True)
def surroundings(slurm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs find the toy experiment by what the login node exports."""
    monkeypatch.setenv("PYTHONPATH", str(TOYS))


def test_two_nodes_with_two_ranks_each_in_a_container_agree_on_world_and_master(
    slurm: Any, tmp_path: Path
) -> None:
    image = container(tmp_path)
    resources = {"nodes": 2, "tasks": 2, "cpus": 1, "time": "5m"}
    sweep = toy.make_sweep(tmp_path, {}, resources=resources,
                           slurm={"env": {"TOY": "a b'c"}, "wrap": image.wrap})
    launch(sweep, "slurm")
    over(sweep)
    [trial] = sweep.trials
    files = [trial.run.folder / f"seen-{rank}.json" for rank in range(4)]
    seen = [read_json(file) for file in files]
    assert [s["LOCAL_RANK"] for s in seen] == ["0", "1", "0", "1"]
    assert [s["host"] for s in seen] == ["node1", "node1", "node2", "node2"]
    assert {(s["WORLD_SIZE"], s["MASTER_ADDR"], s["TOY"]) for s in seen} == {
        ("4", "node1", "a b'c")
    }
    assert len({s["SVLL_ATTEMPT"] for s in seen}) == 1
    assert {s["OMP_NUM_THREADS"] for s in seen} == {"1"}
    outside = {os.readlink(f"/proc/{slurm.pid_of(node)}/ns/mnt") for node in ("node1", "node2")}
    assert len({s["mounts"] for s in seen} - outside) == 4
    words = ["image", "of", "main.sif", sys.executable, "-u", "-m", "submitit.core._submit"]
    assert [line[:8] for line in image.started()] == [
        [host, *words] for host in ("node1", "node1", "node2", "node2")
    ]


def test_ranks_see_the_gpus_that_their_trial_requests_and_no_others(
    slurm: Any, tmp_path: Path
) -> None:
    cases: list[tuple[dict[str, Any], dict[str, str], list[str]]] = [
        ({"tasks": 2}, {"gpus_per_task": "1"}, ["0", "1"]), ({"tasks": 2}, {}, ["", ""]),
    ]
    sweeps = [
        toy.make_sweep(tmp_path / str(n), {}, resources={"time": "5m", **resources}, slurm=options)
        for n, (resources, options, _) in enumerate(cases)
    ]
    for sweep in sweeps:
        launch(sweep, "slurm")
    for sweep, (_, _, expected) in zip(sweeps, cases, strict=True):
        over(sweep)
        files = [sweep.trials[0].run.folder / f"seen-{rank}.json" for rank in range(2)]
        assert [read_json(file)["CUDA_VISIBLE_DEVICES"] for file in files] == expected


def test_a_trial_ends_soon_after_one_of_its_ranks_has_died_and_is_due_again(
    slurm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault_table: Callable[..., None]
) -> None:
    no_python = tmp_path / "python"
    no_python.write_text(
        f'#!/bin/sh\n[ $(hostname) = node1 ] && exec {sys.executable} "$@"\n'
        f"until ls {tmp_path}/mute/runs/toys/*/.ranks-*; do sleep 0.1; done\nexit 2\n"
    )
    no_python.chmod(0o755)
    recipe, resources = {"work": {"epochs": 60, "epoch_s": 1.0}}, {"nodes": 2, "time": "5m"}
    sweep = toy.make_sweep(tmp_path / "killed", {}, recipe=recipe, resources=resources)
    mute = toy.make_sweep(tmp_path / "mute", {}, recipe=recipe, resources=resources,
                          slurm={"python": str(no_python)})
    run = sweep.trials[0].run
    launch(mute, "slurm")
    for rank in (1, 0):
        lines = len(run.metrics())
        launch(sweep, "slurm")
        toy.until(lambda lines=lines: len(run.metrics()) > lines)
        os.kill(read_json(run.folder / f"seen-{rank}.json")["pid"], signal.SIGKILL)
        struck = time.time()
        toy.until(lambda: not mine(sweep), every=0.5)
        assert time.time() - struck < 15.0
        [view] = survey(sweep)
        assert (view.state, view.is_due) == ("failed", True)
        assert view.note.startswith(f"rank {rank}: its process on node{rank + 1} ended without a")
    [view] = survey(mute)
    assert not mine(mute)
    assert "ended by SIGTERM while it waited for 1 of 2 ranks at node1:" in view.note
    assert (view.state, view.is_due, view.status["time"] - view.status["started"] < 15.0) == (
        "failed", True, True
    )
    monkeypatch.setenv("TOY_WORK", '{"epoch_s": 0}')
    launch(sweep, "slurm")
    over(sweep)
    assert_whole(sweep, epochs=60, attempts=3)
    fault_table("kill -9 of one rank, two nodes", "at the next launch", "0 of 60", "equal")


MEET = """
import os, sys
from pathlib import Path
from harness.cluster.slurm.job import join_step
from harness.runs import peers
join_step()
with peers.together(Path(sys.argv[1])):
    peers.meet()
    print(sys.argv[2], *peers.own_place(), os.uname().nodename, os.environ["MASTER_ADDR"])
"""


def test_two_steps_of_one_allocation_meet_side_by_side(
    slurm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(TOYS.parents[1]))
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):  # other tests were ranks in this process
        monkeypatch.delenv(name, raising=False)
    program = tmp_path / "meet.py"
    program.write_text(MEET)
    python = f"{sys.executable} {program} {tmp_path}"
    steps = (f"srun --overlap --nodes=2 --ntasks=2 {python} a & "
             f"srun --overlap --nodes=1 --nodelist=node2 --ntasks=2 {python} b & wait")
    errors = tmp_path / "errors"
    output = slurm.run("salloc", "--nodes=2", "--ntasks-per-node=2", "bash", "-c",
                       f"exec 2> {errors}; {steps}", timeout=180)
    assert sorted(output.splitlines()) == [
        "a 0 2 node1 node1", "a 1 2 node2 node1", "b 0 2 node2 node2", "b 1 2 node2 node2"
    ], errors.read_text()
    assert not list(tmp_path.glob(".ranks-*"))
