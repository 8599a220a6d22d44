"""Where compiled code is kept on a node."""

import gc
import os
import sys
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import pytest

from harness.base.caches import CACHES, RARELY, keep_caches_here, quick_imports


@pytest.fixture
def node_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node's own disk, and none of the variables that say where compiled code is kept."""
    for name in CACHES:
        monkeypatch.setenv(name, "x")  # so that what the test sets is undone
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_TMPDIR", str(tmp_path))
    return tmp_path


def test_compiled_code_is_kept_on_the_node_in_a_folder_of_this_user_alone(
    node_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", "/chosen")
    keep_caches_here()
    folder = node_disk / f"svll-{os.getuid()}"
    assert os.environ["NUMBA_CACHE_DIR"] == str(folder / "numba")
    assert os.environ["TRITON_CACHE_DIR"] == "/chosen"
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("planted", ["open to all", "a link"])
def test_a_folder_that_others_may_have_filled_is_not_used_for_compiled_code(
    node_disk: Path, planted: str
) -> None:
    folder = node_disk / f"svll-{os.getuid()}"
    if planted == "a link":
        (node_disk / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(node_disk / "elsewhere")
    else:
        folder.mkdir()
        folder.chmod(0o777)
    keep_caches_here()
    used = Path(os.environ["NUMBA_CACHE_DIR"]).parent
    assert used != folder
    assert used.parent == node_disk
    assert used.stat().st_mode & 0o777 == 0o700


def test_garbage_is_looked_for_rarely_during_imports_and_never_again_in_what_they_made(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    before, frozen = gc.get_threshold(), gc.get_freeze_count()
    with quick_imports():
        assert gc.get_threshold() == RARELY
    assert gc.get_freeze_count() == frozen  # nothing was imported
    with suppress(ImportError), quick_imports():
        monkeypatch.setitem(sys.modules, "imported_just_now", ModuleType("imported_just_now"))
        raise ImportError
    assert gc.get_freeze_count() > frozen
    assert gc.get_threshold() == before
