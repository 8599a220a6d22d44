"""The tiny run on the GPU against the same run on the CPU, which is trained in the meantime.

Numbers of a CPU are computed and not stored: they take some ten seconds on one core, while the GPU
works, and another processor rounds otherwise.
"""

import math
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

import svll
from harness.runs.run import Run
from harness.training import ranks
from svll.experiment import run as experiment
from tests import picture_files
from tests.gpu.checks import Extent, Finding
from tests.gpu.cpu_process import begun_on_cpu
from tests.tiny_run import tiny_run

PLAIN = ("run.tensorboard=false", "run.log_every=1", "engine.compile=null")


class Bounds(NamedTuple):
    """What may lie between a run on a GPU and the CPU's."""

    first: float
    """Of the losses of the first step, as a share."""
    epochs: float
    """Of the losses of the epochs, as a share."""
    mAP: float


EXACT = Bounds(1e-4, 5e-3, 0.02)
"""In fp32 with the same pixels. A step differs by the order of sums; epochs of Adam let that grow,
and a few test images swap ranks."""
BOUNDS = {
    ("fp32", "cpu"): EXACT, ("bf16", "cpu"): Bounds(0.05, 0.05, 0.1),
    ("fp16", "cpu"): Bounds(0.1, 0.2, 0.1), ("fp32", "auto"): Bounds(0.03, 0.1, 0.1),
}
"""By precision and where views are made. On a CPU bf16 was (0.018, 0.009, 0.002) off fp32, and
DALI's way of making views (0.010, 0.033, 0.016) off ours. fp16 is compared with fp16, which skips
some of the few steps while it looks for its scale: one more or less may be skipped."""
SMALL = 0.1
"""Smaller losses are compared by their difference, as a share of this."""
FEATURES = 2e-5
"""The largest difference of two unit features in fp32: TF32 makes it some 3e-4."""


def trained(folder: str, settings: Sequence[str]) -> dict[str, Any]:
    """Train the tiny run; returns its losses, its mAP and its folder."""
    ranks.init_ranks()
    from deepspeed.runtime import torch_autocast

    # a global of DeepSpeed 0.19.8: one fp16 engine changes all later ones of the process
    torch_autocast.TORCH_AUTOCAST_INITIALIZED = False
    run = tiny_run(f"{folder}/gpu", *PLAIN, *settings)
    result = experiment(run)
    steps = [line for line in run.metrics() if line["kind"] == "step"]
    first = {line["stage"]: line for line in reversed(steps)}
    return {
        "folder": str(run.folder), "mAP": result["mAP"],
        "first": {f"{stage} {name}": value for stage, line in sorted(first.items())
                  for name, value in line["losses"].items()},
        "epochs": epoch_losses(run),
    }


def epoch_losses(run: Run) -> dict[str, float]:
    """Return the losses of a run by stage, epoch and name."""
    return {
        f"{line['stage']} {line['epoch']} {name}": value for line in run.metrics()
        if line["kind"] == "epoch" for name, value in line["losses"].items()
    }


def training(extent: Extent) -> Iterator[Finding]:
    """Train in each precision with the CPU's views, then with the GPU's."""
    settings = extent.settings
    with tempfile.TemporaryDirectory(prefix="gpu-") as name:
        on_cpu = {
            precision: begun_on_cpu(trained, f"{name}/cpu", [*settings, *_words(precision)])
            for precision in ("fp32", "fp16") if precision in dict(extent.runs)
        }
        for number, (precision, maker) in enumerate(extent.runs):
            words = [*_words(precision), f"data.device={maker}"]
            ours = trained(f"{name}/{number}", [*settings, *words])
            expected = on_cpu.get(precision, on_cpu["fp32"]).result()
            title = f"tiny run, {precision}, the {'CPU' if maker == 'cpu' else 'GPU'}'s views"
            yield compared(title, ours, expected, BOUNDS[precision, maker])
        yield _loaded(on_cpu["fp32"].result()["folder"])


def _words(precision: str) -> list[str]:
    return [f"engine.precision={precision}"]


def compared(
    name: str, ours: dict[str, Any], expected: dict[str, Any], bounds: Bounds
) -> Finding:
    """Compare what two runs gave; a number that is NaN differs."""
    apart = {part: apart_most(ours[part], expected[part]) for part in ("first", "epochs")}
    mAP = abs(ours["mAP"] - expected["mAP"])
    wrong = [f"{key}: {ours[part][key]:.6g} instead of {expected[part][key]:.6g}"
             for part, (share, key) in apart.items() if share > getattr(bounds, part)]
    if not mAP <= bounds.mAP:
        wrong.append(f"mAP {ours['mAP']:.4f} instead of {expected['mAP']:.4f}")
    first, epochs = apart["first"][0], apart["epochs"][0]
    return Finding(
        name, not wrong, f"losses: first step {first:.1e}, epochs {epochs:.1e} off; mAP "
        f"{mAP:.4f} off", "; ".join(wrong),
        {"first": first, "epochs": epochs, "mAP": mAP},
    )


def apart_most(ours: dict[str, float], expected: dict[str, float]) -> tuple[float, str]:
    """Return the largest difference, as a share of what is expected, and its name."""
    return max((_share(ours[key], value), key) for key, value in expected.items())


def _share(found: float, expected: float) -> float:
    """Return a difference as a share of what is expected; infinite for NaN."""
    share = abs(found - expected) / max(abs(expected), SMALL)
    return math.inf if math.isnan(share) else share


def encoded(folder: str, device: str) -> Any:
    """Return the features of some opened images, whose pixels are the same everywhere."""
    images = [picture_files.picture(number, (48, 96)) for number in range(16)]
    return svll.load(folder, device).encode(images)


def _loaded(folder: str) -> Finding:
    expected = begun_on_cpu(encoded, folder, "cpu")
    ours = encoded(folder, "cuda")
    apart = float(np.abs(ours - expected.result()).max())
    return Finding(
        "svll.load on the GPU", apart <= FEATURES, f"features {apart:.1e} off",
        "" if apart <= FEATURES else f"over {FEATURES:g}: is fp32 rounded to TF32?",
        {"largest": apart},
    )


CHECKS = {"training": (training,)}
