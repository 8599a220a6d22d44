"""Curves: which numbers of a line, by which names, and how writers learn of a run's end."""

from contextlib import nullcontext
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness.base.errors import UserError
from harness.runs.run import Run
from harness.training import writers
from harness.training.about import About
from harness.training.writers import TensorBoardWriter, finish_curves, open_writers, scalars_of

ABOUT = About({"seed": 1})


def test_every_number_of_a_line_but_the_step_has_a_curve() -> None:
    line = {
        "kind": "epoch", "stage": "second", "epoch": 3, "step": 12, "loss": 2.5,
        "losses": {"fit": 1.0, "size": 1.5}, "lr": 0.1, "images_per_s": 9.0, "memory_gb": 1.0,
        "validation": {"accuracy": 0.5, "recall": {"1": 0.75}}, "other": {"margin": 1.0},
    }
    assert scalars_of(line) == {
        "second/loss": 2.5, "second/lr": 0.1, "second/losses/fit": 1.0, "second/epoch": 3,
        "second/losses/size": 1.5, "second/images_per_s": 9.0, "second/memory_gb": 1.0,
        "validation/accuracy": 0.5, "validation/recall/1": 0.75, "other/margin": 1.0,
    }


def test_tensorboard_shows_each_step_of_a_resumed_run_once_as_the_last_attempt_had_it(
    tmp_path: Path,
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    attempts = [
        [("first", step, 1.0) for step in range(1, 8)],
        [("first", 8, 2.0), ("second", 1, 2.0), ("second", 2, 2.0), ("second", 3, 2.0)],
        [("second", 2, 3.0), ("second", 4, 3.0)],  # killed after step 1, and another log_every
    ]
    for lines in attempts:
        writer = TensorBoardWriter(tmp_path, About({}))
        for stage, step, value in lines:
            writer.write({f"{stage}/loss": value, "validation/mAP": value}, stage, step)
        writer.close(failed=True)
    shown = {
        "first": [*((step, 1.0) for step in range(1, 8)), (8, 2.0)],
        "second": [(1, 2.0), (2, 3.0), (4, 3.0)],
    }
    for stage, points in shown.items():
        board = EventAccumulator(str(tmp_path / stage))
        board.Reload()
        for name in (f"{stage}/loss", "validation/mAP"):
            assert [(event.step, event.value) for event in board.Scalars(name)] == points


def test_folders_for_tensorboard_tell_settings_and_a_resumed_run_keeps_its_own(
    tmp_path: Path,
) -> None:
    (tmp_path / "first").mkdir()  # of an earlier version
    for label in ("lr=0.1 file=a/b", "lr=0.1 size=2 file=a/b"):  # another key is searched now
        writer = TensorBoardWriter(tmp_path, About({}, label))
        for stage in ("first", "second"):
            writer.write({f"{stage}/loss": 1.0}, stage, 1)
        writer.close(failed=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "first", "second lr=0.1 file=a-b"
    ]


def test_tensorboard_gets_hyperparameters_scores_and_images_of_the_last_attempt_that_finished(
    tmp_path: Path,
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    settings = {"a": {"lr": 0.1, "kind": "x", "is_on": True, "none": None, "sizes": [1, 2]}}
    writer = TensorBoardWriter(tmp_path, About(settings, "lr=0.1"))
    picture = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    for score in (0.25, 0.5):
        finish_curves((writer,), {"result/accuracy": score}, lambda: {"seen": picture})
    board = EventAccumulator(str(tmp_path / "result lr=0.1"))
    board.Reload()
    assert [event.value for event in board.Scalars("result/accuracy")] == [0.5]
    [image] = board.Images("seen")
    assert np.array_equal(np.asarray(Image.open(BytesIO(image.encoded_image_string))), picture)

    def about(tag: str) -> HParamsPluginData:
        return HParamsPluginData.FromString(
            board.SummaryMetadata(f"_hparams_/{tag}").plugin_data.content)

    found = about("session_start_info").session_start_info.hparams
    assert {key: getattr(value, value.WhichOneof("kind")) for key, value in found.items()} == {
        "a.lr": 0.1, "a.kind": "x", "a.is_on": "True", "a.none": "None", "a.sizes": "[1, 2]"
    }
    metrics = about("experiment").experiment.metric_infos
    assert [metric.name.tag for metric in metrics] == ["result/accuracy"]


def test_a_run_whose_images_cannot_be_drawn_or_written_is_not_failed_by_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Writer:
        def finish(self, scores: Any, images: Any) -> None:
            given.append((scores, images))
            raise OSError(28, "No space left on device")

    def draw() -> Any:
        raise IndexError("odd features")

    given: list[Any] = []
    finish_curves((Writer(),), {"a": 1.0}, draw)  # type: ignore[arg-type]
    assert given == [({"a": 1.0}, {})]
    assert "no images among the curves: IndexError('odd features')" in caplog.text
    assert "no scores among the curves: OSError(28, 'No space left on device')" in caplog.text
    finish_curves((), {}, draw)  # nothing is drawn for nobody


class Remembering:
    """Stands in for every writer."""

    ends: list[tuple[tuple[Any, ...], bool]]

    def __init__(self, *given: Any) -> None:
        self.given = given

    def close(self, *, failed: bool) -> None:
        type(self).ends.append((self.given, failed))


@pytest.mark.parametrize("failed", [False, True])
def test_writers_are_closed_however_the_run_ends_and_are_told_which(
    monkeypatch: pytest.MonkeyPatch, failed: bool
) -> None:
    Remembering.ends = []
    for name in ("TensorBoardWriter", "WandbWriter"):
        monkeypatch.setattr(writers, name, Remembering)
    run = Run(Path("runs/a/b"))

    def train() -> None:
        with open_writers(run, tensorboard=True, wandb="persons", about=lambda: ABOUT) as opened:
            assert len(opened) == 2
            assert not Remembering.ends
            if failed:
                raise UserError("as it came")

    with pytest.raises(UserError, match="as it came") if failed else nullcontext():
        train()
    assert Remembering.ends == [
        ((run.tensorboard, ABOUT), failed), ((run, "persons", ABOUT), failed)
    ]


def test_nothing_is_opened_that_nobody_asked_for(tmp_path: Path) -> None:
    with open_writers(Run(tmp_path), tensorboard=False, wandb="", about=lambda: ABOUT) as opened:
        assert opened == ()
    assert not list(tmp_path.iterdir())


def test_only_the_first_rank_has_writers(two_ranks: Any, tmp_path: Path) -> None:
    assert two_ranks(count_writers, folder=tmp_path) == [1, 0]


def count_writers(folder: str) -> int:
    with open_writers(Run(Path(folder)), tensorboard=True, wandb="", about=lambda: ABOUT) as opened:
        return len(opened)


def test_a_line_with_odd_values_gives_the_numbers_that_it_has() -> None:
    line = {"stage": "s", "loss": "x", "lr": True, "losses": {"a": 1.5, "b": None}, "m": {"n": 2}}
    assert scalars_of(line) == {"s/losses/a": 1.5, "m/n": 2}
    assert scalars_of({"stage": "s", "losses": 5}) == {"s/losses": 5}
