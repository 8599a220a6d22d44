"""What is reclaimed, in bytes, and what stays because a run needs it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.cluster import pruning
from harness.cluster.records import new_record
from harness.listing import reclaim
from harness.listing.reclaim import reclaimable
from harness.runs.run import Run
from svll.reuse.unneeded import add_shared
from tests.harness.listing.conftest import MakeRun

MIB = 2**20


def fill(folder: Path) -> Path:
    """Put a file of one MiB into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "file").write_bytes(b"x" * MIB)
    return folder


@pytest.fixture
def submitted() -> Callable[[Run], list[Path]]:
    """Leave the job folder and the frozen code of a run's submission."""

    def left(run: Run) -> list[Path]:
        sweep = run.folder.parent
        code = fill(sweep / "code" / f"{run.signature[::-1]}")
        record = new_record(sweep, "local", [run.signature], code=str(code), workers=1)
        record.write("submitted")
        return [fill(Path(record.folder)), code]

    return left


def test_what_complete_runs_have_used_is_reclaimed_to_the_byte(
    tmp_path: Path, make_run: MakeRun, make_sweep: Callable[..., Path],
    submitted: Callable[[Run], list[Path]],
) -> None:
    run, runs = make_run(1), tmp_path / "runs"
    spare = [*submitted(run), fill(run.checkpoints / "stage2-0002-000000").parent,
             fill(runs / "cache" / "prompts" / "key"), fill(runs / "cache" / "data" / "world")]
    make_sweep()
    found, open_runs = reclaimable([runs])
    add_shared(runs, open_runs, found)
    assert [(kind, count) for kind, count, _ in found.table()] == [
        ("job folders", 1), ("frozen code", 1), ("checkpoints", 1), ("shared stage 1", 1),
        ("made data", 1)]
    before = shutil.disk_usage(tmp_path).free
    assert 5 * MIB < found.bytes() < 5 * MIB + 100_000
    assert before - shutil.disk_usage(tmp_path).free < MIB  # nothing was deleted so far
    assert found.delete() == []
    assert [path for path in spare if path.exists()] == []
    assert run.is_complete()
    assert reclaimable([runs])[0].table() == []


@pytest.mark.parametrize("state", ["new", "submitted", "running", "stopped", "failed"])
def test_a_run_that_can_go_on_keeps_all_that_it_needs(
    tmp_path: Path, make_run: MakeRun, make_sweep: Callable[..., Path],
    submitted: Callable[[Run], list[Path]], state: str,
) -> None:
    done, going, runs = make_run(1), make_run(2, state), tmp_path / "runs"
    spare, needed = submitted(done), submitted(going)
    needed += [fill(going.checkpoints / "stage2-0001-000000"),
               fill(runs / "cache" / "prompts" / "key"), fill(runs / "cache" / "stage1"),
               fill(runs / "cache" / "data" / "world")]
    make_sweep()
    found, open_runs = reclaimable([runs])
    add_shared(runs, open_runs, found)
    assert open_runs == [going]
    assert any(f"stays for runs that are not complete: {going.name}" in one for one in found.kept)
    assert found.delete() == []
    assert all((path / "file").exists() for path in needed)
    assert not any(path.exists() for path in spare)


def test_checkpoints_stay_where_the_user_keeps_them_and_bytes_with_other_names_are_not_freed(
    tmp_path: Path, make_run: MakeRun
) -> None:
    kept, other = make_run(1), make_run(2)
    kept.config_file.write_text("run:\n  keep_checkpoints: true\n")
    for run in (kept, other):
        fill(run.checkpoints / "stage2-0002-000000")
    (tmp_path / "second name").hardlink_to(other.checkpoints / "stage2-0002-000000" / "file")
    found, _ = reclaimable([tmp_path / "runs"])
    assert found.paths("checkpoints") == [other.checkpoints]
    assert found.bytes() < 20_000
    assert found.kept == [f"{kept.name}: its checkpoints stay (run.keep_checkpoints: true)"]


def test_what_is_spare_is_found_once_and_looked_for_again_before_it_is_deleted(
    tmp_path: Path, make_run: MakeRun, make_sweep: Callable[..., Path],
    submitted: Callable[[Run], list[Path]], monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks = []

    def counted(folder: Path, days: float) -> list[Path]:
        looks.append(folder)
        return pruning.unneeded(folder, days)

    monkeypatch.setattr(reclaim, "unneeded", counted)
    run = make_run(1)
    submitted(run)
    make_sweep()
    found, _ = reclaimable([tmp_path / "runs"])
    shown = [found.paths(kind) for kind, _, _ in found.table()]
    assert (len(shown), len(looks), found.bytes() > 2 * MIB) == (2, 1, True)
    later, _ = submitted(run)  # nobody was asked about this job folder
    assert found.delete() == []
    assert not any(path.exists() for paths in shown for path in paths)
    assert later.exists()


def test_shared_files_stay_for_a_run_that_appears_while_the_user_is_asked(
    tmp_path: Path, make_run: MakeRun
) -> None:
    runs, _ = tmp_path / "runs", make_run(1)
    world = fill(runs / "cache" / "data" / "world")
    found, unfinished = reclaimable([runs])
    add_shared(runs, unfinished, found)
    assert found.paths("made data") == [world]
    make_run(2, "running")
    assert found.delete() == [f"{runs / 'cache'}: made data: it stays for runs that are not "
                              "complete: toys/000000000002"]
    assert (world / "file").exists()


def test_a_link_is_not_followed(tmp_path: Path, make_run: MakeRun) -> None:
    run = make_run(1)
    elsewhere = fill(tmp_path / "elsewhere")
    run.checkpoints.symlink_to(elsewhere)
    (tmp_path / "runs" / "cache").mkdir()
    (tmp_path / "runs" / "cache" / "data").symlink_to(elsewhere)
    found, open_runs = reclaimable([tmp_path / "runs"])
    add_shared(tmp_path / "runs", open_runs, found)
    assert (found.table(), found.delete()) == ([], [])
    assert (elsewhere / "file").exists()


def test_shared_files_that_are_being_made_stay(tmp_path: Path, make_run: MakeRun) -> None:
    from harness.base.locks import held_lock

    make_run(1)
    stage1 = fill(tmp_path / "runs" / "cache" / "stage1")
    with held_lock(stage1 / "file.lock"):
        found, _ = reclaimable([tmp_path / "runs"])
        add_shared(tmp_path / "runs", [], found)
        assert found.paths("shared stage 1") == []
