"""Hides this machine's GPUs from the tests and from the processes that they start. Tests marked
`gpu` show them to a separate rank (`gpu_rank` in tests/conftest.py)."""

import os
from pathlib import Path

from harness.base import machine

VISIBLE = "SVLL_TEST_GPUS"
"""CUDA_VISIBLE_DEVICES as it was before, "all" if it was not set; xdist's processes inherit it."""
NO_GPUS = str(Path(__file__).parent / "no_gpus")
"""The folder of an nvidia-smi that lists nothing."""


def hide() -> None:
    """Hide all GPUs from this process, in which torch may not have looked for them yet."""
    os.environ.setdefault(VISIBLE, os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    paths = os.environ.get("PATH", "").split(os.pathsep)
    if any(machine.DEVICES.glob("nvidia[0-9]*")) and NO_GPUS not in paths:
        os.environ["PATH"] = os.pathsep.join([NO_GPUS, *paths])


def shown() -> dict[str, str]:
    """Return the environment of a process that is to see this machine's GPUs."""
    found = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
    paths = found.get("PATH", "").split(os.pathsep)
    found["PATH"] = os.pathsep.join(path for path in paths if path != NO_GPUS)
    if (visible := found.pop(VISIBLE, "all")) != "all":
        found["CUDA_VISIBLE_DEVICES"] = visible
    return found


def no_gpu() -> str:
    """Return why tests that need a GPU are skipped, "" if they are not."""
    if not any(machine.DEVICES.glob("nvidia[0-9]*")):
        return "this machine has no GPU"
    visible = os.environ.get(VISIBLE, "all")
    return f"CUDA_VISIBLE_DEVICES={visible} hides all" if visible.strip() in ("", "-1") else ""
