"""The toy experiment, importable here and in the child processes of a test."""

import importlib
import sys
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
