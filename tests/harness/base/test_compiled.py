"""What was compiled is kept: for all copies of the code, and only for code that is the same."""

import hashlib
import importlib
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import pytest

from harness.base import compiled

Imported = Callable[..., tuple[float, int]]
OUTER = """
from harness.base.compiled import kernel
import middle
import numbers_of_ours

@kernel
def outer(x):
    return middle.twice(x) + numbers_of_ours.SHIFT
"""
MIDDLE = """
from harness.base.compiled import kernel
from inner import step

@kernel
def twice(x):
    return step(step(x))
"""
INNER = """
from harness.base.compiled import kernel

@kernel
def step(x):
    return x + 1
"""
FILES = {"outer": OUTER, "middle": MIDDLE, "inner": INNER, "numbers_of_ours": "SHIFT = 10"}


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder that compiled kernels are kept in."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kernels"


@pytest.fixture
def imported(tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> Imported:
    """Return a function that writes files, imports them anew and calls `outer`."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def run(
        value: float = 1, *, place: str = "code", between: Callable[[], Any] = lambda: None,
        **texts: str,
    ) -> tuple[float, int]:
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
            between()
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


def test_another_process_uses_it(imported: Imported, tmp_path: Path) -> None:
    assert imported(**FILES) == (13, 0)
    program = "from outer import outer; print(outer(1), sum(outer.stats.cache_hits.values()))"
    places = os.pathsep.join([str(tmp_path / "code"), str(Path(__file__).parents[3])])
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], env=os.environ | {"PYTHONPATH": places},
        capture_output=True, text=True, check=True,
    )
    assert done.stdout.split() == ["13", "1"]


def test_what_counts_is_the_code_in_memory_not_the_file_at_the_first_call(
    imported: Imported, tmp_path: Path
) -> None:
    inner, edited = tmp_path / "code" / "inner.py", INNER.replace("x + 1", "x + 3")
    assert imported(between=lambda: inner.write_text(edited), **FILES) == (13, 0)
    assert inner.read_text() == edited
    assert imported() == (17, 0)
    assert imported(inner=INNER) == (13, 1)


def test_fields_of_a_named_tuple_that_change_places_are_noticed(imported: Imported) -> None:
    outer = """
from harness.base.compiled import kernel
from numbers_of_ours import Pair

@kernel
def difference(pair):
    return pair.first - pair.second

def outer(x):
    return difference(Pair(5, 3))

outer.stats = difference.stats
"""
    pair = "from typing import NamedTuple\nclass Pair(NamedTuple):\n    {}: int\n    {}: int\n"
    as_is, swapped = pair.format("first", "second"), pair.format("second", "first")
    assert imported(**{**FILES, "outer": outer, "numbers_of_ours": as_is}) == (2, 0)
    assert imported() == (2, 1)
    assert imported(numbers_of_ours=swapped) == (-2, 0)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("10", "10.0"), ("10", "True"), ("(1, 2)[1]", "(2, 1)[1]"),
        ("__import__('numpy').array([1, 2])[:1]", "__import__('numpy').array([1.0, 2])[:1]"),
        ("__import__('numpy').array([[1, 2, 3]])", "__import__('numpy').array([[1], [2], [3]])"),
    ],
)
def test_another_value_or_type_of_a_constant_is_noticed(
    before: str, after: str, imported: Imported
) -> None:
    outer = OUTER.replace("numbers_of_ours.SHIFT", "len((numbers_of_ours.SHIFT, 0))")
    files = {**FILES, "outer": outer}
    assert imported(**{**files, "numbers_of_ours": f"SHIFT = {before}"})[1] == 0
    assert imported()[1] == 1
    assert imported(numbers_of_ours=f"SHIFT = {after}")[1] == 0


@pytest.mark.parametrize(
    ("place", "name", "value"),
    [
        (numba.config, "BOUNDSCHECK", 1), (numba.config, "LOOP_VECTORIZE", 0),
        (compiled, "VERSIONS", ("another",)),
    ],
)
def test_another_setting_or_version_of_numba_compiles_again(
    place: Any, name: str, value: Any, imported: Imported, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert imported(**FILES) == (13, 0)
    monkeypatch.setattr(place, name, value)
    assert imported() == (13, 0)
    assert imported() == (13, 1)


def test_other_options_compile_again(imported: Imported, monkeypatch: pytest.MonkeyPatch) -> None:
    assert imported(**FILES) == (13, 0)
    monkeypatch.setattr(compiled, "njit", lambda **_: numba.njit(nogil=True, fastmath=True))
    assert imported() == (13, 0)


def test_each_type_of_an_argument_has_a_file_of_its_own(imported: Imported, kept: Path) -> None:
    assert imported(**FILES) == (13, 0)
    before = {file: file.read_bytes() for file in kept.glob("outer.outer-*")}
    assert imported(1.5) == (13.5, 0)
    assert imported(1.5) == (13.5, 1)
    assert imported() == (13, 1)
    assert len(list(kept.glob("outer.outer-*"))) == 2
    assert all(file.read_bytes() == content for file, content in before.items())


NO_CODE = pickle.dumps("no code")


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"", lambda whole: whole[:-1], lambda whole: whole[:40] + whole[41:],
        lambda whole: hashlib.sha256(NO_CODE).digest() + NO_CODE,
    ],
)
def test_a_file_that_is_damaged_or_holds_no_code_is_replaced(
    damage: Callable[[bytes], bytes], imported: Imported, kept: Path
) -> None:
    imported(**FILES)
    [file] = kept.glob("outer.outer-*")
    file.write_bytes(damage(file.read_bytes()))
    assert imported() == (13, 0)
    assert imported() == (13, 1)


def test_where_nothing_can_be_kept_each_process_compiles_for_itself(
    imported: Imported, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/dev/null/no/folder")
    assert imported(**FILES) == (13, 0)
    assert imported() == (13, 0)


@pytest.mark.parametrize("how", ["open to all", "a link"])
def test_a_folder_that_others_may_have_filled_is_not_read(
    how: str, imported: Imported, kept: Path, tmp_path: Path
) -> None:
    imported(**FILES)
    if how == "open to all":
        kept.chmod(0o777)
    else:
        kept.rename(tmp_path / "elsewhere")
        kept.symlink_to(tmp_path / "elsewhere")
    assert imported() == (13, 0)


def test_only_its_owner_may_enter_the_folder(imported: Imported, kept: Path) -> None:
    imported(**FILES)
    assert kept.stat().st_mode & 0o777 == 0o700


def test_a_kernel_with_addresses_of_its_process_is_not_kept(
    imported: Imported, kept: Path
) -> None:
    big = "import numpy as np\nSHIFT = np.arange(200_000.0)"
    outer = OUTER.replace("numbers_of_ours.SHIFT", "numbers_of_ours.SHIFT[10]")
    assert imported(**{**FILES, "outer": outer, "numbers_of_ours": big}) == (13, 0)
    assert imported() == (13, 0)
    assert not list(kept.glob("outer.outer-*"))


def test_a_function_made_by_a_function_is_not_kept(kept: Path) -> None:
    def made(shift: int) -> Any:
        @compiled.kernel
        def shifted(x: int) -> int:
            return x + shift

        return shifted

    assert [made(1)(1), made(2)(1)] == [2, 3]
    assert not kept.exists()


def test_files_that_nobody_uses_are_deleted_some_time(imported: Imported, kept: Path) -> None:
    imported(**FILES)
    used, unused = next(kept.glob("outer.outer-*")), kept / "old"
    unused.touch()
    month_ago, year_ago = time.time() - 30 * 86_400, time.time() - 365 * 86_400
    os.utime(unused, (year_ago, year_ago))
    os.utime(used, (month_ago, month_ago))
    assert imported() == (13, 1)
    assert used.stat().st_mtime > month_ago + 86_400
    assert imported(1.5) == (13.5, 0)  # adds a file
    assert used.exists()
    assert not unused.exists()


def test_an_unknown_user_gets_no_folder_and_no_fault(
    imported: Imported, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as it does for such a user
    monkeypatch.chdir(tmp_path)
    assert imported(**FILES) == (13, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["code"]
