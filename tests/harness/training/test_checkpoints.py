"""Checkpoints are whole, damaged ones are named and never loaded, and a resume takes the newest."""

import json
import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from harness.base.errors import UserError
from harness.training import checkpoints, ranks
from harness.training.checkpoints import Progress
from tests.harness.training.test_engine_state import (
    assert_same,
    content,
    start,
    train,
)

# --- what runs on the ranks ---


def save_often(folder: str) -> list[list[str]]:
    """Save at five points, with what a killed writer left; returns the folder after each."""
    engine = start(0)
    listings = []
    with checkpoints.CheckpointWriter(Path(folder), signature="a run") as writer:
        for step in range(5):
            os.makedirs(f"{folder}/.toy-killed.tmp", exist_ok=True)
            writer.save(engine, Progress("toy", 1, step, 0))
            writer.finish()
            listings.append(sorted(os.listdir(folder)))
    engine.destroy()
    return listings


def save_scores(folder: str, scores: list[float | None]) -> list[list[str]]:
    """Save with each score in turn; returns which checkpoints are there after each."""
    engine = start(0)
    listings = []
    with checkpoints.CheckpointWriter(Path(folder), signature="a run") as writer:
        for step, score in enumerate(scores):
            writer.save(engine, Progress("toy", 1, step, 0), score)
            writer.finish()
            listings.append(sorted(p.name[-1] for p in Path(folder).iterdir() if p.is_dir()))
    engine.destroy()
    return listings


def draw_on(folder: str, resume: bool) -> list[float]:
    """Draw from every global generator, after saving or after restoring; each rank its own."""
    engine = start(0)
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(7 + ranks.rank() + 100 * resume)
    random.gauss(0, 1)  # half a pair is kept for the next call
    np.random.standard_normal()  # noqa: NPY002
    if resume:
        found = checkpoints.latest(Path(folder), signature="a run")
        assert found is not None
        checkpoints.restore(found[0], engine)
    else:
        with checkpoints.CheckpointWriter(Path(folder), signature="a run") as writer:
            writer.save(engine, Progress("toy", 1, 1, 0))
    engine.destroy()
    drawn = [random.gauss(0, 1), random.random()]
    drawn += [np.random.standard_normal(), np.random.rand()]  # noqa: NPY002
    return [*drawn, torch.rand(()).item(), torch.randn(()).item()]


def save_on_a_full_disk(folder: str) -> str:
    """Save where no file may grow beyond 300 bytes; returns what is said."""
    import resource

    engine = start(0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))
    try:
        with checkpoints.CheckpointWriter(Path(folder), signature="a run") as writer:
            writer.save(engine, Progress("toy", 9, 9, 0))
    except UserError as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        engine.destroy()
    return "nothing was raised"


def refusal(path: str, **options: Any) -> str:
    """What restoring the checkpoint at `path` says, with every way to unpickle shut."""

    def shut(*_: Any, **__: Any) -> None:
        raise AssertionError("something was unpickled")

    engine = start(0, **options)
    opened = pickle.load, pickle.loads, pickle.Unpickler, torch.load
    pickle.load = pickle.loads = pickle.Unpickler = torch.load = shut  # type: ignore[misc,assignment]
    try:
        checkpoints.restore(Path(path), engine)
    except UserError as error:
        return str(error)
    finally:
        pickle.load, pickle.loads, pickle.Unpickler, torch.load = opened  # type: ignore[misc]
        engine.destroy()
    return "restored"


# --- what is written ---


def test_the_place_in_the_run_is_told_as_it_was_saved(one_rank: Any, tmp_path: Path) -> None:
    one_rank(train, to=tmp_path, first=0, last=2, zero=0)
    path, at = checkpoints.latest(tmp_path, signature="a run") or pytest.fail("none found")
    assert path == tmp_path / "toy-0001-000002"
    assert at == Progress("toy", 1, 2, 4, {"loss": 0.1}, 2)


def test_the_two_newest_stay_and_what_killed_writers_left_goes(
    one_rank: Any, tmp_path: Path
) -> None:
    (listings,) = one_rank(save_often, folder=tmp_path)
    names = [f"toy-0001-{step:06d}" for step in range(5)]
    assert listings == [
        ["latest.json", *names[max(0, step - 1) : step + 1]] for step in range(5)
    ]


def test_the_best_stays_besides_the_two_newest(one_rank: Any, tmp_path: Path) -> None:
    (listings,) = one_rank(
        save_scores, folder=tmp_path, scores=[0.3, 0.5, None, 0.4, 0.5, 0.2, 0.6, None]
    )
    assert ["".join(names) for names in listings] == [
        "0", "01", "12", "123", "134", "145", "56", "67",
    ]
    best, score = checkpoints.best(tmp_path) or pytest.fail("none found")
    assert (best.name, score) == ("toy-0001-000006", 0.6)


