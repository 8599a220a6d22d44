"""The toy experiment, importable here and in the child processes of a test."""

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

TOYS = Path(__file__).parents[2] / "toy"


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setenv("PYTHONPATH", str(TOYS))
    if str(TOYS) not in sys.path:
        sys.path.insert(0, str(TOYS))
    return importlib.import_module("toy_experiment")


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[str]]:
    """Return a function that gives this machine so many GPUs, as nvidia-smi tells them; names."""

    def have(count: int) -> list[str]:
        names = [f"GPU-{letter * 8}" for letter in "abcdefgh"[:count]]
        folder = tmp_path / f"driver-{count}"
        folder.mkdir()
        lines = [f"GPU {n}: NVIDIA H100 (UUID: {name})" for n, name in enumerate(names)]
        (folder / "nvidia-smi").write_text("#!/bin/sh\ncat <<END\n" + "\n".join(lines) + "\nEND\n")
        (folder / "nvidia-smi").chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        return names

    return have
