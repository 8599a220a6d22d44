"""On a real GPU: what the emulator refuses is refused there, and a run comes near the CPU's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.gpu.emulator import Emulator
from tests.gpu.runs import carry_out

pytestmark = pytest.mark.gpu


def allowed() -> list[str]:
    """Return which calls of a list a GPU takes; the emulator is to take the same."""
    here, there = torch.arange(4.0), torch.arange(4.0, device="cuda")
    calls: dict[str, Callable[[], Any]] = {
        "add": lambda: here + there, "number": lambda: there * torch.tensor(2.0),
        "where": lambda: torch.where(here > 1, there, there),
        "stack": lambda: torch.stack([there[0], here[0]]),
        "fill": lambda: there.masked_fill(here > 1, 0.0),
        "gather": lambda: there.gather(0, torch.tensor([1])),
        "index": lambda: there[torch.tensor([1])], "index of the GPU": lambda: here[there.long()],
        "numpy": there.numpy, "pin": there.pin_memory, "ordinal": lambda: here.to("cuda:99"),
        "generator": lambda: torch.rand(2, generator=torch.Generator(), device="cuda"),
        "late": lambda: there.to("cpu", non_blocking=True), "copy": lambda: here.copy_(there),
    }
    found = []
    for name, call in calls.items():
        try:
            call()
        except (RuntimeError, TypeError):
            continue
        found.append(name)
    return found


def test_a_gpu_takes_and_refuses_what_the_emulator_does(gpu_rank: Any, gpu: Emulator) -> None:
    assert gpu_rank(allowed) == [allowed()]


def on_this_gpu(runs: str, world: str) -> dict[str, Any]:
    """Carry out the tiny run on the GPU that this process sees."""
    return carry_out(runs, f"data.root={world}")[0]


def test_a_run_on_a_gpu_comes_near_the_one_on_the_cpu(
    gpu_rank: Any, world: str, tmp_path: Path
) -> None:
    expected, _ = carry_out(tmp_path / "cpu", f"data.root={world}")
    [found] = gpu_rank(on_this_gpu, runs=str(tmp_path / "gpu"), world=world)
    for one, other in zip(expected["log"], found["log"], strict=True):
        # pixels of other decoders, some grey levels off
        assert other["loss"] == pytest.approx(one["loss"], rel=0.05)
    assert found["result"]["mAP"] == pytest.approx(expected["result"]["mAP"], abs=0.1)