def test_global_generators_of_every_rank_go_on_where_they_were(
    two_ranks: Any, one_rank: Any, tmp_path: Path
) -> None:
    drawn = two_ranks(draw_on, folder=tmp_path, resume=False)
    assert drawn[0] != drawn[1]
    assert two_ranks(draw_on, folder=tmp_path, resume=True) == drawn
    assert one_rank(draw_on, folder=tmp_path, resume=True) == drawn[:1]


def test_a_checkpoint_of_before_generators_were_kept_goes_on(saved: Path, one_rank: Any) -> None:
    path = saved / "toy-0001-000002"
    (path / "rng.safetensors").unlink()
    assert one_rank(refusal, path=path) == ["restored"]


def test_a_full_disk_is_told_and_leaves_the_old_checkpoint(one_rank: Any, tmp_path: Path) -> None:
    one_rank(train, to=tmp_path, first=0, last=1, zero=0)
    before = content(tmp_path)
    (message,) = one_rank(save_on_a_full_disk, folder=tmp_path)
    assert message.startswith(f"{tmp_path}: the checkpoint cannot be written: ")
    assert "too large" in message
    assert_same(content(tmp_path), before)
    assert sorted(os.listdir(tmp_path)) == ["latest.json", "toy-0001-000001"]


# --- what cannot be gone on from ---


@pytest.fixture
def saved(one_rank: Any, tmp_path: Path) -> Path:
    """A folder with one checkpoint."""
    one_rank(train, to=tmp_path, first=0, last=2, zero=0)
    return tmp_path


def refused(folder: Path, signature: str = "a run") -> str:
    with pytest.raises(UserError) as caught:
        checkpoints.latest(folder, signature=signature)
    return str(caught.value)


def test_no_checkpoint_at_all_is_a_start(tmp_path: Path) -> None:
    assert checkpoints.latest(tmp_path / "missing", signature="a run") is None
    (tmp_path / ".toy-0001-000002.killed.tmp").mkdir()
    assert checkpoints.latest(tmp_path, signature="a run") is None


@pytest.mark.parametrize("text", [None, "", "{}", '{"name": "toy-0009-000009"}', "[]"])
def test_a_pointer_to_nothing_leaves_the_newest(
    one_rank: Any, tmp_path: Path, text: str | None
) -> None:
    one_rank(save_often, folder=tmp_path)
    pointer = tmp_path / "latest.json"
    pointer.unlink() if text is None else pointer.write_text(text)
    path, at = checkpoints.latest(tmp_path, signature="a run") or pytest.fail("none found")
    assert (path.name, at.step) == ("toy-0001-000004", 4)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "a bit of the weights is flipped": lambda path: flip(path / "weights.safetensors"),
    "the moments are cut short": lambda path: os.truncate(path / "moments.safetensors", 100),
    "the weights are missing": lambda path: (path / "weights.safetensors").unlink(),
    "the state is empty": lambda path: (path / "state.json").write_text(""),
    "the state has no signature": lambda path: drop(path / "state.json", "signature"),
    "the state has no progress": lambda path: drop(path / "state.json", "progress"),
    "the state has no checksum": lambda path: drop(path / "state.json", "checksum"),
    "the step is another": lambda path: edit(path / "state.json", '"step": ', '"step": 1'),
    "a moment's count is another": lambda path: edit(path / "state.json", '.bias": ', '.bias": 1'),
}


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)


def edit(file: Path, text: str, other: str) -> None:
    content = file.read_text()
    assert text in content
    file.write_text(content.replace(text, other))


