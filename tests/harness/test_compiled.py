"""What was compiled is kept: for all copies of the code, and only for code that is the same."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Imported = Callable[..., tuple[float, int]]

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


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of what was compiled."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kernels"


@pytest.fixture
def imported(tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> Imported:
    """Return a function that writes files, imports them anew and calls `outer`."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def run(value: float = 1, *, place: str = "code", **texts: str) -> tuple[float, int]:
        """Return the result, and how often what was kept was used."""
        folder = tmp_path / place
        folder.mkdir(exist_ok=True)
        for name, text in texts.items():
            (folder / f"{name}.py").write_text(text)
        with monkeypatch.context() as patch:
            patch.syspath_prepend(str(folder))
            for name in FILES:
                patch.delitem(sys.modules, name, raising=False)
            outer = importlib.import_module("outer").outer
            return outer(value), sum(outer.stats.cache_hits.values())

    return run


def test_an_edit_of_an_inlined_function_or_constant_in_another_file_is_noticed(
    imported: Imported,
) -> None:
    assert imported(**FILES) == (1 + 2 + 10, 0)
    assert imported() == (1 + 2 + 10, 1)
    assert imported(inner=INNER.replace("x + 1", "x + 3")) == (1 + 6 + 10, 0)
    assert imported(numbers_of_ours="SHIFT = 20") == (1 + 6 + 20, 0)
    assert imported() == (1 + 6 + 20, 1)


def test_a_copy_of_the_code_need_not_be_compiled_again(imported: Imported) -> None:
    assert imported(**FILES) == (13, 0)
    assert imported(place="frozen", **FILES) == (13, 1)
    other = {**FILES, "inner": INNER.replace("x + 1", "x + 3")}
    assert imported(place="edited", **other) == (17, 0)
    assert imported(place="frozen") == (13, 1)


def test_each_type_of_an_argument_has_a_file_of_its_own(imported: Imported, kept: Path) -> None:
    assert imported(**FILES) == (13, 0)
    before = {file: file.read_bytes() for file in kept.glob("outer.outer-*")}
    assert imported(1.5) == (13.5, 0)
    assert imported(1.5) == (13.5, 1)
    assert imported() == (13, 1)
    assert len(list(kept.glob("outer.outer-*"))) == 2
    assert all(file.read_bytes() == content for file, content in before.items())


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 10_000])
def test_a_damaged_file_is_replaced(content: bytes, imported: Imported, kept: Path) -> None:
    imported(**FILES)
    [file] = kept.glob("outer.outer-*")
    whole = file.read_bytes()
    file.write_bytes(content or whole[:-1])
    assert imported() == (13, 0)
    assert imported() == (13, 1)


def test_where_nothing_can_be_kept_each_process_compiles_for_itself(
    imported: Imported, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/dev/null/no/folder")
    assert imported(**FILES) == (13, 0)
    assert imported() == (13, 0)


def test_only_its_owner_may_enter_the_folder(imported: Imported, kept: Path) -> None:
    imported(**FILES)
    assert kept.stat().st_mode & 0o777 == 0o700
