"""Tiny runs of both stages, on the CPU or on emulated GPUs, and what can be compared of them."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from harness.images import loader
from harness.images.cpu import CpuViews
from harness.images.views import Changes, Take
from harness.runs.stopping import Stopped
from harness.training import loop
from svll.experiment import run as experiment
from tests.gpu.emulator import Emulator, emulated
from tests.gpu.emulator.tensors import CPU, on_gpu
from tests.tiny_run import tiny_run

TINY = (
    "data.height=32", "data.width=16", "data.world.test_identities=4", "data.check=false",
    "stage1.epochs=1", "stage1.augment=swap", "stage1.batch=16", "stage1.warmup_epochs=0",
    "stage2.epochs=1", "stage2.batch=8", "stage2.instances=2", "stage2.warmup_epochs=0",
    "evaluation.k1=4", "evaluation.k2=2", "evaluation.rerank=true", "run.tensorboard=false",
    "run.log_every=1", "run.name=tiny",
)


class SentViews(CpuViews):
    """Views of the CPU, handed over as the GPU's loader does: the pixels of a run on the CPU."""

    def __init__(self, transform: Any, batch_size: int, threads: int, device: Any) -> None:
        super().__init__(transform, batch_size, threads, CPU)

    def begin(self, paths: Any, changes: Changes) -> Take:
        take = super().begin(paths, changes)
        return lambda: [on_gpu(view.clone()) for view in take()]


def carry_out(
    runs: str | Path, *overrides: str, devices: int = 0, stop_after: int | None = None,
    views: Any = SentViews,
) -> tuple[dict[str, Any], Emulator | None]:
    """Run on so many emulated GPUs (0: on the CPU), perhaps until a stop after so many steps.

    views: makes the images of a GPU. Returns what the run logged and scored, and the emulator.
    """
    run = tiny_run(Path(runs) / "tiny", *TINY, *overrides)
    asked = iter([False] * (stop_after or 10_000))
    with emulated(devices) if devices else nullcontext() as emulator, (
        pytest.MonkeyPatch.context()
    ) as patch:
        patch.setattr(loop, "stop_requested", lambda: next(asked, True))
        patch.setattr(loader, "DaliViews", views)
        try:
            result = experiment(run)
        except Stopped:
            result = {}
    return {"log": [_kept(line) for line in run.metrics()], "result": _kept(result)}, emulator


def _kept(line: dict[str, Any]) -> dict[str, Any]:
    """Return what does not depend on the time or the memory."""
    measured = ("seconds", "signature", *loop.MEASURED)
    found: dict[str, Any] = json.loads(json.dumps(line))
    return {key: value for key, value in found.items() if key not in measured}


def mismatches(one: Any, other: Any, place: str = "") -> list[str]:
    """Return the places at which two results differ; numbers: with four digits after the point."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = sorted(one.keys() | other.keys())
        parts = [(one.get(key), other.get(key), f"{place}.{key}") for key in keys]
    elif isinstance(one, list) and isinstance(other, list):
        longest = max(len(one), len(other))
        both = ([*part, *[None] * (longest - len(part))] for part in (one, other))
        parts = [(a, b, f"{place}[{n}]") for n, (a, b) in enumerate(zip(*both, strict=True))]
    elif isinstance(one, float) and isinstance(other, float):
        return [] if abs(one - other) <= 0.5e-4 else [f"{place}: {one} and {other}"]
    else:
        return [] if one == other else [f"{place}: {one} and {other}"]
    return [text for part in parts for text in mismatches(*part)]