def drop(file: Path, key: str) -> None:
    state = json.loads(file.read_text())
    del state[key]
    file.write_text(json.dumps(state))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_taken(
    one_rank: Any, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    one_rank(save_often, folder=tmp_path)
    DAMAGES[damage](tmp_path / "toy-0001-000004")
    path, at = checkpoints.latest(tmp_path, signature="a run") or pytest.fail("none found")
    assert (path.name, at.step) == ("toy-0001-000003", 3)
    (message,) = caplog.messages
    assert message.startswith(f"{tmp_path}/toy-0001-000004: cannot be read: ")
    assert message.endswith("; resuming from toy-0001-000003")


@pytest.mark.parametrize("damage", DAMAGES)
def test_when_all_checkpoints_are_damaged_nothing_starts_over(saved: Path, damage: str) -> None:
    DAMAGES[damage](saved / "toy-0001-000002")
    message = refused(saved)
    assert message.startswith(f"{saved}/toy-0001-000002: cannot be read: ")
    assert message.endswith(f"delete the folder {saved} to start over")


def test_another_runs_checkpoint_is_refused(saved: Path) -> None:
    assert refused(saved, "b run") == (
        f"{saved}/toy-0001-000002: written by run a run, not by b run"
    )


@pytest.mark.parametrize("name", ["weights.safetensors", "moments.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "empty", "missing", "pickle"])
def test_a_damaged_file_is_named_and_nothing_is_unpickled(
    saved: Path, one_rank: Any, name: str, damage: str
) -> None:
    path = saved / "toy-0001-000002"
    content_before = (path / name).read_bytes()
    if damage == "missing":
        (path / name).unlink()
    else:
        pickled = pickle.dumps({"weights": np.zeros(3)})
        (path / name).write_bytes(
            {"cut": content_before[:-40], "empty": b"", "pickle": pickled}[damage]
        )
    (message,) = one_rank(refusal, path=path)
    assert message.startswith(f"{path / name}: cannot be read: ")


def test_restoring_unpickles_nothing(saved: Path, one_rank: Any) -> None:
    assert one_rank(refusal, path=saved / "toy-0001-000002") == ["restored"]


def test_other_shapes_are_named_with_both(saved: Path, one_rank: Any) -> None:
    path = saved / "toy-0001-000002"
    assert one_rank(refusal, path=path, width=7) == [
        f"{path}: does not fit this run: first.bias is (6,) in the checkpoint and "
        "(7,) here (6 tensors differ)"
    ]


def test_a_checkpoint_without_a_parameters_moments_is_refused(saved: Path, one_rank: Any) -> None:
    from safetensors.numpy import save_file

    path = saved / "toy-0001-000002"
    moments = load_file(path / "moments.safetensors")
    del moments["last.bias.exp_avg"]
    save_file(moments, path / "moments.safetensors")
    (message,) = one_rank(refusal, path=path)
    assert message == f"{path}/moments.safetensors: has no last.bias.exp_avg"


def test_what_came_after_the_point_of_a_resume_does_not_count_as_newer(
    one_rank: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one_rank(save_often, folder=str(tmp_path))
    before, damaged = sorted(p for p in tmp_path.glob("[!.]*") if p.is_dir())
    flip(damaged / "weights.safetensors")
    found = checkpoints.latest(tmp_path, signature="a run")
    assert found is not None
    assert found[0] == before
    checkpoints.remove_newer(before)
    assert [p for p in tmp_path.glob("[!.]*") if p.is_dir()] == [before]
    assert f"{damaged} is removed: its steps are trained again" in caplog.text


def test_a_damaged_best_checkpoint_is_told_and_left_out(
    one_rank: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one_rank(save_scores, folder=str(tmp_path), scores=[0.1, 0.9, 0.2, 0.3])
    found = checkpoints.best_weights(tmp_path, signature="a run")
    assert found is not None
    path, score, weights = found
    assert score == 0.9
    assert weights.keys() == checkpoints.read_tensors(path / "weights.safetensors").keys()
    flip(path / "weights.safetensors")
    assert checkpoints.best_weights(tmp_path, signature="a run") is None
    assert "the best checkpoint is ignored, it cannot be read" in caplog.text


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"name": "toy-0001-000001", "score": 9.0}', '{"name": "x", "score": 0.9}',
     '{"name": "..", "score": 9}', '{"name": "toy-0001-000003", "score": 0.9}'],
)
def test_a_damaged_pointer_to_the_best_checkpoint_loses_it_neither_now_nor_later(
    one_rank: Any, tmp_path: Path, text: str
) -> None:
    one_rank(save_scores, folder=str(tmp_path), scores=[0.1, 0.9, None, 0.3])
    (tmp_path / "best.json").write_text(text)
    found = checkpoints.best(tmp_path)
    assert found == (tmp_path / "toy-0001-000001", 0.9)
    one_rank(save_scores, folder=str(tmp_path), scores=[0.2])
    assert checkpoints.best(tmp_path) == found


def test_a_checkpoint_of_the_first_version_is_read(saved: Path) -> None:
    path = saved / "toy-0001-000002"
    for key in ("checksum", "score"):
        drop(path / "state.json", key)
    edit(path / "state.json", '"version": 2', '"version": 1')
    found = checkpoints.latest(saved, signature="a run")
    assert found is not None
    assert found[1].step == 2


def test_an_older_checkpoint_can_be_pointed_at(one_rank: Any, tmp_path: Path) -> None:
    one_rank(train, to=tmp_path, first=0, last=2, zero=0)
    one_rank(train, to=tmp_path, since=tmp_path, first=2, last=4, zero=0)
    shutil.rmtree(tmp_path / "toy-0001-000004")
    (tmp_path / "latest.json").write_text('{"name": "toy-0001-000002"}')
    one_rank(train, to=tmp_path / "again", since=tmp_path, first=2, last=4, zero=0)
    one_rank(train, to=tmp_path / "whole", first=0, last=4, zero=0)
    assert_same(content(tmp_path / "again"), content(tmp_path / "whole"))
