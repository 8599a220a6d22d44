"""Curves: which numbers of a line, by which names, and how writers learn of a run's end."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from harness.base.errors import UserError
from harness.runs.run import Run
from harness.training import writers
from harness.training.writers import TensorBoardWriter, open_writers, scalars_of


def test_curves_are_the_losses_the_learning_rate_and_the_metrics_to_be_shown() -> None:
    line = {
        "kind": "epoch", "stage": "second", "epoch": 3, "step": 12, "loss": 2.5,
        "losses": {"fit": 1.0, "size": 1.5}, "lr": 0.1, "images_per_s": 9.0, "memory_gb": 1.0,
        "validation": {"accuracy": 0.5, "recall": {"1": 0.75}}, "other": {"margin": 1.0},
    }
    assert scalars_of(line, ("validation.accuracy", "other.absent")) == {
        "second/loss": 2.5, "second/lr": 0.1, "second/losses/fit": 1.0,
        "second/losses/size": 1.5, "validation/accuracy": 0.5,
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
        writer = TensorBoardWriter(tmp_path)
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
        with open_writers(run, tensorboard=True, wandb="persons", config={"seed": 1}) as opened:
            assert len(opened) == 2
            assert not Remembering.ends
            if failed:
                raise UserError("as it came")

    with pytest.raises(UserError, match="as it came") if failed else nullcontext():
        train()
    assert Remembering.ends == [
        ((run.tensorboard,), failed), ((run, "persons", {"seed": 1}), failed)
    ]


def test_nothing_is_opened_that_nobody_asked_for(tmp_path: Path) -> None:
    with open_writers(Run(tmp_path), tensorboard=False, wandb="", config={}) as opened:
        assert opened == ()
    assert not list(tmp_path.iterdir())


def test_only_the_first_rank_has_writers(two_ranks: Any, tmp_path: Path) -> None:
    assert two_ranks(count_writers, folder=tmp_path) == [1, 0]


def count_writers(folder: str) -> int:
    with open_writers(Run(Path(folder)), tensorboard=True, wandb="", config={}) as opened:
        return len(opened)


def test_a_line_with_odd_values_gives_the_numbers_that_it_has() -> None:
    line = {"stage": "s", "loss": "x", "lr": True, "losses": {"a": 1.5, "b": None}, "m": {"n": 2}}
    assert scalars_of(line, ["m.n", "m.o"]) == {"s/losses/a": 1.5, "m/n": 2}
    assert scalars_of({"losses": 5}, ["m.n"]) == {}
