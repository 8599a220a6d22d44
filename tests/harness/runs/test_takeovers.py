"""What a run hands to another: its checkpoint, its log, and the files that the experiment names."""

import os
from pathlib import Path

import pytest

from harness.base.files import read_json, write_json
from harness.runs import takeovers
from harness.runs.run import Run
from tests.disk import IMAGES, Disk


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
    source, run = trained(tmp_path / "disk", "good"), trained(tmp_path / "disk", "bad")
    disk, images = Disk(tmp_path / "disk"), list[Path]()

    def crash() -> None:
        for kind in IMAGES:
            images.append(tmp_path / f"{len(images)}")
            disk.image(kind, images[-1])

    with disk.watch(crash):
        takeovers.export(source, stage="fit", epoch=1, score=0.5, carried_files=("notes.txt",))
        (source.folder / "notes.txt").write_text("later")
        takeovers.plan(run, of=source, epoch=1, settings={})
        takeovers.carry_out(run)
        crash()
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    seen = []
    for image in images:
        left = Run(image / "bad")
        if takeovers.is_planned(left):
            takeovers.carry_out(left)
        words = {left.metrics()[0]["word"], (left.folder / "notes.txt").read_text()}
        words |= {"good"} if takeovers.changes(left) else {"bad"}
        assert len(words) == 1, image
        state = read_json(left.checkpoints / "fit-0002-000000" / "state.json")
        assert state["signature"] == "bad"
        seen += words
    assert seen.count("good") > 40
    assert seen[-len(IMAGES) :] == ["good"] * len(IMAGES)
