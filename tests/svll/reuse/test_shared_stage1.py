"""Stage 1 is trained once for runs whose stage 1 is the same, which end as if each had done so."""

import errno
import json
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from harness.config.build import build
from harness.config.recipes import read_recipe
from harness.runs import stopping
from harness.runs.run import Run
from harness.runs.stopping import Stopped
from harness.training import checkpoints, loop
from svll.base.run_files import TAKEN, prompts_file, taken_epochs
from svll.config import Config
from svll.experiment import run as experiment
from svll.reuse import shared_stage1 as shared_prompts
from svll.reuse.shared_stage1 import prompts_key
from tests.disk import IMAGES, Disk
from tests.svll.test_experiment import make_run

OTHER_STAGE2 = ("stage2.vss_weight=0", "stage2.lr=1e-4", "run.keep_checkpoints=true")


def numbers(run: Run) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in loop.MEASURED} for line in run.metrics()]


def shared_folder(run: Run) -> Path:
    [found] = (run.folder.parents[1] / "cache" / "prompts").iterdir()
    return found


def assert_ends_alike(run: Run, other: Run) -> None:
    assert numbers(run) == numbers(other)
    mine, theirs = load_file(run.weights_file), load_file(other.weights_file)
    assert mine.keys() == theirs.keys()
    assert all(mine[name].equal(value) for name, value in theirs.items())
    prompts = load_file(prompts_file(run))["tokens"]
    assert prompts.equal(load_file(prompts_file(other))["tokens"])
    assert run.result()["mAP"] == other.result()["mAP"]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that has trained its stage 1 itself."""
    run = make_run(tmp_path_factory.mktemp("first"), "stage2.epochs=1")
    experiment(run)
    return run


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with another stage 2, likewise."""
    run = make_run(tmp_path_factory.mktemp("alone"), *OTHER_STAGE2)
    experiment(run)
    return run


@pytest.fixture
def beside(first: Run, tmp_path: Path) -> Run:
    """The same run where the stage 1 of `first` is kept."""
    shutil.copytree(first.folder.parents[1] / "cache", tmp_path / "cache")
    return make_run(tmp_path, *OTHER_STAGE2)


