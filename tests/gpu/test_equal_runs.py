"""Whole runs on a GPU have the losses and scores of the same runs on the CPU."""

from pathlib import Path
from typing import Any

import pytest

from harness.base.files import write_json
from svll.models.clip import import_open_clip
from tests.gpu.emulator import Emulator
from tests.gpu.runs import carry_out, mismatches

VARIANTS = {
    "bf16, recomputed, accumulated, clipped, ZeRO 1": (
        "engine.precision=bf16", "engine.recompute=true", "engine.accumulation=2",
        "engine.clipping=0.5", "engine.zero=1", "stage1.augment=mask",
    ),
    "fp16, SimSiam, mix, sampled classes": (
        "engine.precision=fp16", "stage1.lss_loss=simsiam", "stage2.vss_loss=simsiam",
        "stage1.augment=mix", "stage2.sampled_classes=5",
    ),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a small CLIP with a ResNet."""
    file = tmp_path_factory.mktemp("models") / "RN-tiny.json"
    vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    write_json(file, {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text})
    import_open_clip().add_model_config(file)
    return file.stem


@pytest.fixture(scope="module")
def on_cpu(world: str, runs: Path) -> dict[str, Any]:
    """What the run in fp32 logs and scores on the CPU."""
    return carry_out(runs / "cpu", f"data.root={world}")[0]


@pytest.fixture(scope="module")
def on_gpu(world: str, runs: Path) -> tuple[dict[str, Any], Emulator]:
    """And on a GPU."""
    found, gpu = carry_out(runs / "gpu", f"data.root={world}", devices=1)
    assert gpu is not None
    return found, gpu


def test_a_run_in_fp32_with_reranking_is_the_run_on_the_cpu(
    on_cpu: dict[str, Any], on_gpu: tuple[dict[str, Any], Emulator]
) -> None:
    assert mismatches(on_cpu, on_gpu[0]) == on_gpu[1].mismatches == []
    assert 0 < on_cpu["result"]["mAP"] != on_cpu["result"]["reranked"]["mAP"] > 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_on_a_gpu_is_the_run_on_the_cpu(variant: str, world: str, runs: Path) -> None:
    given = (f"data.root={world}", *VARIANTS[variant])
    expected, _ = carry_out(runs / "cpu", *given)
    found, gpu = carry_out(runs / "gpu", *given, devices=1)
    assert mismatches(expected, found) == []
    assert gpu is not None
    assert gpu.mismatches == []


def test_a_resnet_under_zero_2_on_a_gpu_is_the_one_on_the_cpu(
    world: str, runs: Path, resnet: str
) -> None:
    given = (f"data.root={world}", f"model.name={resnet}", "model.weights=null", "model.sie=none",
             "model.stride=null", "engine.zero=2")
    expected, _ = carry_out(runs / "cpu", *given)
    found, _ = carry_out(runs / "gpu", *given, devices=1)
    assert mismatches(expected, found) == []


def test_a_run_goes_from_the_gpu_to_the_cpu_and_back(
    world: str, tmp_path: Path, on_cpu: dict[str, Any]
) -> None:
    given = f"data.root={world}"
    assert carry_out(tmp_path, given, devices=1, stop_after=1)[0]["result"] == {}
    assert carry_out(tmp_path, given, stop_after=1)[0]["result"] == {}
    found, _ = carry_out(tmp_path, given, devices=1)
    assert {line["stage"] for line in found["log"]} == {"stage1", "stage2"}
    assert mismatches(on_cpu, found) == []
