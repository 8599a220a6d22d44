"""The record of machine, packages and code of a run."""

import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from harness.runs.environment import arithmetic, environment, git_state, note_git_state


def git(folder: Path, *words: str) -> str:
    own = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    done = subprocess.run(
        ["git", "-C", str(folder), *own, *words], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A working tree with one commit."""
    folder = tmp_path / "tree"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "a.py").write_text("a = 1\n")
    git(folder, "add", "a.py")
    git(folder, "commit", "-qm", "first")
    return folder


def test_versions_are_those_of_the_packages_that_are_imported(tree: Path) -> None:
    import numpy
    import torch

    recorded = environment(tree)
    assert recorded["packages"]["numpy"] == numpy.__version__
    assert recorded["packages"]["torch"] == metadata.version("torch")
    assert torch.__version__.startswith(recorded["packages"]["torch"])
    assert recorded["python"] == ".".join(map(str, sys.version_info[:3]))
    assert recorded["cores"] >= 1


def test_the_commit_is_reported_and_whether_files_differ_from_it(tree: Path) -> None:
    commit = git(tree, "rev-parse", "HEAD")
    assert git_state(tree) == {"commit": commit, "changed": False}
    (tree / "a.py").write_text("a = 2\n")
    assert git_state(tree) == {"commit": commit, "changed": True}


def test_frozen_code_is_of_the_commit_that_it_was_copied_from(tree: Path, tmp_path: Path) -> None:
    frozen = tmp_path / "code" / "0123"
    frozen.mkdir(parents=True)
    note_git_state(frozen, tree)
    before = git_state(tree)
    (tree / "a.py").write_text("a = 2\n")
    assert git_state(frozen) == before


def test_a_folder_inside_of_somebodys_working_tree_has_no_commit(tree: Path) -> None:
    inside = tree / "site-packages"
    inside.mkdir()
    assert git_state(inside) is None


def test_other_code_is_other_arithmetic(tmp_path: Path) -> None:
    package = tmp_path / "package"
    for folder in (package, package / "deep", tmp_path / "notes"):
        folder.mkdir()
    (package / "__init__.py").write_text("")
    (package / "deep" / "a.py").write_text("a = 1")
    (tmp_path / "notes" / "b.py").write_text("b = 1")
    before = arithmetic(tmp_path, ["package"])
    (tmp_path / "notes" / "b.py").write_text("b = 2")  # in another package
    (package / "page.md").write_text("text")
    assert arithmetic(tmp_path, ["package"]) == before
    (package / "deep" / "a.py").write_text("a = 2")
    after = arithmetic(tmp_path, ["package"])
    assert after[0] != before[0]
    assert after[1:] == before[1:]


def test_the_other_gpus_of_a_node_and_their_number_are_no_other_arithmetic(
    tmp_path: Path, gpus: Callable[[int], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    on_cpu = arithmetic(tmp_path, [])
    found = []
    for count, visible in ((1, "0"), (4, "2"), (2, "0,1"), (3, "GPU-a")):
        gpus(count)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        found.append(arithmetic(tmp_path, []))
        assert environment(tmp_path)["gpus"] == ["NVIDIA H100"] * (1 + visible.count(","))
    assert found == [[*on_cpu, "NVIDIA H100"]] * 4
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert arithmetic(tmp_path, []) == on_cpu


def test_outside_of_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state(tmp_path) is None
    monkeypatch.setenv("PATH", str(tmp_path))  # no git at all
    assert git_state(tmp_path) is None
    note_git_state(tmp_path / "frozen", tmp_path)
    assert list(tmp_path.iterdir()) == []