def test_a_run_takes_the_stage_1_of_another_and_ends_as_if_it_had_trained_it(
    first: Run, alone: Run, beside: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []
    step = loop.train_step

    def watched(stage: loop.Stage, *rest: Any, **more: Any) -> dict[str, float]:
        trained.append(stage.name)
        return step(stage, *rest, **more)

    monkeypatch.setattr(loop, "train_step", watched)
    reported: list[tuple[str, int]] = []
    experiment(beside, lambda line: reported.append((line["stage"], line["epoch"])))
    assert set(trained) == {"stage2"}
    assert reported == [("stage1", 1), ("stage1", 2), ("stage2", 1), ("stage2", 2)]
    assert_ends_alike(beside, alone)
    assert (taken_epochs(beside), taken_epochs(first), taken_epochs(alone)) == (2, 0, 0)
    assert json.loads((beside.folder / TAKEN).read_text()) == {"of": first.signature, "epochs": 2}


def test_a_run_stopped_while_taking_over_resumes_to_the_same_end(
    alone: Run, beside: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop_after(line: dict[str, Any]) -> None:
        stopping.request_stop()

    monkeypatch.setattr(stopping, "_requested", False)
    with pytest.raises(Stopped, match="while taking over"):
        experiment(beside, stop_after)
    assert [line["epoch"] for line in beside.metrics() if line["kind"] == "epoch"] == [1]
    monkeypatch.undo()
    experiment(beside)
    assert_ends_alike(beside, alone)


def test_a_run_that_has_begun_trains_on_by_itself(
    first: Run, alone: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path, *OTHER_STAGE2)
    asked = iter([False, False])
    monkeypatch.setattr(loop, "stop_requested", lambda: next(asked, True))
    with pytest.raises(Stopped):
        experiment(run)
    monkeypatch.undo()
    kept = shared_folder(first)
    shutil.copytree(kept, tmp_path / "cache" / "prompts" / kept.name)
    experiment(run)
    assert taken_epochs(run) == 0
    assert_ends_alike(run, alone)


def test_a_damaged_stage_1_is_reported_and_made_again(
    alone: Run, beside: Run, caplog: pytest.LogCaptureFixture
) -> None:
    kept = shared_folder(beside)
    (kept / "checkpoint" / "weights.safetensors").unlink()  # a link: others have that file too
    (kept / "checkpoint" / "weights.safetensors").write_bytes(b"nothing")
    experiment(beside)
    assert f"{kept}: is damaged, so stage 1 is trained again" in caplog.text
    assert taken_epochs(beside) == 0
    assert_ends_alike(beside, alone)
    assert json.loads((kept / "about.json").read_text())["of"] == beside.signature


@pytest.mark.parametrize("what", ["a line too few", "a line cut short", "no log", "unreadable"])
def test_what_cannot_be_taken_is_left_alone_by_the_run(
    first: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    what: str,
) -> None:
    kept = shutil.copytree(shared_folder(first), tmp_path / "kept")
    lines = (kept / "metrics.jsonl").read_text().splitlines(keepends=True)
    (kept / "metrics.jsonl").unlink()
    if what == "unreadable":
        def refuse(source: Path, target: Path) -> None:
            raise OSError(errno.ESTALE, "Stale file handle")

        monkeypatch.setattr(shared_prompts, "link_folder", refuse)
    elif what != "no log":
        text = "".join(lines[:-1]) if what == "a line too few" else "".join(lines)[:-9]
        (kept / "metrics.jsonl").write_text(text)
    run = Run(tmp_path / "run")
    shared_prompts.adopt_stage1(run, kept, lambda line: pytest.fail("it was recorded"))
    assert not (run.folder / TAKEN).exists()
    assert not list(run.checkpoints.glob("*"))
    damaged = what in ("a line too few", "a line cut short")
    assert kept.exists() != damaged
    assert ("is damaged" if damaged else "cannot be read") in caplog.text
    assert sorted(path.name for path in run.folder.iterdir()) == ["metrics.jsonl"]


def test_a_stage_1_is_whole_for_other_runs_after_a_crash_of_the_machine_at_any_moment(
    first: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    root, images = tmp_path / "disk", list[Path]()
    source, kept = Run(root / first.signature), shared_folder(first)
    shutil.copytree(kept / "checkpoint", source.checkpoints / "stage1-0003-000000")
    shutil.copy(kept / "metrics.jsonl", source.metrics_file)
    disk = Disk(root)

    def crash() -> None:
        for kind in IMAGES:
            images.append(tmp_path / f"{len(images)}")
            disk.image(kind, images[-1])

    def adopted(root: Path) -> bool:
        """Whether the run there goes on after another's stage 1."""
        run = Run(root / "run")
        shared_prompts.adopt_stage1(run, root / "kept", run.log_metrics)
        lines = len(run.metrics())
        found = checkpoints.latest(run.checkpoints, signature="run", lines=lines)
        assert (lines, run.metrics()) == ((0, []) if found is None else
                                          (found[1].metric_lines, source.metrics()))
        return found is not None

    with disk.watch(crash):
        shared_prompts.share_stage1(source, root / "kept", epochs=2)
        assert adopted(root)
        crash()
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    there = [(image / "kept").exists() or (image / "run").exists() for image in images]
    assert [adopted(image) for image in images] == there
    assert there[-len(IMAGES) :] == [True] * len(IMAGES)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_what_changes_stage_1_or_its_log_has_another_name(first: Run) -> None:
    config = build(Config, read_recipe(first.config_file, Config))
    same = [
        replace(config, stage2=replace(config.stage2, lr=1.0, vss_weight=0.0, epochs=7)),
        replace(config, model=replace(config.model, image_head_init="torch")),
        replace(config, run=replace(config.run, runs="/elsewhere", keep_checkpoints=True)),
    ]
    other = [
        replace(config, seed=5), replace(config, engine=replace(config.engine, zero=1)),
        replace(config, stage1=replace(config.stage1, lss_weight=0.1)),
        replace(config, model=replace(config.model, prompt_tokens=3)),
        replace(config, data=replace(config.data, validation=0.5)),
        replace(config, engine=replace(config.engine, precision="bf16")),
        replace(config, run=replace(config.run, log_every=1)),
    ]
    key = prompts_key(config, "data", "weights")
    assert {prompts_key(one, "data", "weights") for one in same} == {key}
    names = [key, prompts_key(config, "data", "other weights")]
    names += [prompts_key(one, "data", "weights") for one in other]
    assert len(set(names)) == len(names)


def test_the_first_of_two_that_trained_it_at_the_same_time_is_kept(
    first: Run, tmp_path: Path
) -> None:
    kept = shared_folder(first)
    before = (kept / "about.json").read_text()
    shared_prompts.share_stage1(first, kept, epochs=2)
    assert (kept / "about.json").read_text() == before
    assert [path.name for path in kept.parent.iterdir()] == [kept.name]


def test_where_nothing_can_be_written_nothing_is_kept_and_no_run_ends(
    first: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "prompts"
    blocked.write_text("a file where the folder should be")
    shutil.copytree(shared_folder(first) / "checkpoint", tmp_path / "run" / "checkpoints" /
                    "stage1-0003-000000")
    shared_prompts.share_stage1(Run(tmp_path / "run"), blocked / "key", epochs=2)
    assert f"{blocked / 'key'}: stage 1 is not kept for other runs" in caplog.text


def test_a_stage_1_that_no_run_took_for_long_is_deleted_when_another_is_kept(
    first: Run, tmp_path: Path
) -> None:
    used, left = tmp_path / "prompts" / "used", tmp_path / "prompts" / "left"
    for folder in (used, left):
        shutil.copytree(shared_folder(first), folder)
        os.utime(folder, (1, 1))
    assert shared_prompts._copied(used, tmp_path / "own") is not None
    run = Run(tmp_path / "run")
    shutil.copytree(used / "checkpoint", run.checkpoints / "stage1-0003-000000")
    shared_prompts.share_stage1(run, used.with_name("new"), epochs=2)
    assert {path.name for path in used.parent.iterdir()} == {"used", "new"}
