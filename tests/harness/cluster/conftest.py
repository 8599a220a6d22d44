"""The toy experiment, importable here and in the child processes of a test."""

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[3]
TOYS = ROOT / "tests" / "toy"


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setenv("PYTHONPATH", f"{TOYS}{os.pathsep}{ROOT}")
    if str(TOYS) not in sys.path:
        sys.path.insert(0, str(TOYS))
    return importlib.import_module("toy_experiment")
