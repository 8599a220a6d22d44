"""The GPUs and cores that a trial gets on this machine, and the messages about them."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.base import machine
from harness.base.errors import UserError
from harness.cluster.local import slots
from harness.cluster.local.claims import Pool
from harness.cluster.local.slots import plan, pool_for, slots_for, waits_for, with_gpus
from harness.cluster.records import Record
from harness.sweeps.keys import Resources


@pytest.fixture(autouse=True)
def eight_free_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(slots, "usable_cores", lambda: list(range(8)))
    monkeypatch.setenv("SVLL_CLAIMS", str(tmp_path))  # not those of workers that are just ending


def test_slots_follow_cores_gpus_and_the_users_number(gpus: Callable[[int], list[str]]) -> None:
    gpus(0)
    assert slots_for(Resources(cpus=2), None) == 4
    assert slots_for(Resources(cpus=2, tasks=2), None) == 2
    assert slots_for(Resources(cpus=16), None) == 1
    assert slots_for(Resources(cpus=2), 1) == 1
    gpus(3)
    assert slots_for(Resources(cpus=2), None) == 3
    assert slots_for(Resources(cpus=2, gpus=1), 5) == 3
    assert slots_for(Resources(cpus=2, gpus=2), None) == 1
    assert slots_for(Resources(cpus=2, gpus=0), None) == 4
    assert slots_for(Resources(gpus=1), None, 2) == 6
    with pytest.raises(UserError, match="a trial wants 4, this machine has 3"):
        slots_for(Resources(gpus=2, nodes=2), None)


def test_a_sweep_that_leaves_gpus_open_gets_one_for_each_rank_or_none(
    gpus: Callable[[int], list[str]]
) -> None:
    gpus(0)
    assert with_gpus(Resources()).gpus == 0
    names = gpus(2)
    assert with_gpus(Resources()).gpus == 1
    assert with_gpus(Resources(tasks=2)).gpus == 2
    assert with_gpus(Resources(nodes=2)).gpus == 1
    assert with_gpus(Resources(tasks=3)).gpus == 0
    assert with_gpus(Resources(gpus=0)).gpus == 0
    assert Resources().ranks == with_gpus(Resources()).ranks == 1
    assert pool_for(Resources(), 2).gpus == names


def test_gpus_that_torch_cannot_use_are_refused_or_left_alone_where_none_were_asked_for(
    gpus: Callable[[int], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(2)
    monkeypatch.setattr(machine, "torch_cuda", lambda: (13, 0))
    monkeypatch.setattr(machine, "driver_cuda", lambda: (12, 2))
    assert with_gpus(Resources()).gpus == 0
    assert plan(Resources(), 9, None).startswith(
        "8 at a time, on the CPU; torch cannot use 2 GPUs: the driver is too old for torch: update")
    with pytest.raises(UserError, match=r"resources\.gpus: torch cannot use this machine's GPUs: "
                                        r"the driver is too old .* up to CUDA 12\.2\); resources"):
        slots_for(Resources(gpus=1), None)
    assert plan(Resources(gpus=0), 9, None) == (
        "8 at a time, on the CPU; 2 GPUs not used (resources.gpus=N gives each trial N)")


def test_ranks_that_would_share_a_gpu_are_refused_as_nccl_would_refuse_them() -> None:
    [(key, message)] = Resources(tasks=2, gpus=1).faults()
    assert (key, message) == (
        "tasks", "2 ranks need a GPU each, found gpus: 1; set gpus: 2, or gpus: 0"
    )
    for tasks, gpus in ((2, 2), (2, 0), (2, None), (None, 2), (1, 2)):
        assert not list(Resources(tasks=tasks, gpus=gpus).faults())


def test_trials_claim_their_cores_and_no_more_than_there_are(
    gpus: Callable[[int], list[str]]
) -> None:
    gpus(0)
    assert pool_for(Resources(cpus=2, tasks=2), 2).cores_each == 4
    assert pool_for(Resources(cpus=16), 1).cores_each == 8
    assert pool_for(Resources(cpus=2), 8).cores_each == 1  # --jobs 8
    assert pool_for(Resources(), 20).cores_each == 0
    assert pool_for(Resources(gpus=0), 4, 2).cores_each == 2


def test_the_plan_names_gpus_that_are_used_and_those_that_are_not(
    gpus: Callable[[int], list[str]]
) -> None:
    gpus(0)
    assert plan(Resources(), 9, None) == "8 at a time"
    gpus(4)
    assert plan(Resources(), 9, None) == "4 at a time, each on 1 of 4 GPUs"
    assert plan(Resources(), 9, 1) == (
        "1 at a time, each on 1 of 4 GPUs; 3 GPUs not used (resources.gpus=N gives each trial N)"
    )
    assert "4 at a time, each on 1 of 4 GPUs; 2 GPUs not used" in plan(Resources(), 2, None)
    assert "on the CPU; 4 GPUs not used" in plan(Resources(gpus=0), 9, None)
    pool = pool_for(Resources(), 4)
    claims = [pool.take(f"other (process {n})") for n in range(3)]
    assert plan(Resources(), 9, None).endswith(
        "; room for 1 now, in use by other (process 0), other (process 1), other (process 2)"
    )
    for claim in claims:
        assert claim is not None
        claim.release()


def test_a_sweep_waits_for_others_of_its_name_and_not_for_its_own_workers(tmp_path: Path) -> None:
    pool = Pool(["GPU-a"], 1, [], 0)
    folder = tmp_path / "same" / "jobs" / "token"
    options = {"pool": dataclasses.asdict(pool)}
    record = Record("token", "local", 0.0, [], options=options, folder=str(folder))
    claim = pool.take("same (process 7 on here)")
    assert claim is not None
    for host, expected in (("here", ""), ("elsewhere", "waits for same (process 7 on here)")):
        assert waits_for(record, [{"pid": 7, "host": host}]) == expected
    claim.release()
    assert waits_for(record, []) == ""
