"""The toy experiment, importable here and in the child processes of a test."""

import importlib
import os
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest

from tests.commands import ROOT

TOYS = ROOT / "tests" / "toy"


@pytest.fixture(scope="module")
def toy() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        # the root, too: child processes of a test import the code beside it
        patch.setenv("PYTHONPATH", f"{TOYS}{os.pathsep}{ROOT}")
        if str(TOYS) not in sys.path:
            sys.path.insert(0, str(TOYS))
        yield importlib.import_module("toy_experiment")
