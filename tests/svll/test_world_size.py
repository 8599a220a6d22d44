"""The result does not depend on how many ranks share a batch, nor on what ZeRO splits over them."""

from pathlib import Path
from typing import Any

import pytest

from harness.config import build, parse_overrides, read_recipe, signature, to_yaml
from harness.runs import Run
from svll.config import RECIPES, Config
from svll.data.synthetic import World, write_world

STEPS = 20
WORLD = World(train_identities=24, test_identities=4, shots=6)
SETTINGS = (
    # some 540 images of 18 identities: 9 and 6 steps an epoch
    "data.height=32", "data.width=16", "stage1.batch=64", "stage1.epochs=3", "stage2.batch=64",
    "stage2.epochs=4", "stage1.lr=3.5e-4", "stage2.lr=5e-6",  # as published
    "evaluation.every=0", "run.tensorboard=false", "run.log_every=1", "data.check=false",
)


def make_run(runs: str, world: str, zero: int) -> Run:
    settings = parse_overrides([*SETTINGS, f"data.root={world}", f"engine.zero={zero}"])
    config = build(Config, [*read_recipe(RECIPES / "synthetic_tiny.yaml", Config), *settings])
    run = Run(Path(runs) / "world" / signature(config))
    run.create(to_yaml(config))
    return run


def carry_out(
    runs: str, world: str, zero: int, stop_after: int | None = None
) -> list[dict[str, Any]]:
    """Run on this rank; returns the losses of every step. May stop after so many steps in all."""
    from harness import loop
    from harness.stopping import Stopped
    from svll.experiment import run as experiment

    run = make_run(runs, world, zero)
    asked = iter([False] * (stop_after or 10_000))
    before = loop.stop_requested
    loop.stop_requested = lambda: next(asked, True)  # type: ignore[assignment]
    try:
        experiment(run)
        assert stop_after is None
    except Stopped:
        assert stop_after is not None
    finally:
        loop.stop_requested = before
    return run.metrics()


def losses(lines: list[dict[str, Any]], stage: str) -> list[dict[str, float]]:
    """The losses of the first steps of a stage, by name."""
    steps = [line for line in lines if line["kind"] == "step" and line["stage"] == stage]
    return [{**line["losses"], "loss": line["loss"]} for line in steps][:STEPS]


def assert_near(one: list[dict[str, float]], other: list[dict[str, float]]) -> None:
    assert len(one) == len(other) == STEPS
    for step, (a, b) in enumerate(zip(one, other, strict=True), start=1):
        assert a.keys() == b.keys()
        for name in a:
            assert b[name] == pytest.approx(a[name], rel=1e-4), (step, name)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A drawn benchmark of some 540 training images."""
    return str(write_world(WORLD, tmp_path_factory.mktemp("drawn") / "world"))


@pytest.fixture(scope="module")
def alone(
    one_rank: Any, world: str, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """What one rank of 64 images logs."""
    runs = str(tmp_path_factory.mktemp("one"))
    (lines,) = one_rank(carry_out, runs=runs, world=world, zero=0)
    return lines


@pytest.mark.parametrize("zero", [0, 1, 2])
def test_two_ranks_of_32_have_the_losses_of_one_rank_of_64(
    two_ranks: Any, world: str, alone: list[dict[str, Any]], tmp_path: Path, zero: int
) -> None:
    lines, _ = two_ranks(carry_out, runs=str(tmp_path), world=world, zero=zero)
    for stage in ("stage1", "stage2"):
        assert_near(losses(alone, stage), losses(lines, stage))


def test_a_checkpoint_of_two_ranks_and_zero_2_goes_on_under_one_rank_and_zero_0_and_back(
    one_rank: Any, two_ranks: Any, world: str, alone: list[dict[str, Any]], tmp_path: Path
) -> None:
    given = {"runs": str(tmp_path), "world": world}
    two_ranks(carry_out, **given, zero=2, stop_after=7)  # in stage 1
    one_rank(carry_out, **given, zero=0, stop_after=25)  # in stage 2
    lines, _ = two_ranks(carry_out, **given, zero=2)
    for stage in ("stage1", "stage2"):
        assert_near(losses(alone, stage), losses(lines, stage))
