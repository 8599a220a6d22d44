"""What a run hands to another: its checkpoint, its log, and the files that the experiment names."""

import os
from pathlib import Path

import pytest

from harness.base.errors import UserError
from harness.base.files import read_json, write_json, write_text
from harness.runs import takeovers
from harness.runs.run import Run
from tests.disk import IMAGES, INNER, Disk


def trained(folder: Path, word: str) -> Run:
    """A run after its first epoch, with two files of the experiment's own."""
    run = Run(folder / word)
    progress = {"stage": "fit", "epoch": 2, "step": 0, "metric_lines": 1}
    state = {"signature": word, "progress": progress}
    write_json(run.checkpoints / "fit-0002-000000" / "state.json", state)
    run.log_metrics({"kind": "epoch", "epoch": 1, "word": word})
    for name in ("vocabulary.txt", "notes.txt"):
        (run.folder / name).write_text(word)
    return run


def test_a_takeover_brings_the_files_that_the_experiment_names_and_no_others(
    tmp_path: Path,
) -> None:
    source, run = trained(tmp_path, "good"), trained(tmp_path, "bad")
    takeovers.export(
        source, stage="fit", epoch=1, score=0.5, carried_files=("vocabulary.txt", "absent.txt")
    )
    (source.folder / "vocabulary.txt").write_text("later")
    takeovers.plan(run, of=source, epoch=1, settings={})
    takeovers.carry_out(run)
    assert (run.folder / "vocabulary.txt").read_text() == "good"
    assert (run.folder / "notes.txt").read_text() == "bad"
    assert run.metrics() == [{"kind": "epoch", "epoch": 1, "word": "good"}]
    assert sorted(path.name for path in run.folder.iterdir()) == [
        "changes.json", "checkpoints", "metrics.jsonl", "notes.txt", "vocabulary.txt",
    ]


def test_a_takeover_is_whole_or_carried_out_again_after_a_crash_of_the_machine_at_any_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, run = trained(tmp_path / "source", "good"), trained(tmp_path / "disk", "bad")
    takeovers.export(source, stage="fit", epoch=1, score=0.5, carried_files=("notes.txt",))
    (source.folder / "notes.txt").write_text("later")
    disk, images = Disk(run.folder), list[Path]()

    def crash() -> None:
        for kind in IMAGES:
            images.append(tmp_path / f"{len(images)}" / run.signature)
            disk.image(kind, images[-1])

    with disk.watch(crash):
        takeovers.plan(run, of=source, epoch=1, settings={})
        takeovers.carry_out(run)
        images.append(tmp_path / "end" / run.signature)
        disk.image(INNER, images[-1])
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    seen = []
    for image in images:
        left = Run(image)
        if takeovers.is_planned(left):
            takeovers.carry_out(left)
        words = {left.metrics()[0]["word"], (left.folder / "notes.txt").read_text()}
        words |= {"good"} if takeovers.changes(left) else {"bad"}
        assert len(words) == 1, image
        state = read_json(left.checkpoints / "fit-0002-000000" / "state.json")
        assert state["signature"] == "bad"
        seen += words
    assert seen.count("good") > 40
    assert seen[-1] == "good"


def test_an_exported_state_outlasts_a_crash_of_the_machine(tmp_path: Path) -> None:
    source = trained(tmp_path, "good")
    disk = Disk(source.folder)
    with disk.watch(lambda: None):
        takeovers.export(source, stage="fit", epoch=1, score=0.5, carried_files=("notes.txt",))
        disk.image("nothing more", tmp_path / "left")
    left, whole = Run(tmp_path / "left").exports / "1", source.exports / "1"
    assert len(list(whole.iterdir())) == 4
    for file in whole.rglob("*.*"):
        assert (left / file.relative_to(whole)).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"changes": 5}', '{"changes": [{}]}',
                                  '{"changes": [{"epoch": 1, "settings": []}]}'])  # fmt: skip
def test_damaged_takeovers_of_a_run_are_named(tmp_path: Path, text: str) -> None:
    run = Run(tmp_path / "run")
    write_text(run.changes_file, text)
    with pytest.raises(UserError, match=r"changes\.json: cannot be read"):
        takeovers.changes(run)
