"""How many ranks the doctor starts, and on which GPUs."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from harness.base import machine
from harness.base.errors import UserError
from harness.cluster import rank_processes
from harness.cluster.doctor import checks, diagnosis
from harness.cluster.doctor.checks import Finding, RankReport
from harness.cluster.doctor.diagnosis import Diagnosis
from harness.cluster.slurm.site import Partition
from harness.sweeps.keys import Resources
from tests.gpu.emulator import emulated


def test_on_this_machine_there_is_one_rank_per_gpu_and_two_without_gpus(
    toy: ModuleType, tmp_path: Path, gpus: Callable[[int], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[dict[str, str]] = []

    class Process:
        def __init__(self, *_: Any, env: dict[str, str], **__: Any) -> None:
            started.append(env)

        def wait(self, _: float) -> None:
            pass

    def ranks(**resources: Any) -> tuple[int, str]:
        """Return how many ranks are started, and which GPUs they see."""
        started.clear()
        sweep = toy.make_sweep(tmp_path, {}, resources=resources)
        with monkeypatch.context() as patch:
            patch.setattr(rank_processes, "subprocess", SimpleNamespace(
                Popen=Process, DEVNULL=None, STDOUT=None
            ))
            diagnosis._diagnose_here(sweep, tmp_path)
        assert {env["WORLD_SIZE"] for env in started} == {str(len(started))}
        [seen] = {env["CUDA_VISIBLE_DEVICES"] for env in started}
        return len(started), seen

    gpus(0)
    assert ranks() == ranks(gpus=1) == (2, "")
    [only] = gpus(1)
    assert ranks() == ranks(gpus=1) == ranks(gpus=2) == ranks(tasks=2) == (1, only)
    assert ranks(gpus=0) == (2, "")
    first, second, third = gpus(3)
    assert ranks() == (3, f"{first},{second},{third}")
    assert ranks(gpus=2) == (2, f"{first},{second}")


def test_a_job_gets_the_gpus_that_an_option_of_sbatch_requests_and_no_more_ranks_than_gpus(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    submitted = SimpleNamespace(
        submit=lambda _, folder, cpus, gpus: given.append(gpus) or SimpleNamespace(job_id="7")
    )
    monkeypatch.setattr(diagnosis.script, "executor_for", lambda *_: submitted)
    monkeypatch.setattr(diagnosis, "_wait", lambda *_: None)
    monkeypatch.setattr(diagnosis.commands, "scancel", lambda _: None)
    monkeypatch.setattr(diagnosis.site, "partitions", lambda: [Partition("short", nodes=1)])
    ranks = []
    for number, keys in enumerate((
        {}, {"slurm": {"gres": "gpu:1"}}, {"resources": {"gpus": 2}}, {"slurm": {"qos": "high"}},
        {"slurm": {"gpus_per_task": "1"}, "resources": {"tasks": 3}},
    )):
        sweep = toy.make_sweep(tmp_path, {}, **keys)
        (tmp_path / str(number)).mkdir()
        [one] = diagnosis._diagnose_partitions(sweep, tmp_path / str(number), Console(quiet=True))
        ranks.append(one.tasks)
    assert given == [0, 1, 2, 0, 3]
    assert ranks == [2, 1, 2, 2, 3]  # never two on one GPU
    sweep = toy.make_sweep(tmp_path, {}, resources={"tasks": 2}, slurm={"gres": "gpu:1"})
    with pytest.raises(UserError, match=r"slurm\.gres: gpu:1 requests 1 GPUs on a node for 2 "):
        diagnosis._diagnose_partitions(sweep, tmp_path, Console(quiet=True))


def test_on_a_cluster_ranks_are_as_many_as_the_gpus_that_a_trial_asks_for() -> None:
    for asked, nodes, ranks in (
        (Resources(), 1, 2), (Resources(), 2, 1), (Resources(cpus=8), 1, 1),
        (Resources(gpus=1), 1, 1), (Resources(gpus=1), 2, 1), (Resources(gpus=4), 1, 4),
        (Resources(gpus=4), 2, 4), (Resources(gpus=4, tasks=1), 1, 1),
    ):
        assert diagnosis._tasks(asked, nodes, asked.gpus or 0) == ranks


def test_a_rank_without_gpus_says_whether_it_was_given_none_or_cannot_use_them(
    gpus: Callable[[int], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    report = RankReport(0, "node1")
    gpus(0)
    assert checks._gpus(0, report) == Finding("none asked")
    gpus(4)
    assert checks._gpus(0, report) == Finding("none asked, 4 here")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert checks._gpus(2, report) == Finding(
        "2 asked, this rank was given none of 4 here (CUDA_VISIBLE_DEVICES: )", fine=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(machine, "driver_cuda", lambda: (12, 2))
    with pytest.raises(UserError, match=r"=0, but torch cannot use a GPU: the driver is too old"):
        checks._gpus(2, report)


def test_gpus_of_a_rank_begin_with_the_one_that_it_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    with emulated(devices=3):
        facts = lambda n: SimpleNamespace(uuid=f"GPU-{n}", name="Fake")  # noqa: E731
        monkeypatch.setattr(torch.cuda, "get_device_properties", facts)
        report = RankReport(1, "node1")
        assert checks._gpus(3, report) == Finding("3 (Fake); 3 asked")
    assert report.gpus == ["GPU-1", "GPU-2", "GPU-0"]


def test_ranks_of_a_node_must_see_the_gpus_together_and_use_different_ones(tmp_path: Path) -> None:
    def findings(requested: int, *seen: list[str]) -> list[str]:
        for rank, own in enumerate(seen):
            report = RankReport(rank, f"node{rank // 2}", {"gpus": Finding("fine")}, gpus=own)
            report.write(tmp_path)
        found = diagnosis._reports(Diagnosis("main", 1, 2, tmp_path, requested), None)
        return [one.findings["gpus"].text for one in found]

    assert findings(2, ["a"], ["b"], ["c"], ["d"]) == ["fine"] * 4  # one each
    assert findings(2, ["a", "b"], ["b", "a"], ["c", "d"], ["d", "c"]) == ["fine"] * 4
    assert findings(1, ["a"], ["a"], ["a"], ["d"]) == [
        "also used by rank 1: a", "also used by rank 0: a", "fine", "fine"]  # two nodes
    assert findings(4, ["a"], ["b"], ["c", "d"], ["d", "c"]) == ["2; 4 asked"] * 4
    assert findings(2, [], ["b"], ["c"], ["d"]) == ["fine"] * 4  # the first says itself why
