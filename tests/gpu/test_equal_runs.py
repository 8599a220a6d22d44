"""Whole runs on a GPU have the losses and scores of the same runs on the CPU."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.gpu.runs import carry_out, mismatches

VARIANTS = {
    "bf16, recomputed, accumulated, clipped, ZeRO 1": (
        "engine.precision=bf16", "engine.recompute=true", "engine.accumulation=2",
        "engine.clipping=0.5", "engine.zero=1", "stage1.augment=swap",
    ),
    "fp16, SimSiam, mix, sampled classes": (
        "engine.precision=fp16", "stage1.lss_loss=simsiam", "stage2.vss_loss=simsiam",
        "stage1.augment=mix", "stage2.sampled_classes=5",
    ),
    "fp32, ZeRO 2": ("engine.zero=2",),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_on_a_gpu_is_the_run_on_the_cpu(variant: str, world: str, tmp_path: Path) -> None:
    given = (f"data.root={world}", *VARIANTS[variant])
    expected, _ = carry_out(tmp_path / "cpu", *given)
    found, gpu = carry_out(tmp_path / "gpu", *given, devices=1)
    assert mismatches(expected, found) == []
    assert gpu is not None
    assert gpu.mismatches == []
    assert found["result"]["reranked"]["mAP"] > 0


def test_a_resnet_on_a_gpu_is_the_one_on_the_cpu(world: str, tmp_path: Path, resnet: str) -> None:
    given = (f"data.root={world}", f"model.name={resnet}", "model.weights=null", "model.sie=none",
             "model.stride=null")
    expected, _ = carry_out(tmp_path / "cpu", *given)
    found, _ = carry_out(tmp_path / "gpu", *given, devices=1)
    assert mismatches(expected, found) == []


def test_a_run_goes_from_the_gpu_to_the_cpu_and_back(world: str, tmp_path: Path) -> None:
    given = (f"data.root={world}", "run.keep_checkpoints=true")
    expected, _ = carry_out(tmp_path / "cpu", *given)
    carry_out(tmp_path / "both", *given, devices=1, stop_after=2)
    carry_out(tmp_path / "both", *given, stop_after=6)
    found, _ = carry_out(tmp_path / "both", *given, devices=1)
    assert mismatches(expected, found) == []
