"""The result does not depend on how many ranks share a batch, nor on what ZeRO splits over them."""

from pathlib import Path
from typing import Any

import pytest

from svll.world.world import World, write_world
from tests.tiny_run import tiny_run

STEPS = 20
WORLD = World(train_identities=8, test_identities=2, shots=6)
SETTINGS = (
    # some 150 images of 6 identities: 10 and 7 steps an epoch, which cost little
    "data.height=32", "data.width=16", "stage1.batch=16", "stage1.epochs=2", "stage2.batch=16",
    "stage2.epochs=3", "stage1.lr=3.5e-4", "stage2.lr=5e-6",  # as published
    "evaluation.every=0", "run.tensorboard=false", "run.log_every=1", "data.check=false",
)


def carry_out(
    runs: str, world: str, zero: int, stop_after: int | None = None
) -> tuple[list[dict[str, Any]], float]:
    """Run on this rank, perhaps stopped after so many steps; returns what was logged, and mAP."""
    from harness.runs.execute import execute
    from harness.training import loop

    run = tiny_run(f"{runs}/world", *SETTINGS, f"data.root={world}", f"engine.zero={zero}")
    asked = iter([False] * (stop_after or 10_000))
    before = loop.stop_requested
    loop.stop_requested = lambda: next(asked, True)  # type: ignore[assignment]
    try:
        assert execute(run) == ("stopped" if stop_after else "complete"), run.status()
    finally:
        loop.stop_requested = before
    return run.metrics(), (run.result() or {}).get("mAP", 0.0)


def losses(lines: list[dict[str, Any]], stage: str) -> list[dict[str, float]]:
    """The losses of the first steps of a stage, by name."""
    steps = [line for line in lines if line["kind"] == "step" and line["stage"] == stage]
    return [{**line["losses"], "loss": line["loss"]} for line in steps][:STEPS]


def assert_near(one: Any, other: Any) -> None:
    """Compare the losses of both stages, and what was learned."""
    for stage in ("stage1", "stage2"):
        found = losses(one[0], stage), losses(other[0], stage)
        assert len(found[0]) == len(found[1]) == STEPS
        for step, (a, b) in enumerate(zip(*found, strict=True), start=1):
            assert a.keys() == b.keys()
            for name in a:
                assert b[name] == pytest.approx(a[name], rel=1e-4), (stage, step, name)
    assert 0 < one[1] == pytest.approx(other[1], abs=0.02)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A drawn benchmark of some 220 images to train on, of which a quarter validates."""
    return str(write_world(WORLD, tmp_path_factory.mktemp("drawn") / "world"))


@pytest.fixture(scope="module")
def alone(one_rank: Any, world: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What one rank of 16 images logs and scores."""
    return one_rank(carry_out, runs=str(tmp_path_factory.mktemp("one")), world=world, zero=0)[0]


@pytest.mark.parametrize("zero", [0, 1, 2])
def test_two_ranks_of_8_have_the_losses_of_one_rank_of_16_and_its_score(
    two_ranks: Any, world: str, alone: Any, tmp_path: Path, zero: int
) -> None:
    assert_near(alone, two_ranks(carry_out, runs=str(tmp_path), world=world, zero=zero)[0])


def test_a_checkpoint_of_two_ranks_and_zero_2_goes_on_under_one_rank_and_zero_0_and_back(
    one_rank: Any, two_ranks: Any, world: str, alone: Any, tmp_path: Path
) -> None:
    given = {"runs": str(tmp_path), "world": world}
    two_ranks(carry_out, **given, zero=2, stop_after=7)  # in stage 1
    one_rank(carry_out, **given, zero=0, stop_after=25)  # in stage 2
    assert_near(alone, two_ranks(carry_out, **given, zero=2)[0])
