"""What a run would cost: sizes without drawing, the groups as trained, costs that scale."""

from collections.abc import Callable

import pytest
import torch

from harness.base.errors import UserError
from harness.config.build import build
from harness.config.recipes import read_recipe
from harness.config.sources import parse_overrides
from svll.config import RECIPES, Config
from svll.runs import cost_estimate as measuring
from svll.runs.cost_estimate import Range, estimate
from svll.runs.preflight import TrainingSize
from tests.gpu.emulator import emulated

SMALL = TrainingSize(images=320, identities=20, cameras=6, views=1)


@pytest.fixture(autouse=True)
def _quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small probes: what they take is of no interest, except where they are the subject."""
    if "probe" not in request.node.name:
        monkeypatch.setattr(measuring, "LONG_S", 0.0)
        monkeypatch.setattr(measuring, "_measured", lambda work: Range(1.0, 2.0))


def config_of(name: str, *overrides: str) -> Config:
    settings = read_recipe(RECIPES / f"{name}.yaml", Config)
    return build(Config, [*settings, *parse_overrides(overrides)])


def test_groups_have_the_learning_rates_of_the_schedule() -> None:
    # the published rates on the tiny model
    config = config_of(
        "synthetic_tiny", "stage1.epochs=120", "stage1.lr=3.5e-4", "stage1.warmup_epochs=5",
        "stage2.epochs=60", "stage2.lr=5e-6", "stage2.warmup_epochs=10",
    )
    prompts, weights, biases = estimate(config, SMALL).groups
    assert (prompts.stage, prompts.name, prompts.parameters) == ("stage1", "prompts", 20 * 4 * 128)
    assert prompts.lr_first == pytest.approx(7.8e-5)
    assert (weights.lr, weights.lr_first) == pytest.approx((5e-6, 9.5e-7))
    assert (biases.lr, biases.lr_first) == pytest.approx((1e-5, 1.9e-6))
    assert {group.weight_decay for group in (prompts, weights, biases)} == {1e-4}


def test_steps_are_those_of_both_stages() -> None:
    one, two = estimate(config_of("synthetic_tiny"), SMALL).costs
    # 320 images: 10 batches of 32, 20 of 16, two epochs of each
    assert (one.steps, two.steps) == (20, 40)
    for part in ("low", "high"):
        seconds = getattr(one.before_s, part) + 20 * getattr(one.step_s, part)
        assert getattr(one.hours, part) == pytest.approx(seconds / 3600)
    known = TrainingSize(images=320, identities=20, cameras=6, views=1, batches=3)
    assert estimate(config_of("synthetic_tiny"), known).costs[1].steps == 2 * 3


def test_memory_grows_by_what_each_image_keeps() -> None:
    def memory(batch: int, *overrides: str) -> float:
        config = config_of("synthetic_tiny", f"stage2.batch={batch}", *overrides)
        return estimate(config, SMALL).costs[-1].memory_gb

    few, more, most = memory(16), memory(32), memory(64)
    assert (most - more) == pytest.approx(2 * (more - few), rel=1e-3)
    assert memory(16, "stage2.vss_weight=0") < few


def test_the_baseline_has_no_first_stage() -> None:
    found = estimate(config_of("synthetic_tiny", "stage1.epochs=0", "stage2.i2t_weight=0"), SMALL)
    assert {group.stage for group in found.groups} == {"stage2"}
    assert [cost.stage for cost in found.costs] == ["stage2"]


def test_several_probes_after_one_that_is_not_counted_give_a_range(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seconds = iter([84.0, 3.0, 2.7, 3.4])
    monkeypatch.setattr(measuring, "_timed", lambda work: next(seconds, 3.0))
    found = measuring._measured(lambda: None)
    assert (found, str(found)) == (Range(2.7, 3.4), "2.7 to 3.4")
    assert str(found.times(10)) == "27 to 34"
    assert str(Range(0.1234, 0.1236)) == "0.12"


def test_a_probe_grows_until_it_keeps_the_cores_busy_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However long it waits for them: a step of two images may wait as long as one of sixty."""
    monkeypatch.setattr(measuring.torch, "get_num_threads", lambda: 2)

    def grown(cores_s_each: float) -> int:
        clock = [0.0]
        monkeypatch.setattr(measuring.time, "process_time", lambda: clock[0])

        def work(count: int):
            return lambda: clock.__setitem__(0, clock[0] + count * cores_s_each)

        return measuring._grown(work, 2, 64)

    assert [grown(each) for each in (5.0, 0.8, 0.01)] == [2, 8, 64]


def test_a_gpu_is_probed_with_whole_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    fitting = measuring._fitting

    def noted(work: Callable[[int], Callable[[], None]], least: int, most: int) -> int:
        counts.append(fitting(work, least, most))
        return counts[-1]

    monkeypatch.setattr(measuring, "_fitting", noted)
    monkeypatch.setattr(measuring, "_measured", lambda work: Range(1.0, 2.0))
    config = config_of("synthetic_tiny", "evaluation.batch=32")
    expected = estimate(config, SMALL).costs
    with emulated() as gpu:
        found = estimate(config, SMALL).costs
    assert gpu.mismatches == []
    # prompts of the identities that a batch of 32 of 320 has on average, images to encode, images
    assert counts == [round(20 * (1 - 0.95**32)), 32, 16]
    assert [cost.memory_gb for cost in found] == [cost.memory_gb for cost in expected]
    assert found[1].step_s == Range(1.0, 2.0).plus(Range(1.0, 2.0))


def test_a_probe_that_does_not_fit_into_a_gpu_takes_half_of_it_and_less() -> None:
    tried: list[int] = []

    def work(count: int) -> Callable[[], None]:
        tried.append(count)
        if count > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return lambda: None

    with emulated():
        assert measuring._grown(work, 2, 64) == 4
        assert tried == [64, 32, 16, 8, 4]
        with pytest.raises(UserError, match="the GPU's memory does not hold a step of 6 images"):
            measuring._grown(work, 6, 20)
