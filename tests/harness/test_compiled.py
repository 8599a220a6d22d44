"""The cache of compiled functions: which changes of real files it notices."""

import importlib
import sys
from pathlib import Path

import numba
import pytest

OUTER = """
from harness.compiled import kernel
import middle
import numbers_of_ours

@kernel
def outer(x):
    return middle.twice(x) + numbers_of_ours.SHIFT
"""
MIDDLE = """
from harness.compiled import kernel
from inner import step

@kernel
def twice(x):
    return step(step(x))
"""
INNER = """
from harness.compiled import kernel

@kernel
def step(x):
    return x + 1
"""
FILES = {"outer": OUTER, "middle": MIDDLE, "inner": INNER, "numbers_of_ours": "SHIFT = 10"}


def test_an_edit_of_an_inlined_function_or_constant_in_another_file_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # in the environment, too: Numba reads that again when any of its variables has changed
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(str(tmp_path))

    def run(**changed: str) -> tuple[int, int]:
        """Import the files anew; returns the result and how often the cache had it."""
        for name, text in changed.items():
            (tmp_path / f"{name}.py").write_text(text)
        for name in FILES:
            monkeypatch.delitem(sys.modules, name, raising=False)
        outer = importlib.import_module("outer").outer
        return outer(1), sum(outer.stats.cache_hits.values())

    assert run(**FILES) == (1 + 2 + 10, 0)
    assert run() == (1 + 2 + 10, 1)
    assert run(inner=INNER.replace("x + 1", "x + 3")) == (1 + 6 + 10, 0)
    assert run(numbers_of_ours="SHIFT = 20") == (1 + 6 + 20, 0)
    assert run() == (1 + 6 + 20, 1)
