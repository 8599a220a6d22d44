"""What a list says of runs and sweeps, compared with what was written there."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.base.errors import UserError
from harness.base.files import read_json, write_json
from harness.base.locks import held_lock
from harness.cluster.local.place import worker_lock
from harness.cluster.records import new_record
from harness.listing.entries import (
    Entry,
    Metric,
    Wanted,
    age,
    chosen,
    in_bytes,
    list_entries,
)
from harness.listing.notes import change_note, change_tags
from tests.commands import as_nobody, open_folder
from tests.harness.listing.conftest import MakeRun

SCORE = Metric("score", "loss")


def by_name(entries: list[Entry]) -> dict[str, Entry]:
    return {one.name: one for one in entries}


def stopped_at(make_run: MakeRun, *scores: float) -> None:
    """Make a third run, which was stopped after epochs with these scores."""
    run = make_run(3, "stopped")
    for epoch, score in enumerate(scores):
        run.log_metrics({"kind": "epoch", "epoch": epoch, "score": score})


def test_runs_and_sweeps_are_listed_with_state_best_metric_and_notes(
    tmp_path: Path, make_run: MakeRun, make_sweep: Callable[..., Path]
) -> None:
    make_run(1, value=0.25)
    make_run(2, value=0.75)
    stopped_at(make_run, 0.1, 0.9, 0.4)
    make_run(4, "failed", error="no\nluck")
    alone = make_run(5, "running", group="alone")
    folder = make_sweep()
    change_tags(folder, ["old", "#good"])
    change_note(alone.folder, "half of\nthe data")
    found = by_name(list_entries([tmp_path / "runs"], SCORE))
    assert list(found) == ["toys", *(f"toys/{n:012x}" for n in (1, 2, 3, 4)), alone.name]
    assert {name: one.state for name, one in found.items()} == {
        "toys": "2 complete, 1 stopped, 1 failed", "toys/000000000001": "complete",
        "toys/000000000002": "complete", "toys/000000000003": "stopped",
        "toys/000000000004": "failed", "alone/000000000005": "interrupted",
    }
    assert [one.value for one in found.values()] == [0.75, 0.25, 0.75, 0.9, None, None]
    assert found["toys/000000000004"].fault == "no luck"
    assert (found["toys"].notes.line, found[alone.name].notes.line) == (
        "#old #good", "half of the data")
    assert json.loads(json.dumps(found["toys"].as_json()))["tags"] == ["old", "good"]


def test_the_best_is_the_least_where_the_sweep_says_so(
    make_run: MakeRun, make_sweep: Callable[..., Path]
) -> None:
    make_run(1, value=0.25)
    make_run(2, value=0.75)
    stopped_at(make_run, 0.5, 0.1, 0.4)
    sweep, *runs = list_entries([make_sweep(mode="min")], SCORE)
    assert (sweep.value, runs[2].value) == (0.25, 0.1)


def test_a_run_that_the_sweep_file_has_lost_is_marked_and_never_the_best(
    make_run: MakeRun, make_sweep: Callable[..., Path]
) -> None:
    make_run(1, value=0.25)
    make_run(2, value=0.75)
    folder = make_sweep()
    summary = read_json(folder / "sweep.json")
    summary["trials"][1]["dropped"] = 1
    write_json(folder / "sweep.json", summary)
    sweep, *runs = list_entries([folder], SCORE)
    assert (sweep.value, [one.in_file for one in runs]) == (0.25, [True, False])
    assert [one.remark for one in runs] == ["", "(no longer in the sweep file)"]


def test_sizes_are_those_of_the_disk_and_a_link_has_no_content(
    tmp_path: Path, make_run: MakeRun
) -> None:
    run = make_run(1)
    [before] = list_entries([run.folder], SCORE)
    (tmp_path / "large").write_bytes(b"x" * 2**20)
    (run.folder / "link").symlink_to(tmp_path / "large")
    (run.folder / "own").write_bytes(b"x" * 2**20)
    (run.folder / "again").hardlink_to(run.folder / "own")
    [after] = list_entries([run.folder], SCORE)
    assert 2**20 <= after.size - before.size < 2**20 + 2**14


@pytest.mark.parametrize("file", ["status.json", "result.json", "notes.json", "sweep.json"])
@pytest.mark.parametrize("content", [b"", b"[1]", b"\xff\0", b'{"state": 7, "trials": 3}'])
def test_damaged_files_are_named_and_all_other_runs_are_listed(
    tmp_path: Path, make_run: MakeRun, make_sweep: Callable[..., Path], file: str, content: bytes
) -> None:
    make_run(1, value=0.5)
    make_run(2, value=0.75)
    folder = make_sweep()
    place = folder if file == "sweep.json" else folder / f"{1:012x}"
    (place / file).write_bytes(content)
    found = by_name(list_entries([tmp_path / "runs"], SCORE))
    assert found["toys/000000000002"].value == 0.75
    hurt = found["toys" if file == "sweep.json" else "toys/000000000001"]
    is_fine = file in ("notes.json", "result.json") and content.startswith(b"{")
    assert (file in hurt.fault) != is_fine
    assert is_fine or file in ("notes.json", "sweep.json") or hurt.state == "unreadable"


def test_damaged_notes_are_told_of_and_change_neither_the_state_nor_the_best(
    make_run: MakeRun, make_sweep: Callable[..., Path]
) -> None:
    make_run(1, value=0.5)
    (make_run(2, value=0.75).folder / "notes.json").write_text("[1]")
    sweep, _, hurt = list_entries([make_sweep()], SCORE)
    assert (sweep.state, sweep.value) == ("2 complete", 0.75)
    assert (hurt.state, hurt.value) == ("complete", 0.75)
    assert "notes.json: cannot be read" in hurt.fault


def test_a_half_deleted_run_is_told_of(make_run: MakeRun) -> None:
    run = make_run(1, value=0.5)
    run.config_file.unlink()
    [one] = list_entries([run.folder.parent], SCORE)
    assert (one.state, one.fault) == ("complete", "config.yaml is missing")
    for file in run.folder.iterdir():
        file.unlink()
    [one] = list_entries([run.folder.parent], SCORE)
    assert (one.state, one.fault) == ("new", "config.yaml is missing")


def test_a_folder_that_one_may_not_read_is_told_of_and_others_are_listed() -> None:
    with open_folder() as folder:
        for number in (1, 2):
            run = folder / "toys" / f"{number:012x}"
            run.mkdir(parents=True)
            (run / "config.yaml").write_text("seed: 1\n")
        run.chmod(0)
        with as_nobody():
            one, two = list_entries([folder], SCORE)
    assert (one.state, two.state, two.fault) == ("new", "unreadable", "Permission denied")


def test_folders_of_other_things_are_no_runs(tmp_path: Path, make_run: MakeRun) -> None:
    run = make_run(1)
    runs = tmp_path / "runs"
    for other in ("cache/prompts/0123456789abcdef", "toys/jobs/0123456789",
                  "toys/code/0123456789ab/harness", "toys/.0123456789ab.x.tmp", "mine"):
        (runs / other).mkdir(parents=True)
    (runs / "mine" / "config.yaml").touch()
    (runs / "linked").symlink_to(run.folder.parent)
    assert [one.folder for one in list_entries([runs], SCORE)] == [run.folder]
    with pytest.raises(UserError, match=r"gone: no such folder; name a folder of runs"):
        list_entries([tmp_path / "gone"], SCORE)


def test_filters_keep_runs_and_the_sweeps_that_have_them(
    tmp_path: Path, make_run: MakeRun, make_sweep: Callable[..., Path]
) -> None:
    make_run(1, "failed")
    make_run(0x21, value=0.5)
    make_run(3, value=0.5, group="others")
    make_sweep()
    change_tags(tmp_path / "runs" / "others" / f"{3:012x}", ["kept"])
    entries = list_entries([tmp_path / "runs"], SCORE)

    def names(**wanted: object) -> list[str]:
        return [one.name for one in chosen(entries, Wanted(**wanted))]  # type: ignore[arg-type]

    assert names(states=["failed"]) == ["toys", "toys/000000000001"]
    assert names(names=["toys/*2?"]) == ["toys", "toys/000000000021"]
    assert names(tags=["kept"]) == ["others/000000000003"]
    assert names(since=time.time() + 60) == []
    assert len(names(since=time.time() - 60)) == 4


def test_a_sweep_with_the_tag_is_kept_with_its_runs(
    tmp_path: Path, make_run: MakeRun, make_sweep: Callable[..., Path]
) -> None:
    make_run(1, "failed")
    make_run(2, value=0.5)
    make_run(3, value=0.5, group="others")
    change_tags(make_sweep(), ["base"])
    (tmp_path / "runs" / "empty").mkdir()
    change_tags(make_sweep("empty"), ["base"])
    entries = list_entries([tmp_path / "runs"], SCORE)
    assert [one.name for one in chosen(entries, Wanted(tags=["base"]))] == [
        "empty", "toys", "toys/000000000001", "toys/000000000002"]
    failed = Wanted(states=["failed"], tags=["base"])
    assert [one.name for one in chosen(entries, failed)] == ["toys", "toys/000000000001"]


def test_a_run_that_waits_for_a_worker_that_is_gone_is_told_of(make_run: MakeRun) -> None:
    run = make_run(1, "submitted")
    sweep = run.folder.parent
    record = new_record(sweep, "local", [run.signature], workers=1)
    record.write("submitted")
    with held_lock(worker_lock(record.file, 0)):
        [one] = list_entries([sweep], SCORE)
        assert (one.state, one.fault) == ("submitted", "")
    [one] = list_entries([sweep], SCORE)
    assert (one.state, one.fault) == ("submitted", "its worker ended before it began")


def test_ages_and_sizes_are_short() -> None:
    now = time.time()
    assert [age(now - s) for s in (-5, 5, 61, 7300, 200_000)] == ["0s", "5s", "1m", "2h", "2d"]
    assert age(0) == ""
    assert [in_bytes(size) for size in (0, 999, 1500, 20_000_000, 3.14e9, 5e12, 5e15)] == [
        "0 B", "999 B", "1.5 kB", "20 MB", "3.1 GB", "5.0 TB", "5000 TB"]
