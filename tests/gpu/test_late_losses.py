"""On a GPU the losses of a step are read one step late, and nothing is lost or logged twice."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.training import loop, ranks
from tests.gpu.emulator import Emulator
from tests.harness.training import test_loop
from tests.harness.training.test_loop import log_of, newest


@pytest.fixture
def train(gpu: Emulator, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """`train` of tests/harness/training/test_loop.py, on a GPU."""
    ranks.init_ranks()
    return test_loop.train


@pytest.mark.parametrize(
    ("disturbances", "options"),
    [
        ([], {"log_every": 1}),
        ([("stop", 1, 0), ("stop", 2, 1), ("cut", 2, 3)], {"log_every": 2}),
        ([("stop", 1, 1), ("stop", 3, 4)], {"log_every": 1, "accumulation": 2}),
        ([("cut", 2, 3)], {"log_every": 2, "save_every_s": 0.0}),
    ],
)
def test_a_stage_on_a_gpu_logs_and_learns_what_it_does_on_the_cpu_however_it_is_cut_off(
    one_rank: Any, train: Callable[..., dict[str, Any]], tmp_path: Path,
    disturbances: list[tuple[str, int, int]], options: dict[str, Any],
) -> None:
    (whole,) = one_rank(test_loop.train, folder=tmp_path / "cpu", **options)
    for kind, epoch, step in disturbances:
        disturbance = {"kind": kind, "epoch": epoch, "step": step}
        found = train(str(tmp_path / "gpu"), disturbance=disturbance, **options)
        again = one_rank(
            test_loop.train, folder=tmp_path / "same", disturbance=disturbance, **options
        )
        assert found["ending"] == again[0]["ending"]
    found = train(str(tmp_path / "gpu"), **options)
    assert found["ending"] == "done"
    assert found["weights"] == whole["weights"]
    assert log_of(tmp_path / "gpu") == log_of(tmp_path / "cpu")


@pytest.mark.parametrize(("step", "later"), [(1, 1), (3, 0)])
def test_a_loss_that_is_not_finite_ends_the_training_one_step_later_but_before_it_is_saved(
    train: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    step: int, later: int,
) -> None:
    made: list[tuple[int, int]] = []
    before = loop.train_step

    def noted(stage: loop.Stage, engine: Any, batch: Any, at: Any, **more: Any) -> Any:
        made.append((at.epoch, at.step))
        return before(stage, engine, batch, at, **more)

    monkeypatch.setattr(loop, "train_step", noted)
    found = train(str(tmp_path), disturbance={"kind": "nan", "epoch": 2, "step": step})
    assert found["ending"] == (
        f"UserError: stage1, epoch 2, step {step + 1}: fit, size is nan; lower the learning rate, "
        "or use engine.precision=fp32"
    )
    assert made[-1] == (2, step + later)  # an epoch's last step is read before the epoch ends
    assert newest(tmp_path) == "stage1-0002-000000"
    assert all(math.isfinite(line["loss"]) for line in log_of(tmp_path))


def test_a_checkpoint_within_an_epoch_is_made_of_steps_whose_losses_are_known(
    train: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    disturbance = {"kind": "nan", "epoch": 2, "step": 1}
    found = train(str(tmp_path), disturbance=disturbance, save_every_s=0.0)
    assert found["ending"].startswith("UserError: stage1, epoch 2, step 2: ")
    assert newest(tmp_path) == "stage1-0002-000001"
