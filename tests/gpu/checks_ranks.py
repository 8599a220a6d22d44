"""Two ranks with a GPU each: their results, and their speed."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from harness.base.machine import visible_gpus
from harness.runs.run import Run
from tests.benchmarks import ranks as speed
from tests.commands import ROOT, as_rank, free_port
from tests.gpu.checks import Extent, Finding
from tests.gpu.checks_speed import finding_of
from tests.gpu.checks_training import apart_most, epoch_losses

COUNT = 2
LIMIT_S = 100
LOSSES = 5e-3
"""How far apart the losses of one and two ranks may be, as a share."""


def two_ranks(extent: Extent) -> Iterator[Finding]:
    """Train the tiny run on one rank, on two that see both GPUs, and on two that see one each."""
    if torch.cuda.device_count() < COUNT:
        yield Finding("two ranks", None, why=f"{torch.cuda.device_count()} GPU: it takes two")
        return
    with tempfile.TemporaryDirectory(prefix="ranks-") as name:
        alone = _trained(Path(name) / "one", 1, False, extent)
        for way, one_each in (("two ranks", False), ("two ranks that see one GPU each", True)):
            ours = _trained(Path(name) / way, COUNT, one_each, extent)
            apart, _ = apart_most(ours, alone)
            yield Finding(
                way, apart <= LOSSES, f"losses {apart:.1e} off one rank's",
                "" if apart <= LOSSES else f"over {LOSSES:g}", {"losses": apart},
            )


def speed_of_two_ranks(extent: Extent) -> Iterator[Finding]:
    """The speed of two ranks against one, and of ZeRO's stages where there are more GPUs."""
    for row in speed.measure(extent.sizes):
        yield finding_of(row, must_be_faster=False)


def _trained(runs: Path, count: int, one_each: bool, extent: Extent) -> dict[str, float]:
    """Train the tiny run on some ranks; returns its losses by stage, epoch and name."""
    names, port = visible_gpus(), str(free_port())
    words = ["--recipe", "synthetic_tiny", "engine.precision=fp32", "run.tensorboard=false",
             f"run.runs={runs}", *extent.settings]
    processes = []
    for rank in range(count):
        seen = {"CUDA_VISIBLE_DEVICES": names[rank] if one_each else ",".join(names)}
        log = (runs.parent / f"{runs.name}-{rank}.txt").open("w+", encoding="utf-8")
        processes.append((log, subprocess.Popen(
            [sys.executable, ROOT / "launch/train.py", *words], cwd=ROOT, stdout=log, stderr=log,
            env=os.environ | as_rank(rank, count, port) | seen,
        )))
    try:
        for log, process in processes:
            if process.wait(LIMIT_S):
                log.seek(0)
                raise RuntimeError(f"a rank ended with {process.returncode}: {_end(log.read())}")
    finally:
        for log, process in processes:
            process.kill()
            process.wait()
            log.close()
    [file] = runs.glob("*/*/metrics.jsonl")
    return epoch_losses(Run(file.parent))


def _end(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]


CHECKS = {"ranks": (two_ranks, speed_of_two_ranks)}
