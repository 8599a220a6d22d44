"""How many ranks the doctor starts, and on which GPUs."""

import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from harness.cluster import rank_processes
from harness.cluster.doctor import checks, diagnosis
from harness.cluster.doctor.diagnosis import Diagnosis
from harness.sweeps.keys import Resources


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


def test_a_job_sees_the_gpus_that_an_option_of_sbatch_asks_for(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    submitted = SimpleNamespace(
        submit=lambda _, folder, cpus, gpus: given.append(gpus) or SimpleNamespace(job_id="7")
    )
    monkeypatch.setattr(diagnosis.script, "executor_for", lambda *_: submitted)
    for number, keys in enumerate((
        {}, {"slurm": {"gres": "gpu:1"}}, {"resources": {"gpus": 2}}, {"slurm": {"qos": "high"}},
    )):
        sweep = toy.make_sweep(tmp_path, {}, **keys)
        diagnosis._submit(sweep, Diagnosis("short", 1, 1, tmp_path / str(number)))
    assert given == [0, None, 2, 0]

    monkeypatch.setattr(checks, "run_checks", lambda *_, **__: None)
    monkeypatch.setattr(checks, "set_slurm_ranks", lambda: None)
    for gpus, seen in ((None, "1"), (2, "1"), (0, "")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
        checks.check_job(str(tmp_path), 1, gpus)
        assert os.environ["CUDA_VISIBLE_DEVICES"] == seen
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not checks._gpus(None).fine
    assert checks._gpus(None).text == "0; some asked"


def test_on_a_cluster_ranks_are_as_many_as_the_gpus_that_a_trial_asks_for() -> None:
    for asked, nodes, ranks in (
        (Resources(), 1, 2), (Resources(), 2, 1), (Resources(cpus=8), 1, 1),
        (Resources(gpus=1), 1, 1), (Resources(gpus=1), 2, 1), (Resources(gpus=4), 1, 4),
        (Resources(gpus=4), 2, 4), (Resources(gpus=4, tasks=1), 1, 1),
    ):
        assert diagnosis._tasks(asked, nodes) == ranks
