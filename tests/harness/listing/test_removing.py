"""What is removed, and everything that is not."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.base.errors import UserError
from harness.base.locks import held_lock
from harness.cluster.local.place import worker_lock
from harness.cluster.records import new_record
from harness.listing.folders import named
from harness.listing.removing import check_removable, outermost, remove_all
from tests.harness.listing.conftest import MakeRun


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_a_run_is_removed_with_all_that_is_in_it_and_nothing_else(
    tmp_path: Path, make_run: MakeRun
) -> None:
    run, other = make_run(1), make_run(2)
    before = everything(tmp_path) - {"runs/toys/000000000001"} - {
        f"runs/toys/000000000001/{name}" for name in everything(run.folder)}
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "image.jpg").touch()
    (run.folder / "data").symlink_to(tmp_path / "data")
    assert remove_all(run.folder) == []
    assert everything(tmp_path) == before | {"data", "data/image.jpg"}
    assert other.is_complete()


def test_a_sweep_is_removed_and_what_is_not_its_own_stays(
    make_run: MakeRun, make_sweep: Callable[..., Path]
) -> None:
    make_run(1)
    make_run(2, "stopped")
    folder = make_sweep()
    (folder / "code" / "0123").mkdir(parents=True)
    (folder / "thesis.txt").touch()
    assert remove_all(folder) == [folder / "thesis.txt"]
    assert everything(folder) == {"thesis.txt"}
    make_run(1)
    (folder / "thesis.txt").unlink()
    make_sweep()
    assert remove_all(folder) == []
    assert not folder.exists()


def test_no_running_or_waiting_run_is_removed_nor_its_sweep(
    make_run: MakeRun, make_sweep: Callable[..., Path]
) -> None:
    run, waiting = make_run(1, "running"), make_run(2, "submitted")
    sweep = make_sweep()
    before = everything(sweep)
    with run.lock():
        for folder in (run.folder, sweep):
            with pytest.raises(UserError, match="000000000001: is running; end it first"):
                remove_all(folder)
    record = new_record(sweep, "local", [waiting.signature], workers=1)
    record.write("submitted")
    with held_lock(worker_lock(record.file, 0)):
        for folder in (waiting.folder, sweep):
            with pytest.raises(UserError, match=r"000000000002: a job will begin it.*; end it"):
                remove_all(folder)
        assert check_removable(run.folder) == [run]  # which that job does not run
    assert before <= everything(sweep)
    with held_lock(sweep / "launch.lock"), pytest.raises(UserError, match="is in use by"):
        remove_all(sweep)
    assert before <= everything(sweep)
    remove_all(sweep)
    assert not sweep.exists()


def test_no_other_folder_is_removed_and_no_link_is_followed(
    tmp_path: Path, make_run: MakeRun
) -> None:
    run = make_run(1)
    (tmp_path / "link").symlink_to(run.folder)
    with pytest.raises(UserError, match="link: is a link"):
        remove_all(tmp_path / "link")
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "config.yaml").touch()
    for folder in (run.folder.parent, tmp_path, tmp_path / "project"):
        with pytest.raises(UserError, match="neither a run's folder nor a sweep's"):
            remove_all(folder)
    assert run.is_complete()
    assert os.listdir(tmp_path / "project") == ["config.yaml"]


def test_nothing_of_a_sweep_is_removed_while_a_folder_in_it_cannot_be_read(
    make_run: MakeRun, make_sweep: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(1)
    hurt = make_run(2).folder
    sweep, scan = make_sweep(), os.scandir
    before = everything(sweep)

    def scandir(path: Any = ".") -> Any:
        if os.fspath(path) == str(hurt):
            raise OSError(errno.EIO, "Input/output error")
        return scan(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", scandir)
        for folder in (sweep, hurt):
            with pytest.raises(UserError, match="000000000002: Input/output error; nothing was"):
                remove_all(folder)
    assert everything(sweep) == before


@pytest.mark.parametrize(("where", "word"), [(".", "."), ("checkpoints", "..")])
@pytest.mark.parametrize("lost", ["", "config.yaml"])
def test_the_folder_in_which_the_user_is_can_be_removed(
    tmp_path: Path, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, where: str, word: str,
    lost: str,
) -> None:
    run = make_run(1)
    run.checkpoints.mkdir()
    if lost:
        (run.folder / lost).unlink()
    monkeypatch.chdir(run.folder / where)
    folder = named(word, tmp_path / "runs")
    assert (folder, check_removable(folder)) == (run.folder, [run])
    assert remove_all(folder) == []
    assert not run.folder.exists()


def test_a_run_that_is_named_along_with_its_sweep_is_removed_once(
    tmp_path: Path, make_run: MakeRun, make_sweep: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    run, other = make_run(1).folder, make_run(2, group="others").folder
    sweep = make_sweep()
    targets = [Path("runs/toys"), run, sweep, other, Path("runs/others", other.name)]
    assert [one.resolve() for one in outermost(targets)] == [sweep, other]
