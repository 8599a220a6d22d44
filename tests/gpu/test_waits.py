"""How often the host waits for a GPU in a step: each time it may have nothing to do meanwhile."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.images.dali import DaliViews
from harness.training import loop
from svll.config import Stage1
from svll.losses import agreement_loss
from svll.prompt_augmentation import augment_prompts
from svll.runs import profiling
from tests.gpu.emulator import Emulator
from tests.gpu.emulator.state import INSTALLED
from tests.gpu.runs import carry_out

LOSSES = "event of an earlier step harness/training/loop.py StepLosses.values"
"""The losses of the step before are read."""
IMAGES = "event of an earlier step harness/images/dali.py DaliViews._take"
"""DALI gets the memory of the batch before back."""


def test_the_host_waits_once_in_a_step_of_stage_1_and_twice_in_one_of_stage_2(
    world: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, starts = loop.train_step, dict[str, list[int]]()

    def marked(stage: loop.Stage, *given: Any, **more: Any) -> Any:
        starts.setdefault(stage.name, []).append(len(INSTALLED[-1].waits))
        return step(stage, *given, **more)

    monkeypatch.setattr(loop, "train_step", marked)
    _, gpu = carry_out(
        tmp_path, f"data.root={world}", "stage1.batch=8", "stage2.batch=4",
        "stage2.sampled_classes=6", devices=1, views=DaliViews,
    )
    assert gpu is not None
    named = {name: [wait.name for wait in gpu.waits] for name in starts}
    for name, allowed in (("stage1", [LOSSES]), ("stage2", [IMAGES, LOSSES])):
        # without an epoch's first step, which has nothing to read, and its last, which reads all
        between = list(pairwise(starts[name][1:-1]))
        assert len(between) >= 2
        assert [sorted(named[name][a:b]) for a, b in between] == [allowed] * len(between)


@pytest.mark.parametrize("kind", ["mask", "swap", "swap_prompt", "mix"])
def test_prompts_are_augmented_on_a_gpu_as_on_the_cpu_and_without_waiting(
    gpu: Emulator, kind: Any
) -> None:
    prompts, padding = torch.randn(5, 7, 3), torch.randn(3)

    def made(*tensors: torch.Tensor) -> torch.Tensor:
        return augment_prompts(
            tensors[0], kind=kind, scale=0.5, generator=torch.Generator().manual_seed(1),
            padding=tensors[1], context_length=10, keep=slice(2, 5),
        )

    sent = prompts.to("cuda"), padding.to("cuda")
    gpu.waits.clear()
    found = made(*sent)
    assert gpu.waits == []
    assert torch.equal(found.cpu(), made(prompts, padding))


@pytest.mark.parametrize("loss", [Stage1().lss_loss, "simsiam"])
def test_agreement_is_computed_on_a_gpu_without_waiting(gpu: Emulator, loss: Any) -> None:
    a, b = torch.randn(2, 4, 3, device="cuda")
    agreement_loss(lambda x: 2 * x, a, b, kind=loss, temperature=0.1)
    assert gpu.waits == []


def test_a_phase_of_a_profile_ends_when_the_gpu_has_computed_it(gpu: Emulator) -> None:
    with profiling._phase(loop.FORWARD):
        assert gpu.waits == []
    assert [wait.kind for wait in gpu.waits] == ["cuda.synchronize"]
